"""A reason of its own for automatic top-ups that are not offered, or not any more. The statement stands beside this file."""

from pathlib import Path

from alembic import op

revision = "0025"
down_revision = "0024"


def upgrade() -> None:
    """Allow the reason."""
    driver = op.get_bind().connection.driver_connection
    assert driver is not None, "migrations run on a live connection"
    driver.execute(Path(__file__).with_suffix(".sql").read_text())
