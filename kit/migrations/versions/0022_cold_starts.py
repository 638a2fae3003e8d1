"""How long models took to start: see the SQL beside this file and `gateway.cold_starts`."""

from pathlib import Path

from alembic import op

revision = "0022"
down_revision = "0023"


def upgrade() -> None:
    """Add the measured starts."""
    # The driver's own connection: several statements in one string, and a % in them is only a %.
    driver = op.get_bind().connection.driver_connection
    assert driver is not None, "migrations run on a live connection"
    driver.execute(Path(__file__).with_suffix(".sql").read_text())
