"""The schema that migrations make is the schema that the code expects."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, text

import gateway.tables
import kit.tables
import ledger.tables
import payments.tables
from kit import migrate
from kit.db import metadata

DESCRIBED = (kit.tables, ledger.tables, payments.tables, gateway.tables)


def test_the_migrated_schema_is_what_the_tables_describe(shared_url):
    engine = create_engine(shared_url)
    with engine.connect() as conn:
        differences = compare_metadata(
            MigrationContext.configure(conn, opts={"compare_type": True}), metadata
        )
        checks = conn.execute(
            text(
                "SELECT conname FROM pg_constraint WHERE contype = 'c' AND connamespace = 'public'::regnamespace"
            )
        ).scalars()
        found = {name for name in checks if not name.endswith("_not_null")}
    engine.dispose()
    described = {
        f"{table.name}_{constraint.name}_check"
        if not str(constraint.name).endswith("_check")
        else constraint.name
        for table in metadata.sorted_tables
        for constraint in table.constraints
        if type(constraint).__name__ == "CheckConstraint"
    }
    assert differences == []
    assert found == described


def test_migrating_again_changes_nothing_and_says_the_newest_version(fresh_url):
    assert migrate.upgrade(fresh_url) == migrate.newest()


def test_migrating_an_empty_database_from_several_processes_at_once_works(postgres, empty_url):
    with ThreadPoolExecutor(4) as pool:
        versions = list(pool.map(migrate.upgrade, [empty_url] * 4))
    assert set(versions) == {migrate.newest()}
