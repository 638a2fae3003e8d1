"""Turns in the queue: see the SQL beside this file and `gateway.turns`."""

from pathlib import Path

from alembic import op

revision = "0015"
down_revision = "0006"


def upgrade() -> None:
    """Add turns, priorities, deadlines."""
    # The driver's own connection: several statements in one string, and a % in them is only a %.
    driver = op.get_bind().connection.driver_connection
    assert driver is not None, "migrations run on a live connection"
    driver.execute(Path(__file__).with_suffix(".sql").read_text())
