"""Referral codes, referrals and the cards that paid: see the SQL beside this file and `payments.referrals`."""

from pathlib import Path

from alembic import op

revision = "0012"
down_revision = "0010"


def upgrade() -> None:
    """Add codes, referrals, and what ends a referral whose order was taken back."""
    # The driver's own connection: several statements in one string, and a % in them is only a %.
    driver = op.get_bind().connection.driver_connection
    assert driver is not None, "migrations run on a live connection"
    driver.execute(Path(__file__).with_suffix(".sql").read_text())
