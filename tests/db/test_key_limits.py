"""The laws of limited keys: scopes, addresses, caps over a family, rotation, last use."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from kit.errors import AuthRequired, Forbidden, NotFound
from kit.ids import new_id
from ledger import accounts, families, holds, keys, scopes
from ledger.balances import Balance, balances_by_key
from ledger.errors import KeyCapReached
from ledger.keys import Credential, Limits
from ledger.payers import authorise
from ledger.spends import Check, Spend, Spent, check_many, spend_many

LATER = datetime.now(UTC) + timedelta(days=30)
IN_OFFICE = "203.0.113.7"


async def key_of(conn, customer, limits=keys.UNLIMITED, parent=None):
    """Make a key of the customer's: its id and its credential."""
    made = await keys.mint(
        conn, customer.user_id, "agent", brand="amai", limits=limits, parent_id=parent and parent[0]
    )
    return made.key.id, Credential(keys.hash_key(made.secret))


async def child_of(conn, parent, limits=keys.UNLIMITED):
    """Make a child with the parent's own credential, as a caller does."""
    caller = await keys.caller_of(conn, parent[1], scopes.KEYS)
    await accounts.lock(conn, [caller.account_id])
    made = await families.make(conn, caller, "child", limits, brand="amai")
    return made.key.id, Credential(keys.hash_key(made.secret))


def spend(key, cost=1, *, tool="image", ip=None):
    return Spend(Credential(key[1].hash, ip), tool, new_id("job"), cost * 1000, cost, 1)


def summary(outcomes):
    return [outcome.charged_tokens if isinstance(outcome, Spent) else type(outcome) for outcome in outcomes]


async def hold(conn, key, amount, tool="image"):
    use = (key[1], scopes.tool(tool))
    payer = (await authorise(conn, [use]))[use]
    hold_id = new_id("hold")
    request = holds.HoldRequest(hold_id, payer, tool, new_id("job"), amount, 1, expires_at=None)
    return hold_id, (await holds.place(conn, [request]))[0]


async def used(conn, *found):
    rows = await conn.execute(
        text("SELECT id, cap_used FROM api_keys WHERE id = ANY(:ids)"), {"ids": [key[0] for key in found]}
    )
    by_id = {row.id: row.cap_used for row in rows}
    return [by_id[key[0]] for key in found]


def cap(tokens, per="total"):
    return Limits(cap_tokens=tokens, cap_per=per)


# -- families: spending --------------------------------------------------------------------------------------------


async def test_children_together_never_pass_their_parents_cap(db, customers, assert_sound):
    async with db.transaction() as conn:
        customer = await customers(conn, 1000)
        parent = await key_of(conn, customer, cap(50))
        children = [await child_of(conn, parent) for _ in range(4)]
        children.append(await child_of(conn, children[0], cap(20)))

    async def spends(key):
        return [await db.run(spend_many, [spend(key, 3), spend(parent, 2)]) for _ in range(6)]

    async def holds_of(key):
        async def place(conn):
            return (await hold(conn, key, 4))[1]

        return [await db.run(place) for _ in range(3)]

    charged = sum(
        outcome.charged_tokens
        for batches in await asyncio.gather(*(spends(key) for key in children))
        for batch in batches
        for outcome in batch
        if isinstance(outcome, Spent)
    )
    held = 0
    for outcomes in await asyncio.gather(*(holds_of(key) for key in children)):
        held += sum(4 for outcome in outcomes if isinstance(outcome, int))
    async with db.transaction() as conn:
        assert await used(conn, parent) == [charged + held]
        assert 46 < charged + held <= 50
    await assert_sound(db)


async def test_siblings_in_one_batch_share_what_is_left(conn, customers):
    customer = await customers(conn, 100)
    parent = await key_of(conn, customer, cap(10))
    one, two = await child_of(conn, parent), await child_of(conn, parent)
    outcomes = await spend_many(conn, [spend(one, 6), spend(two, 6), spend(two, 4), spend(parent, 1)])
    assert summary(outcomes) == [6, KeyCapReached, 4, KeyCapReached]
    assert outcomes[1].left_tokens == 4
    assert await used(conn, parent) == [10]


