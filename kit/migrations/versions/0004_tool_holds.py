"""Holds of tools, reasons of spends: see the SQL beside this file, `gateway.tool_holds` and `ledger.spends`."""

from pathlib import Path

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the holds of tools; let spends have a reason and captures their units."""
    # The driver's own connection: several statements in one string, and a % in them is only a %.
    driver = op.get_bind().connection.driver_connection
    assert driver is not None, "migrations run on a live connection"
    driver.execute(Path(__file__).with_suffix(".sql").read_text())
