"""Limits of keys, and the keys that a key may make: see the SQL beside this file and `ledger.keys`."""

from pathlib import Path

from alembic import op

revision = "0006"
down_revision = "0008"


def upgrade() -> None:
    """Add scopes, addresses, last use and parents of keys; count a spend against every ancestor's cap."""
    # The driver's own connection: several statements in one string, and a % in them is only a %.
    driver = op.get_bind().connection.driver_connection
    assert driver is not None, "migrations run on a live connection"
    driver.execute(Path(__file__).with_suffix(".sql").read_text())