async def test_the_tightest_limit_of_a_line_decides_and_is_named(conn, customers):
    customer = await customers(conn, 100)
    top = await key_of(conn, customer, cap(20, "day"))
    middle = await child_of(conn, top, cap(5, "month"))
    bottom = await child_of(conn, middle, cap(50))
    assert (await spend_many(conn, [spend(bottom, 6)])) == [KeyCapReached(6, 5, "month")]
    await spend_many(conn, [spend(top, 17)])
    assert (await spend_many(conn, [spend(bottom, 4)])) == [KeyCapReached(4, 3, "day")]
    assert summary(await spend_many(conn, [spend(bottom, 3)])) == [3]
    assert await used(conn, top, middle, bottom) == [20, 3, 3]
    answers = await check_many(conn, [Check(bottom[1], 1, "image")])
    assert answers[0].reason == "key_limit_reached"


async def test_holds_count_against_every_ancestor_and_give_back_what_they_did_not_cost(conn, customers):
    customer = await customers(conn, 100)
    top = await key_of(conn, customer, cap(20, "month"))
    bottom = await child_of(conn, await child_of(conn, top), cap(15, "day"))
    other = await key_of(conn, customer, cap(20, "month"))
    await spend_many(conn, [spend(other, 9)])
    (voided, _), (captured, _) = await hold(conn, bottom, 7), await hold(conn, bottom, 8)
    assert await used(conn, top, bottom) == [15, 15]
    assert (await hold(conn, bottom, 1))[1] == KeyCapReached(1, 0, "day")
    await holds.release(conn, voided, "voided")
    assert await used(conn, top, bottom) == [8, 8]
    await holds.capture(conn, captured, 5, datetime.now(UTC))
    assert await used(conn, top, bottom, other) == [5, 5, 9]


async def test_a_hold_gives_back_within_its_own_windows_alone(conn, customers):
    customer = await customers(conn, 100)
    top = await key_of(conn, customer, cap(50, "total"))
    bottom = await child_of(conn, top, cap(50, "day"))
    (old, _) = await hold(conn, bottom, 10)
    await conn.execute(text("UPDATE holds SET cap_window = cap_window - 1 WHERE id = :id"), {"id": old})
    await spend_many(conn, [spend(bottom, 5)])
    await holds.release(conn, old, "voided")
    assert await used(conn, top, bottom) == [5, 15]


async def test_holds_of_siblings_in_one_batch_share_what_is_left(conn, customers):
    customer = await customers(conn, 100)
    parent = await key_of(conn, customer, cap(10))
    uses = [((await child_of(conn, parent))[1], scopes.tool("image")) for _ in range(3)]
    payers = await authorise(conn, uses)
    requests = [
        holds.HoldRequest(new_id("hold"), payers[use], "image", new_id("job"), 4, 1, expires_at=None)
        for use in uses
    ]
    assert [type(outcome) for outcome in await holds.place(conn, requests)] == [int, int, KeyCapReached]
    assert await used(conn, parent) == [8]


# -- families: who may do what -------------------------------------------------------------------------------------


async def test_revoking_a_parent_stops_its_children_at_once(conn, customers):
    customer = await customers(conn, 100)
    parent, other = await key_of(conn, customer, cap(50)), await key_of(conn, customer, cap(50))
    child = await child_of(conn, parent)
    grandchild = await child_of(conn, child)
    prefix = (await keys.find(conn, parent[0])).prefix
    await keys.revoke(conn, customer.user_id, prefix)
    outcomes = await spend_many(conn, [spend(child), spend(grandchild), spend(other)])
    assert summary(outcomes) == [AuthRequired, AuthRequired, 1]
    with pytest.raises(AuthRequired):
        await keys.caller_of(conn, grandchild[1], scopes.ANY)


async def test_a_parent_that_ends_earlier_ends_its_children(conn, customers):
    customer = await customers(conn, 100)
    parent = await key_of(conn, customer, Limits(expires_at=LATER))
    child = await child_of(conn, parent)
    assert (await keys.find(conn, child[0])).expires_at == LATER
    await conn.execute(text("UPDATE api_keys SET expires_at = now() WHERE id = :id"), {"id": parent[0]})
    assert summary(await spend_many(conn, [spend(parent), spend(child)])) == [AuthRequired, AuthRequired]


