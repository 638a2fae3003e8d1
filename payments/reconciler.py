"""Asks providers and the books about the same payments, and mends what is provably safe to mend.

No transaction is open while a provider is asked. What differs is looked at a second time, each payment by itself:
between the two lists the world went on. A repair is the ordinary fulfilment of what the provider has now, never a
movement of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final, Protocol, runtime_checkable

import structlog

from kit.errors import AppError, NotFound
from kit.telemetry import reconciliation_differences, reconciliations_total
from payments.checkout import Checkout, Provider, ProviderSession
from payments.reconcile import Booked, Difference, compare, is_ours
from payments.reconciliations import Begun, Result, Span
from payments.x402_payments import PROVIDER as X402

log = structlog.get_logger(__name__)

PAGE: Final = 500
"""Purchases in one answer of the books: a second's work at most, and small enough for any handle."""
NOTES: Final = {
    "btcpay": "pays refunds out apart from their invoice: they cannot be compared",
    "coinbase_commerce": "has closed and keeps no record that can be read: nothing can be compared",
    X402: "a facilitator keeps no record: only what it answered is looked at, the chain shows the rest",
}
"""What cannot be compared, by provider."""


@runtime_checkable
class Recorded(Protocol):
    """A provider whose record of payments can be read."""

    def payments(self, since: datetime, until: datetime) -> AsyncIterator[ProviderSession]:
        """Go over the payments that were begun, made, refunded or disputed in a span, each as it stands now.

        Others may come along. Raises: PaymentsUnavailable.
        """


class ReconciliationBooks(Protocol):
    """The transactions of a reconciliation: each function of `payments.reconciliations` as one."""

    async def booked_since(self, provider: str, span: Span, after: str, limit: int) -> list[Booked]: ...

    async def booked_as(self, provider: str, purchase_ids: list[str]) -> list[Booked]: ...

    async def unsettled_wallets(self, span: Span) -> list[Difference]: ...

    async def begin_reconciliation(self, span: Span, repairs: bool) -> Begun: ...

    async def begin_reconciliation_if_due(
        self, every: timedelta, back: timedelta, repairs: bool
    ) -> Begun | None: ...

    async def finish_reconciliation(self, reconciliation_id: str, result: Result) -> None: ...


