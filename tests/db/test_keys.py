"""Keys: only hashes are stored, prefixes revoke one key or none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from kit.errors import AuthRequired, Forbidden, NotFound
from ledger import keys, scopes
from ledger.balances import Balance, balances_by_key
from ledger.errors import AmbiguousPrefix


async def test_only_a_hash_of_the_secret_is_stored(conn, customers):
    customer = await customers(conn, 0)
    row = (await conn.execute(text("SELECT * FROM api_keys WHERE id = :id"), {"id": customer.key_id})).one()
    body = customer.secret.removeprefix("amai_live_")
    stored = " ".join(str(value) for value in row)
    assert len(body) == 43
    assert body not in stored
    assert body[: keys.PREFIX_CHARS] == row.prefix
    assert bytes(row.secret_hash) == keys.hash_key(customer.secret)


async def test_a_revoked_key_is_unknown_from_the_next_statement_on(conn, customers):
    customer = await customers(conn, 0)
    assert (await keys.caller_of(conn, customer.credential, scopes.ANY)).user_id == customer.user_id
    await keys.revoke(conn, customer.user_id, customer.secret.removeprefix("amai_live_")[:10])
    with pytest.raises(AuthRequired):
        await keys.caller_of(conn, customer.credential, scopes.ANY)


async def test_an_expired_key_is_unknown(conn, customers):
    customer = await customers(conn, 0)
    past = datetime.now(UTC) - timedelta(seconds=1)
    made = await keys.mint(conn, customer.user_id, "short", brand="amai", limits=keys.Limits(expires_at=past))
    with pytest.raises(AuthRequired):
        await keys.caller_of(conn, keys.Credential(keys.hash_key(made.secret)), scopes.ANY)


async def test_a_list_of_keys_is_bounded_and_leaves_out_those_that_ended(conn, customers, monkeypatch):
    """Whoever pays by wallet has a key for each job that they ever paid for."""
    monkeypatch.setattr(keys, "LISTED_MOST", 3)
    customer = await customers(conn, 0)
    past = keys.Limits(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    soon = keys.Limits(expires_at=datetime.now(UTC) + timedelta(days=1))
    for label, limits in (("over", past), ("over too", past), ("job", soon), ("last over", past)):
        await keys.mint(conn, customer.user_id, label, brand="amai", limits=limits)
    listed = [key.label for key in await keys.list_keys(conn, customer.user_id)]
    assert listed == ["last over", "job", (await keys.find(conn, customer.key_id)).label]


async def test_a_suspended_user_is_forbidden_with_every_key(conn, customers):
    customer = await customers(conn, 100)
    await conn.execute(text("UPDATE users SET suspended_at = now() WHERE id = :id"), {"id": customer.user_id})
    with pytest.raises(Forbidden):
        await keys.caller_of(conn, customer.credential, scopes.ANY)
    assert isinstance((await balances_by_key(conn, [customer.credential]))[0], Forbidden)


async def test_one_bad_key_of_a_batch_touches_no_other(conn, customers):
    one, two = await customers(conn, 100), await customers(conn, 200)
    asked = [
        one.credential,
        keys.Credential(keys.hash_key("amai_live_wrong")),
        two.credential,
        one.credential,
    ]
    assert await balances_by_key(conn, asked) == [
        Balance(100, 0),
        AuthRequired(),
        Balance(200, 0),
        Balance(100, 0),
    ]


async def test_an_ambiguous_prefix_revokes_nothing_and_names_the_matches(conn, customers):
    customer = await customers(conn, 0)
    await conn.execute(
        text("UPDATE api_keys SET prefix = 'abcde11111' WHERE id = :id"), {"id": customer.key_id}
    )
    other = await keys.mint(conn, customer.user_id, "other", brand="amai")
    await conn.execute(text("UPDATE api_keys SET prefix = 'abcde22222' WHERE id = :id"), {"id": other.key.id})
    with pytest.raises(AmbiguousPrefix) as refused:
        await keys.revoke(conn, customer.user_id, "abcde")
    assert refused.value.matches == ["abcde11111", "abcde22222"]
    assert (await keys.revoke(conn, customer.user_id, "abcde1")).id == customer.key_id
    assert (await keys.revoke(conn, customer.user_id, "abcde")).id == other.key.id, "the other one is revoked"


async def test_a_prefix_matches_literally(conn, customers):
    customer = await customers(conn, 0)
    for wild in ("%", "_", "%%%%%", "_" * 10):
        with pytest.raises(NotFound):
            await keys.revoke(conn, customer.user_id, wild)


async def test_another_users_key_cannot_be_revoked(conn, customers):
    mine, theirs = await customers(conn, 0), await customers(conn, 0)
    with pytest.raises(NotFound):
        await keys.revoke(conn, mine.user_id, theirs.secret.removeprefix("amai_live_")[:10])


async def test_a_derived_secret_can_be_shown_again_and_differs_by_key(conn, customers):
    customer = await customers(conn, 0)
    made = await keys.mint(conn, customer.user_id, "a", brand="amai", derive_from=b"root")
    assert made.secret == f"amai_live_{keys.derive_secret(b'root', made.key.id)}"
    other = await keys.mint(conn, customer.user_id, "b", brand="amai", derive_from=b"root")
    assert other.secret != made.secret