@pytest.mark.parametrize(
    "limits",
    [cap(5), Limits(scopes=("keys",)), Limits(allowed_ips=("203.0.113.0/24",)), Limits(expires_at=LATER)],
    ids=["cap", "scopes", "addresses", "expiry"],
)
async def test_a_key_with_any_limit_makes_children_alone(conn, customers, limits):
    customer = await customers(conn, 0)
    limited = await key_of(conn, customer, limits)
    caller = await keys.caller_of(conn, Credential(limited[1].hash, IN_OFFICE), scopes.KEYS)
    made = (await families.make(conn, caller, "x", keys.UNLIMITED, brand="amai")).key
    assert made.parent_id == limited[0]
    assert (made.scopes, made.expires_at) == (limits.scopes, limits.expires_at)
    assert made.allowed_ips == limits.allowed_ips


async def test_a_full_key_makes_siblings(conn, customers):
    customer = await customers(conn, 0)
    caller = await keys.caller_of(conn, customer.credential, scopes.KEYS)
    made = await families.make(conn, caller, "x", cap(5), brand="amai")
    assert made.key.parent_id is None
    assert {key.id for key in await keys.list_keys(conn, customer.user_id, caller.within)} == {
        customer.key_id,
        made.key.id,
    }


@pytest.mark.parametrize(
    ("wider", "field"),
    [
        (Limits(scopes=("tools:dub",)), "scopes"),
        (Limits(scopes=("tools:*",)), "scopes"),
        (Limits(allowed_ips=("203.0.0.0/16",)), "allowedIps"),
        (Limits(allowed_ips=("2001:db8::1/128",)), "allowedIps"),
        (Limits(expires_at=LATER + timedelta(seconds=1)), "expiresAt"),
    ],
)
async def test_a_child_is_never_wider_than_its_parent(conn, customers, wider, field):
    customer = await customers(conn, 0)
    own = Limits(scopes=("keys", "tasks:*", "tools:chat"), allowed_ips=("203.0.113.0/24",), expires_at=LATER)
    parent = await key_of(conn, customer, own)
    caller = await keys.caller_of(conn, Credential(parent[1].hash, IN_OFFICE), scopes.KEYS)
    with pytest.raises(Forbidden) as refused:
        await families.make(conn, caller, "x", wider, brand="amai")
    assert refused.value.message.startswith(f"{field}: ")
    narrower = Limits(scopes=("tasks:image.generate",), allowed_ips=(f"{IN_OFFICE}/32",))
    made = (await families.make(conn, caller, "x", narrower, brand="amai")).key
    assert (made.scopes, made.allowed_ips, made.expires_at) == (*_pair(narrower), LATER)


def _pair(limits):
    return limits.scopes, limits.allowed_ips


@pytest.mark.parametrize(
    "wider",
    [
        Limits(scopes=("tools:*",), allowed_ips=("203.0.113.7/32",), expires_at=LATER),
        Limits(scopes=None, allowed_ips=("203.0.113.7/32",), expires_at=LATER),
        Limits(scopes=("read",), allowed_ips=("203.0.0.0/16",), expires_at=LATER),
        Limits(scopes=("read",), allowed_ips=None, expires_at=LATER),
        Limits(scopes=("read",), allowed_ips=("203.0.113.7/32",), expires_at=LATER + timedelta(days=1)),
        Limits(scopes=("read",), allowed_ips=("203.0.113.7/32",), expires_at=None),
    ],
)
async def test_the_database_itself_refuses_a_wider_child(conn, customers, wider):
    customer = await customers(conn, 0)
    own = Limits(scopes=("read",), allowed_ips=("203.0.113.0/24",), expires_at=LATER)
    parent = await key_of(conn, customer, own)
    with pytest.raises(DBAPIError, match="wider than its parent"):
        await key_of(conn, customer, wider, parent)


