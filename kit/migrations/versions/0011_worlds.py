"""The test world beside the live one: see the SQL beside this file and `ledger.accounts.World`."""

from pathlib import Path

from alembic import op

revision = "0011"
down_revision = "0012"


def upgrade() -> None:
    """Give accounts, keys and purchases a world; let no transfer have sides in two."""
    # The driver's own connection: several statements in one string, and a % in them is only a %.
    driver = op.get_bind().connection.driver_connection
    assert driver is not None, "migrations run on a live connection"
    driver.execute(Path(__file__).with_suffix(".sql").read_text())
