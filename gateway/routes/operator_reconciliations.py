"""An operator's routes over reconciliations: what providers' records said beside the books, and another look now."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import structlog
from fastapi import APIRouter
from pydantic import Field
from starlette.background import BackgroundTask
from starlette.responses import Response

from gateway.answers import Answer, Ok
from gateway.bodies import StrictRoute
from gateway.deps import SECURED, OperatorKey, Parts, PartsOf, own_id, page_before
from gateway.listing import Cursor, Limit, page
from gateway.openapi import READ, WRITE, problems
from gateway.operator_answers import NextCursor
from gateway.operator_schemas import Because
from gateway.periods import Instant
from gateway.responses import json_response
from kit.errors import AppError, InvalidRequest, NotFound
from payments.errors import PaymentsUnavailable
from payments.reconcile import Kind
from payments.reconciler import Reconciler
from payments.reconciliations import Begun, Reconciliation, Span

log = structlog.get_logger(__name__)
router = APIRouter(prefix="/api/v1/operator", tags=["Operator"], route_class=StrictRoute)

LONGEST: Final = timedelta(days=31)
"""A month is read in minutes; a year belongs into a process of its own, `farebox reconcile`, and not beside callers."""


class Reconcile(Because):
    """What to compare, and whether to mend what is provably safe."""

    since: Annotated[Instant, Field(description="In the past, at most 31 days before `until`.")]
    until: Annotated[Instant | None, Field(description="Without it, now.")] = None
    provider: Annotated[
        str | None,
        Field(
            max_length=40, description="Only this one; without it, every configured one.", examples=["stripe"]
        ),
    ] = None
    repair: Annotated[
        bool, Field(description="Grant what was paid, take back what went back; nothing else is touched.")
    ] = False


class DifferenceShown(Answer):
    """One difference of one payment."""

    kind: Kind
    provider: str
    purchase_id: str | None
    session_id: Annotated[str | None, Field(description="Its id at the provider.")]
    theirs: Annotated[str, Field(description="What the provider says.")]
    ours: Annotated[str, Field(description="What the books say.")]
    repair: Annotated[str | None, Field(description="What a repair would do; null: a person decides.")]


class ReconciliationFields(Answer):
    """A comparison of providers with the books."""

    id: str
    since: datetime
    until: datetime
    scheduled: Annotated[bool, Field(description="By the Runner, once a day; else by hand.")]
    repairs: bool
    began_at: datetime
    ended_at: Annotated[
        datetime | None, Field(description="Null: under way; after an hour, it never ends and is begun anew.")
    ]
    payments: Annotated[int, Field(description="How many were compared.")]
    repaired: Annotated[int, Field(description="Differences that are no more.")]
    left: Annotated[int, Field(description="Differences that are left.")]
    silent: Annotated[dict[str, str], Field(description="Providers that could not be asked, and why.")]


class ReconciliationReport(ReconciliationFields):
    """The same with every difference that was left, of a thousand at most."""

    differences: list[DifferenceShown]
    notes: Annotated[dict[str, str], Field(description="What of a provider cannot be compared.")]


class Reconciliations(Ok):
    """A page of comparisons, newest first."""

    data: list[ReconciliationFields]
    next_cursor: NextCursor


class ReconciliationShown(Ok):
    """One comparison."""

    reconciliation: ReconciliationReport


@router.get(
    "/reconciliations",
    operation_id="operatorListReconciliations",
    summary="List reconciliations",
    response_model=Reconciliations,
    responses=problems(*READ, "invalid_request"),
    openapi_extra=SECURED,
)
async def list_reconciliations(
    by: OperatorKey, parts: PartsOf, limit: Limit = 20, cursor: Cursor = None
) -> Response:
    """Comparisons of the providers' records with the books, newest first; the daily ones and those by hand."""
    found = await parts.ledger.reconciliations(by, limit + 1, page_before("rec", cursor))
    return json_response({"ok": True, **page(found, limit, _fields)})