async def test_the_database_itself_refuses_a_strangers_or_a_revoked_parent(conn, customers):
    customer, stranger = await customers(conn, 0), await customers(conn, 0)
    theirs = await key_of(conn, stranger)
    async with conn.begin_nested():
        with pytest.raises(DBAPIError, match="wider than its parent"):
            async with conn.begin_nested():
                await key_of(conn, customer, parent=theirs)
    await conn.execute(text("UPDATE api_keys SET revoked_at = now() WHERE id = :id"), {"id": customer.key_id})
    with pytest.raises(DBAPIError, match="wider than its parent"):
        await key_of(conn, customer, parent=(customer.key_id,))


async def test_keys_are_handed_on_so_often_and_no_oftener(conn, customers):
    customer = await customers(conn, 0)
    key = await key_of(conn, customer, cap(5))
    for _ in range(families.DEPTH):
        key = await child_of(conn, key)
    with pytest.raises(Forbidden, match=str(families.DEPTH)):
        await child_of(conn, key)


async def test_a_limited_key_sees_and_revokes_its_family_alone(conn, customers):
    customer = await customers(conn, 0)
    parent, other = await key_of(conn, customer, cap(5)), await key_of(conn, customer, cap(5))
    child = await child_of(conn, parent)
    grandchild = await child_of(conn, child)
    caller = await keys.caller_of(conn, child[1], scopes.KEYS)
    seen = await keys.list_keys(conn, caller.user_id, caller.within)
    assert {key.id for key in seen} == {child[0], grandchild[0]}
    for foreign in (parent, other):
        prefix = (await keys.find(conn, foreign[0])).prefix
        with pytest.raises(NotFound):
            await keys.revoke(conn, caller.user_id, prefix, caller.within)
        with pytest.raises(NotFound):
            await families.rotate(conn, caller, prefix, timedelta(0), brand="amai")
    prefix = (await keys.find(conn, grandchild[0])).prefix
    assert (await keys.revoke(conn, caller.user_id, prefix, caller.within)).revoked_at


async def test_a_child_is_not_made_by_a_key_that_was_revoked_meanwhile(db, customers):
    async with db.transaction() as conn:
        customer = await customers(conn, 0)
        parent = await key_of(conn, customer, cap(5))
    caller = await db.read(keys.caller_of, parent[1], scopes.KEYS)
    async with db.transaction() as conn:
        await keys.revoke(conn, customer.user_id, (await keys.find(conn, parent[0])).prefix)
    async with db.transaction() as conn:
        with pytest.raises(AuthRequired):
            await families.make(conn, caller, "x", keys.UNLIMITED, brand="amai")


# -- scopes and addresses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("granted", "need", "allowed"),
    [
        (None, "tools:chat", True),
        (("tools:*",), "tools:chat", True),
        (("tools:chat",), "tools:chat", True),
        (("tools:chat",), "tools:chat2", False),
        (("tools:chat",), scopes.READ, False),
        (("tasks:image.generate",), scopes.SEE_JOBS, True),
        (("tasks:image.generate",), "tasks:image.edit", False),
        (("tasks:image.generate",), scopes.ADD_FILES, True),
        (("tasks:image.generate",), scopes.DROP_FILES, False),
        (("read",), scopes.SEE_KEYS, True),
        (("read",), scopes.KEYS, False),
        (("read",), scopes.SUBMIT, False),
        (("read",), scopes.ADD_FILES, False),
        (("read",), scopes.CHECKOUT, False),
        (("keys",), scopes.READ, False),
        (("checkout",), scopes.ANY, True),
    ],
)
def test_a_scope_allows_its_uses_and_no_other(granted, need, allowed):
    assert scopes.allow(granted, need) is allowed


