"""What each turn of a conversation took. The statements stand beside this file as SQL."""

from pathlib import Path

from alembic import op

revision = "0024"
down_revision = "0020"


def upgrade() -> None:
    """Add the measures of turns."""
    # The driver's own connection: several statements in one string, and a % in them is only a %.
    driver = op.get_bind().connection.driver_connection
    assert driver is not None, "migrations run on a live connection"
    driver.execute(Path(__file__).with_suffix(".sql").read_text())