@router.get(
    "/reconciliations/{reconciliation_id}",
    operation_id="operatorGetReconciliation",
    summary="Show a reconciliation",
    response_model=ReconciliationShown,
    responses=problems(*READ, NotFound("reconciliation")),
    openapi_extra=SECURED,
)
async def get_reconciliation(reconciliation_id: str, by: OperatorKey, parts: PartsOf) -> Response:
    """Each difference that it left, with what would mend it."""
    found = await parts.ledger.reconciliation(by, own_id("rec", reconciliation_id, "reconciliation"))
    return json_response({"ok": True, "reconciliation": _report(found)})


@router.post(
    "/reconciliations",
    operation_id="operatorReconcile",
    summary="Compare providers with the books",
    status_code=202,
    response_model=ReconciliationShown,
    responses=problems(*WRITE, "payments_unavailable"),
    openapi_extra=SECURED,
)
async def reconcile(body: Reconcile, by: OperatorKey, parts: PartsOf) -> Response:
    """Begins a comparison and answers at once; look at it by its id until `endedAt` is set.

    A repair fulfils a payment anew, as its webhook would have. What else differs is shown and left to you.
    """
    reconciler = _reconciler(parts)
    if not reconciler.providers:
        raise PaymentsUnavailable("No payment provider is configured on this server.")
    if body.provider is not None and body.provider not in reconciler.providers:
        raise InvalidRequest("provider", f"must be one of {', '.join(reconciler.providers)}")
    span = _span(body)
    found = await parts.ledger.order_reconciliation(by, span, body.provider, body.repair, body.reason)
    answer = json_response({"ok": True, "reconciliation": _report(found)}, 202)
    only = () if body.provider is None else (body.provider,)
    answer.background = BackgroundTask(_carry_out, reconciler, Begun(found.id, span), only, body.repair)
    return answer


async def _carry_out(reconciler: Reconciler, begun: Begun, only: Collection[str], repairs: bool) -> None:
    try:
        await reconciler.carry_out(begun, only, repairs=repairs)
    except AppError as error:  # the books are away: nothing is kept of it, and it is begun anew
        log.warning("reconciliation broken off", reconciliation_id=begun.id, problem=str(error))


def _reconciler(parts: Parts) -> Reconciler:
    cards = [] if parts.checkout is None else [parts.checkout]
    coins = [] if parts.crypto is None else parts.crypto.checkouts
    return Reconciler(parts.ledger, [*cards, *coins], wallets=parts.x402 is not None)


def _span(body: Reconcile) -> Span:
    """Return what to compare. Raises: InvalidRequest."""
    now = datetime.now(UTC)
    until = min(body.until or now, now)
    if body.since >= until:
        raise InvalidRequest("since", "must lie in the past and before until")
    if until - body.since > LONGEST:
        raise InvalidRequest(
            "since", f"must lie at most {LONGEST.days} days before until; `farebox reconcile` takes more"
        )
    return Span(body.since, until)


def _fields(found: Reconciliation) -> dict[str, Any]:
    return {
        "id": found.id,
        "since": found.span.since,
        "until": found.span.until,
        "scheduled": found.scheduled,
        "repairs": found.repairs,
        "beganAt": found.began_at,
        "endedAt": found.ended_at,
        "payments": found.result.payments,
        "repaired": found.result.repaired,
        "left": found.left,
        "silent": found.result.silent,
    }


def _report(found: Reconciliation) -> dict[str, Any]:
    return {
        **_fields(found),
        "differences": [
            {
                "kind": each.kind,
                "provider": each.provider,
                "purchaseId": each.purchase_id,
                "sessionId": each.session_id,
                "theirs": each.theirs,
                "ours": each.ours,
                "repair": each.repair,
            }
            for each in found.result.differences
        ],
        "notes": found.result.notes,
    }
