"""Uploads and outputs: what is known of a file; its bytes lie in the object store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.errors import TooManyFiles
from gateway.ports import NewFile, StoredFile
from gateway.tables import files
from kit.errors import NotFound
from ledger import accounts


async def add_upload(conn: AsyncConnection, account_id: int, command: NewFile, limit: int) -> StoredFile:
    """Record an upload; the account's lock keeps the limit exact. Raises: TooManyFiles."""
    await accounts.lock(conn, [account_id])
    kept = (
        await conn.execute(
            select(func.count()).where(
                files.c.account_id == account_id, files.c.job_id.is_(None), files.c.deleted_at.is_(None)
            )
        )
    ).scalar_one()
    if kept >= limit:
        raise TooManyFiles(limit)
    row = (
        await conn.execute(
            insert(files)
            .values(
                id=command.id,
                account_id=account_id,
                name=command.name,
                storage_key=command.storage_key,
                content_type=command.content_type,
                size_bytes=command.size_bytes,
                sha256=command.sha256,
            )
            .returning(files)
        )
    ).one()
    return _file(row)


async def add_outputs(
    conn: AsyncConnection, account_id: int, job_id: str, outputs: Sequence[StoredFile]
) -> None:
    """Record what a job made, in the transaction that charges for it."""
    await conn.execute(
        insert(files),
        [
            {
                "id": output.id,
                "account_id": account_id,
                "job_id": job_id,
                "name": output.name,
                "storage_key": output.storage_key,
                "content_type": output.content_type,
                "size_bytes": output.size_bytes,
                "sha256": output.sha256,
                "facts": output.facts,
            }
            for output in outputs
        ],
    )


async def outputs_of(
    conn: AsyncConnection, job_ids: Sequence[str], *, deleted: bool = False
) -> dict[str, list[StoredFile]]:
    """Return the outputs of jobs, in the order they were made; `deleted`: those that were deleted too."""
    found: dict[str, list[StoredFile]] = {}
    if job_ids:
        query = select(files).where(files.c.job_id.in_(job_ids))
        if not deleted:
            query = query.where(files.c.deleted_at.is_(None))
        for row in await conn.execute(query.order_by(files.c.id)):
            found.setdefault(row.job_id, []).append(_file(row))
    return found


async def list_files(
    conn: AsyncConnection, account_id: int, limit: int, before: str | None
) -> list[StoredFile]:
    """Return a page of the account's files, newest first."""
    query = select(files).where(files.c.account_id == account_id, files.c.deleted_at.is_(None))
    if before is not None:
        query = query.where(files.c.id < before)
    return [_file(row) for row in await conn.execute(query.order_by(files.c.id.desc()).limit(limit))]


async def file(conn: AsyncConnection, file_id: str, account_id: int | None) -> StoredFile:
    """Return a file, of this account unless `account_id` is None (a signed URL speaks for its owner).

    Raises: NotFound.
    """
    query = select(files).where(files.c.id == file_id, files.c.deleted_at.is_(None))
    if account_id is not None:
        query = query.where(files.c.account_id == account_id)
    row = (await conn.execute(query)).one_or_none()
    if row is None:
        raise NotFound("file")
    return _file(row)


async def delete_file(conn: AsyncConnection, account_id: int, file_id: str) -> StoredFile:
    """Forget a file; its bytes may be deleted once this has committed. Raises: NotFound."""
    row = (
        await conn.execute(
            update(files)
            .where(files.c.id == file_id, files.c.account_id == account_id, files.c.deleted_at.is_(None))
            .values(deleted_at=func.now())
            .returning(files)
        )
    ).one_or_none()
    if row is None:
        raise NotFound("file")
    return _file(row)


async def delete_upload(conn: AsyncConnection, account_id: int, file_id: str) -> StoredFile:
    """Forget an upload, never an output of a job; its bytes may then be deleted. Raises: NotFound."""
    if (await file(conn, file_id, account_id)).job_id is not None:
        raise NotFound("file")
    return await delete_file(conn, account_id, file_id)


async def delete_all(conn: AsyncConnection, account_id: int) -> list[str]:
    """Forget every file of an account, names too; returns the storage keys of bytes that may then be deleted."""
    kept = await conn.scalars(
        select(files.c.storage_key)
        .where(files.c.account_id == account_id, files.c.deleted_at.is_(None))
        .with_for_update()
    )
    keys = list(kept.all())
    await conn.execute(
        update(files)
        .where(files.c.account_id == account_id)
        .values(deleted_at=func.coalesce(files.c.deleted_at, func.now()), name="deleted", facts={})
    )
    return keys


def _file(row: Row[Any]) -> StoredFile:
    return StoredFile(
        id=row.id,
        name=row.name,
        storage_key=row.storage_key,
        content_type=row.content_type,
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        created_at=row.created_at,
        job_id=row.job_id,
        facts=row.facts,
    )