async def test_a_spend_out_of_scope_is_refused_and_touches_no_other(conn, customers):
    customer = await customers(conn, 100)
    chatty = await key_of(conn, customer, Limits(scopes=("read", "tools:chat")))
    handy = await key_of(conn, customer, Limits(scopes=("tools:*",)))
    reader = await key_of(conn, customer, Limits(scopes=("read",)))
    outcomes = await spend_many(
        conn, [spend(chatty), spend(chatty, 2, tool="chat"), spend(handy, 3), spend(reader, 4)]
    )
    assert summary(outcomes) == [Forbidden, 2, 3, Forbidden]
    assert "`tools:image`" in outcomes[0].message
    answers = await check_many(conn, [Check(chatty[1], 1, "image"), Check(chatty[1], 1, "chat")])
    assert (type(answers[0]), answers[1].allowed) == (Forbidden, True)
    assert isinstance((await balances_by_key(conn, [handy[1]]))[0], Forbidden)
    assert await balances_by_key(conn, [reader[1]]) == [Balance(95, 0)]
    use = (reader[1], scopes.task("image.generate"))
    assert isinstance((await authorise(conn, [use]))[use], Forbidden)


async def test_a_key_works_from_its_addresses_alone(conn, customers):
    customer = await customers(conn, 100)
    bound = await key_of(conn, customer, Limits(allowed_ips=("203.0.113.0/24", "2001:db8::/32")))
    asked = [IN_OFFICE, "203.0.114.7", "2001:db8:1::9", "2001:db9::1", None]
    admitted = [True, False, True, False, False]
    outcomes = await spend_many(conn, [spend(bound, ip=ip) for ip in asked])
    assert [isinstance(outcome, Spent) for outcome in outcomes] == admitted
    assert {type(outcome) for outcome in outcomes} == {Spent, Forbidden}
    credentials = [Credential(bound[1].hash, ip) for ip in asked]
    answers = await balances_by_key(conn, credentials)
    assert [isinstance(answer, Balance) for answer in answers] == admitted
    uses = [(credential, scopes.tool("image")) for credential in credentials]
    payers = await authorise(conn, uses)
    assert [not isinstance(payers[use], Forbidden) for use in uses] == admitted
    with pytest.raises(Forbidden, match="address"):
        await keys.caller_of(conn, credentials[1], scopes.ANY)


async def test_a_key_without_addresses_works_from_anywhere(conn, customers):
    customer = await customers(conn, 100)
    key = (customer.key_id, customer.credential)
    assert summary(await spend_many(conn, [spend(key, ip="198.51.100.1"), spend(key)])) == [1, 1]


# -- last use ------------------------------------------------------------------------------------------------------


async def last_use(conn, key):
    return (await keys.find(conn, key[0])).last_used_at


async def grow_old(conn, key, seconds):
    await conn.execute(
        text("UPDATE api_keys SET last_used_at = now() - make_interval(secs => :s) WHERE id = :id"),
        {"s": seconds, "id": key[0]},
    )