class Reconciler:
    """Compares the configured providers with the books."""

    def __init__(self, books: ReconciliationBooks, checkouts: Sequence[Checkout], *, wallets: bool) -> None:
        self._books = books
        self._checkouts = {checkout.provider.name: checkout for checkout in checkouts}
        self._wallets = wallets

    @property
    def providers(self) -> tuple[str, ...]:
        """Whom this server is configured for."""
        return (*self._checkouts, *([X402] if self._wallets else []))

    async def run(self, span: Span, only: Collection[str] = (), *, repairs: bool) -> Result:
        """Compare, mend if told to, keep the result and return it."""
        begun = await self._books.begin_reconciliation(span, repairs)
        return await self.carry_out(begun, only, repairs=repairs)

    async def run_if_due(self, every: timedelta, back: timedelta, *, repairs: bool) -> Result | None:
        """Do the scheduled reconciliation, if it is time for it and nobody else is at it."""
        begun = await self._books.begin_reconciliation_if_due(every, back, repairs)
        return None if begun is None else await self.carry_out(begun, (), repairs=repairs)

    async def carry_out(self, begun: Begun, only: Collection[str], *, repairs: bool) -> Result:
        """Do what was written down as begun, keep the result and return it. `only`: whom to ask; everyone if empty."""
        asked = [name for name in self.providers if not only or name in only]
        payments, repaired = 0, 0
        differences: list[Difference] = []
        silent: dict[str, str] = {}
        for name in asked:
            try:
                seen, found = await self._compared(name, begun.span)
                if repairs:
                    left = await self._mended(name, found)
                    found, repaired = left, repaired + len(found) - len(left)
            except AppError as error:
                silent[name] = str(error)
                log.warning("provider not reconciled", provider=name, problem=str(error))
                continue
            payments += seen
            differences += found
            reconciliation_differences.labels(name).set(len(found))
            for each in found:
                log.error(
                    "books and provider differ",
                    provider=name,
                    kind=each.kind,
                    purchase_id=each.purchase_id,
                    session_id=each.session_id,
                )
        notes = {name: NOTES[name] for name in asked if name in NOTES}
        result = Result(payments, repaired, tuple(differences), silent, notes)
        outcome = "unanswered" if silent else "differs" if differences else "equal"
        reconciliations_total.labels(outcome).inc()
        await self._books.finish_reconciliation(begun.id, result)
        return result

    async def _compared(self, name: str, span: Span) -> tuple[int, list[Difference]]:
        """Return how many payments were compared, and what differs of them now."""
        if name == X402:
            return 0, await self._books.unsettled_wallets(span)
        checkout = self._checkouts[name]
        provider = checkout.provider
        if not isinstance(provider, Recorded):
            return 0, []
        theirs = {each.id: each async for each in provider.payments(span.since, span.until) if is_ours(each)}
        ours = {each.purchase_id: each async for each in self._booked(name, span)}
        named = {each.purchase_id for each in theirs.values()} - ours.keys()
        for part in _parts(sorted(named)):
            ours |= {each.purchase_id: each for each in await self._books.booked_as(name, part)}
        heard_of = {each.purchase_id for each in theirs.values()}
        for one in ours.values():
            if one.granted and one.purchase_id not in heard_of:
                found = await _asked(provider, one.payment_id or one.session_id)
                theirs |= {} if found is None else {found.id: found}
        differences = compare(name, theirs.values(), ours.values(), livemode=provider.livemode)
        return len(ours.keys() | heard_of), await self._again(checkout, differences)

    async def _booked(self, name: str, span: Span) -> AsyncIterator[Booked]:
        after = ""
        while page := await self._books.booked_since(name, span, after, PAGE):
            for each in page:
                yield each
            after = page[-1].purchase_id

    async def _again(self, checkout: Checkout, differences: Iterable[Difference]) -> list[Difference]:
        """Look at each payment that differs once more, as it stands now on both sides: theirs first, then ours."""
        name, provider = checkout.provider.name, checkout.provider
        left: list[Difference] = []
        for purchase_id, session_id in dict.fromkeys(
            (each.purchase_id, each.session_id) for each in differences
        ):
            session = await _asked(provider, session_id)
            if session is not None and session.payment_id is not None:
                session = await provider.retrieve(session.payment_id)
            ours = await self._books.booked_as(name, [purchase_id] if purchase_id else [])
            theirs = [] if session is None else [session]
            found = compare(name, theirs, ours, livemode=provider.livemode)
            left += [each for each in found if each.session_id == session_id]
        return left

    async def _mended(self, name: str, differences: Sequence[Difference]) -> list[Difference]:
        """Fulfil anew what that mends; returns what differs after it."""
        checkout = self._checkouts.get(name)
        safe = [each for each in differences if each.repair is not None and each.session_id is not None]
        if checkout is None or not safe:
            return list(differences)
        for session_id in dict.fromkeys(each.session_id for each in safe):
            assert session_id is not None, "only those are safe"
            try:
                session = await checkout.settle(session_id)
                if (
                    session.payment_id is not None
                ):  # by its payment, every refund is heard of, failed ones too
                    await checkout.settle(session.payment_id)
            except AppError as error:
                log.warning("payment not repaired", provider=name, session_id=session_id, problem=str(error))
            else:
                log.warning("payment repaired", provider=name, session_id=session_id)
        return await self._again(checkout, differences)


async def _asked(provider: Provider, object_id: str | None) -> ProviderSession | None:
    """Return a payment as its provider has it now; None where it has none of that name."""
    if object_id is None:
        return None
    try:
        return await provider.retrieve(object_id)
    except NotFound:
        return None


def _parts(ids: Sequence[str]) -> Iterable[list[str]]:
    return (list(ids[start : start + PAGE]) for start in range(0, len(ids), PAGE))
