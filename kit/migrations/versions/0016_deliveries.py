"""Alerts of a low balance, webhook endpoints and what is delivered to them. See the SQL beside this file."""

from pathlib import Path

from alembic import op

revision = "0016"
down_revision = "0013"


def upgrade() -> None:
    """Add alerts, endpoints and deliveries; a job may name where its end is told."""
    # The driver's own connection: several statements in one string, and a % in them is only a %.
    driver = op.get_bind().connection.driver_connection
    assert driver is not None, "migrations run on a live connection"
    driver.execute(Path(__file__).with_suffix(".sql").read_text())
