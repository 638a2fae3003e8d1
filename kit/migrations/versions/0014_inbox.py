"""Dead letters, refunds, disputes and customers: see the SQL beside this file and `payments.tables`."""

from pathlib import Path

from alembic import op

revision = "0014"
down_revision = "0011"


def upgrade() -> None:
    """Let events be given up, payments be taken back in parts, and credits come back after a won dispute."""
    # The driver's own connection: several statements in one string, and a % in them is only a %.
    driver = op.get_bind().connection.driver_connection
    assert driver is not None, "migrations run on a live connection"
    driver.execute(Path(__file__).with_suffix(".sql").read_text())
