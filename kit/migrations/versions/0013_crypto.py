"""What arrived of a purchase, and when its provider is looked at again: see the SQL beside this file."""

from pathlib import Path

from alembic import op

revision = "0013"
down_revision = "0014"


def upgrade() -> None:
    """Add what arrived, the end of the provider's session, and the next look at it."""
    # The driver's own connection: several statements in one string, and a % in them is only a %.
    driver = op.get_bind().connection.driver_connection
    assert driver is not None, "migrations run on a live connection"
    driver.execute(Path(__file__).with_suffix(".sql").read_text())
