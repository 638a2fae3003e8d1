"""Sign-in: sessions beside the keys, one-time codes, and the outbox of mails. See the SQL beside this file."""

from pathlib import Path

from alembic import op

revision = "0009"
down_revision = "0015"


def upgrade() -> None:
    """Add sessions, codes and the outbox."""
    # The driver's own connection: several statements in one string, and a % in them is only a %.
    driver = op.get_bind().connection.driver_connection
    assert driver is not None, "migrations run on a live connection"
    driver.execute(Path(__file__).with_suffix(".sql").read_text())
