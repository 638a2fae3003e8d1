"""Bringing a database to the newest schema: once, however many processes start at the same time."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.pool import NullPool

LOCK: Final = 0x0FA2_EB0C
"""The advisory lock that one migrator holds; any number, as long as it is always the same."""
LOCK_TIMEOUT_S: Final = 10
"""A migration that waits longer for a table lock would stop all traffic behind it: better to fail and try later."""


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    return config


def upgrade(url: str) -> str:
    """Apply what is missing and return the version that the database is at. Safe in a race; a repeat does nothing."""
    engine = create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": 5})
    try:
        with engine.connect() as conn:
            conn.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
            conn.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'"))
            conn.commit()
            try:
                config = _config()
                config.attributes["connection"] = conn
                command.upgrade(config, "head")
                conn.commit()
            finally:
                conn.rollback()
                conn.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": LOCK})
                conn.commit()
            return current(conn)
    finally:
        engine.dispose()


def current(conn: Connection) -> str:
    """Return the version that a database is at, `none` for an empty one."""
    return MigrationContext.configure(conn).get_current_revision() or "none"


def newest() -> str:
    """Return the version that this code needs."""
    return ScriptDirectory.from_config(_config()).get_current_head() or "none"
