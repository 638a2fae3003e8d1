"""Fixtures of the database tier alone."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine


@pytest_asyncio.fixture
async def shared_superuser(postgres, shared_url) -> AsyncIterator[AsyncEngine]:
    """The rollback database as the superuser: what a forger with full rights could do."""
    url = make_url(postgres.superuser_url).set(database=make_url(shared_url).database)
    engine = create_async_engine(url)
    yield engine
    await engine.dispose()