USES = {
    "spend": lambda conn, key: spend_many(conn, [spend(key)]),
    "read": lambda conn, key: keys.caller_of(conn, key[1], scopes.ANY),
    "balance": lambda conn, key: balances_by_key(conn, [key[1]]),
    "hold": lambda conn, key: authorise(conn, [(key[1], scopes.ANY)]),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
async def test_the_last_use_is_written_at_most_once_a_minute(conn, customers, use):
    customer = await customers(conn, 100)
    key = (customer.key_id, customer.credential)
    assert await last_use(conn, key) is None
    await use(conn, key)
    first = await last_use(conn, key)
    assert first is not None
    await use(conn, key)
    assert await last_use(conn, key) == first
    await grow_old(conn, key, 61)
    before = await last_use(conn, key)
    await use(conn, key)
    assert await last_use(conn, key) > before


async def test_a_refused_address_is_no_use(conn, customers):
    customer = await customers(conn, 100)
    bound = await key_of(conn, customer, Limits(allowed_ips=("203.0.113.7/32",)))
    await spend_many(conn, [spend(bound)])
    await balances_by_key(conn, [bound[1]])
    assert await last_use(conn, bound) is None


async def test_noting_a_use_never_waits_for_a_busy_account(db, customers):
    async with db.transaction() as conn:
        customer = await customers(conn, 100)
    async with db.transaction() as busy:
        await accounts.lock(busy, [customer.account_id])
        async with asyncio.timeout(5):
            assert await db.read(balances_by_key, [customer.credential]) == [Balance(100, 0)]
    await db.read(balances_by_key, [customer.credential])
    async with db.transaction() as conn:
        assert (await keys.find(conn, customer.key_id)).last_used_at is not None


# -- rotation ------------------------------------------------------------------------------------------------------


async def rotate(conn, key, overlap_s):
    caller = await keys.caller_of(conn, Credential(key[1].hash, IN_OFFICE), scopes.KEYS)
    await accounts.lock(conn, [caller.account_id])
    prefix = (await keys.find(conn, key[0])).prefix
    made = await families.rotate(conn, caller, prefix, timedelta(seconds=overlap_s), brand="amai")
    return made.key.id, Credential(keys.hash_key(made.secret))


async def test_a_rotated_key_keeps_every_setting(conn, customers):
    customer = await customers(conn, 100)
    limits = Limits(("keys", "tools:*"), ("203.0.113.0/24",), 50, "month", LATER)
    parent = await key_of(conn, customer, Limits(expires_at=LATER))
    old = await key_of(conn, customer, limits, parent)
    new = await rotate(conn, old, 60)
    row = await keys.match(conn, customer.user_id, (await keys.find(conn, new[0])).prefix, None)
    assert (tuple(row.scopes), row.cap_tokens, row.cap_per) == (limits.scopes, 50, "month")
    assert (row.allowed_ips, row.expires_at) == ([ip_network("203.0.113.0/24")], LATER)
    assert (row.label, row.parent_id) == ("agent", parent[0])


async def test_both_secrets_work_in_the_overlap_and_spend_no_more_than_one_could(conn, customers):
    customer = await customers(conn, 100)
    old = await key_of(conn, customer, cap(10))
    await spend_many(conn, [spend(old, 2)])
    placed, _ = await hold(conn, old, 3)
    new = await rotate(conn, old, 60)
    outcomes = await spend_many(conn, [spend(old, 1), spend(new, 2), spend(old, 3), spend(new, 3)])
    assert summary(outcomes) == [1, 2, KeyCapReached, KeyCapReached]
    await holds.release(conn, placed, "voided")
    assert summary(await spend_many(conn, [spend(old, 3), spend(new, 3), spend(new, 2)])) == [
        3,
        KeyCapReached,
        2,
    ]


async def test_without_an_overlap_the_old_secret_ends_at_once(conn, customers):
    customer = await customers(conn, 100)
    old = (customer.key_id, customer.credential)
    new = await rotate(conn, old, 0)
    assert summary(await spend_many(conn, [spend(old), spend(new)])) == [AuthRequired, 1]
    assert not (await keys.caller_of(conn, new[1], scopes.ANY)).limited


async def test_an_overlap_does_not_prolong_a_key(conn, customers):
    customer = await customers(conn, 0)
    soon = datetime.now(UTC) + timedelta(seconds=30)
    old = await key_of(conn, customer, Limits(expires_at=soon))
    new = await rotate(conn, old, 3600)
    assert [(await keys.find(conn, key[0])).expires_at for key in (old, new)] == [soon, soon]


async def test_children_follow_to_the_new_key(conn, customers):
    customer = await customers(conn, 100)
    old = await key_of(conn, customer, cap(10))
    child = await child_of(conn, old)
    new = await rotate(conn, old, 0)
    assert (await keys.find(conn, child[0])).parent_id == new[0]
    assert summary(await spend_many(conn, [spend(child, 6), spend(new, 6)])) == [6, KeyCapReached]
    await keys.revoke(conn, customer.user_id, (await keys.find(conn, new[0])).prefix)
    assert summary(await spend_many(conn, [spend(child)])) == [AuthRequired]


async def test_a_key_that_ended_is_not_rotated(conn, customers):
    customer = await customers(conn, 0)
    past = datetime.now(UTC) - timedelta(seconds=1)
    caller = await keys.caller_of(conn, customer.credential, scopes.KEYS)
    for ended in (await key_of(conn, customer, Limits(expires_at=past)), await key_of(conn, customer)):
        prefix = (await keys.find(conn, ended[0])).prefix
        await conn.execute(
            text("UPDATE api_keys SET revoked_at = now() WHERE id = :id AND expires_at IS NULL"),
            {"id": ended[0]},
        )
        with pytest.raises(NotFound):
            await families.rotate(conn, caller, prefix, timedelta(0), brand="amai")
