"""Stages of jobs: see the SQL beside this file and `gateway.stage_parts`."""

from pathlib import Path

from alembic import op

revision = "0021"
down_revision = "0019"


def upgrade() -> None:
    """Add what the stages of a job made, and how far they are."""
    # The driver's own connection: several statements in one string, and a % in them is only a %.
    driver = op.get_bind().connection.driver_connection
    assert driver is not None, "migrations run on a live connection"
    driver.execute(Path(__file__).with_suffix(".sql").read_text())
