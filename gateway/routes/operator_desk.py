"""An operator's routes over all accounts: holds, jobs, vouchers, prices, and the log."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from gateway import operator_ports as ports
from gateway import operator_views as views
from gateway.bodies import StrictRoute
from gateway.deps import SECURED, OperatorKey, PartsOf, own_id, page_before
from gateway.errors import HoldOfJob
from gateway.listing import Cursor, Limit, page, searched
from gateway.openapi import READ, WRITE, problems
from gateway.operator_answers import (
    Actions,
    OperatorHolds,
    OperatorHoldShown,
    OperatorJobs,
    OperatorJobShown,
    PriceAnnounced,
    PriceHistory,
    VoucherClosed,
    Vouchers,
    VouchersMade,
)
from gateway.operator_schemas import Because, MakeVouchers, SetPrice
from gateway.ports import JobStatus
from gateway.prices import NewPrice
from gateway.responses import json_response
from kit.errors import NotFound

router = APIRouter(prefix="/api/v1/operator", tags=["Operator"], route_class=StrictRoute)

OfUser = Annotated[str | None, Query(alias="userId", description="Only this user's.")]


@router.get(
    "/holds",
    operation_id="operatorListHolds",
    summary="List pending holds",
    response_model=OperatorHolds,
    responses=problems(*READ, "invalid_request"),
    openapi_extra=SECURED,
)
async def list_holds(
    by: OperatorKey, parts: PartsOf, *, user_id: OfUser = None, limit: Limit = 20, cursor: Cursor = None
) -> Response:
    """What is set aside now, newest first, of everyone or of one user."""
    query = ports.HoldQuery(limit + 1, page_before("hold", cursor), _user(user_id))
    return json_response({"ok": True, **page(await parts.ledger.pending_holds(by, query), limit, views.hold)})


@router.post(
    "/holds/{hold_id}/void",
    operation_id="operatorVoidHold",
    summary="Void a hold",
    response_model=OperatorHoldShown,
    responses=problems(
        *WRITE, NotFound("hold"), "hold_resolved", HoldOfJob("job_01k8z0c6m5n7q2r4t6v8x0y2z4")
    ),
    openapi_extra=SECURED,
)
async def void_hold(hold_id: str, body: Because, by: OperatorKey, parts: PartsOf) -> Response:
    """Sets its money free and charges nothing. A job's hold goes with its job: cancel that."""
    found = await parts.ledger.void_hold(by, own_id("hold", hold_id), body.reason)
    return json_response({"ok": True, "hold": views.hold(found)})


@router.get(
    "/jobs",
    operation_id="operatorListJobs",
    summary="List jobs of all accounts",
    response_model=OperatorJobs,
    responses=problems(*READ, "invalid_request"),
    openapi_extra=SECURED,
)
async def list_jobs(  # noqa: PLR0913  # its query parameters
    by: OperatorKey,
    parts: PartsOf,
    *,
    status: Annotated[JobStatus | None, Query(description="Only jobs in this status.")] = None,
    task: Annotated[str | None, Query(max_length=100, description="Only jobs of this task.")] = None,
    user_id: OfUser = None,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> Response:
    """Jobs that fit all that is given, newest first."""
    query = ports.JobsQuery(
        limit + 1, page_before("job", cursor), status, searched("task", task), _user(user_id)
    )
    return json_response({"ok": True, **page(await parts.ledger.find_jobs(by, query), limit, views.job)})


@router.post(
    "/jobs/{job_id}/cancel",
    operation_id="operatorCancelJob",
    summary="Cancel anybody's job",
    response_model=OperatorJobShown,
    responses=problems(*WRITE, "not_found"),
    openapi_extra=SECURED,
)
async def cancel_job(job_id: str, body: Because, by: OperatorKey, parts: PartsOf) -> Response:
    """Ends a queued job at once and asks a running one to stop; an ended one stays as it is."""
    found = await parts.ledger.end_job(by, own_id("job", job_id), body.reason)
    return json_response({"ok": True, "job": views.job(found)})


@router.post(
    "/vouchers",
    operation_id="operatorMakeVouchers",
    summary="Make vouchers",
    response_model=VouchersMade,
    responses=problems(*WRITE),
    openapi_extra=SECURED,
)
async def make_vouchers(body: MakeVouchers, by: OperatorKey, parts: PartsOf) -> Response:
    """Makes codes on the same terms. Only this answer has them; one that was lost is disabled by its id."""
    made = await parts.ledger.make_vouchers(by, body.terms(), body.count, body.reason)
    return json_response({"ok": True, "vouchers": [views.new_voucher(new) for new in made]})


@router.get(
    "/vouchers",
    operation_id="operatorListVouchers",
    summary="List vouchers",
    response_model=Vouchers,
    responses=problems(*READ, "invalid_request"),
    openapi_extra=SECURED,
)
async def list_vouchers(
    by: OperatorKey, parts: PartsOf, limit: Limit = 20, cursor: Cursor = None
) -> Response:
    """Vouchers, newest first, with how often each was redeemed."""
    found = await parts.ledger.vouchers(by, limit + 1, page_before("voucher", cursor))
    return json_response({"ok": True, **page(found, limit, views.voucher)})


@router.post(
    "/vouchers/{voucher_id}/disable",
    operation_id="operatorDisableVoucher",
    summary="Disable a voucher",
    response_model=VoucherClosed,
    responses=problems(*WRITE, NotFound("voucher")),
    openapi_extra=SECURED,
)
async def disable_voucher(voucher_id: str, body: Because, by: OperatorKey, parts: PartsOf) -> Response:
    """Nobody redeems it any more; what was redeemed stays."""
    found = await parts.ledger.disable_voucher(by, own_id("voucher", voucher_id), body.reason)
    return json_response({"ok": True, "voucher": views.voucher(found)})


@router.get(
    "/prices",
    operation_id="operatorListPrices",
    summary="List announced prices",
    response_model=PriceHistory,
    responses=problems(*READ),
    openapi_extra=SECURED,
)
async def list_prices(by: OperatorKey, parts: PartsOf) -> Response:
    """Every announced price, newest first. A tool without one has the catalogue's."""
    announced = await parts.ledger.price_history(by)
    return json_response({"ok": True, "prices": views.prices(announced, datetime.now(UTC))})


@router.post(
    "/prices",
    operation_id="operatorSetPrice",
    summary="Announce a price",
    response_model=PriceAnnounced,
    responses=problems(*WRITE),
    openapi_extra=SECURED,
)
async def set_price(body: SetPrice, by: OperatorKey, parts: PartsOf) -> Response:
    """A new version of a tool's price, for quotes from `since` on; earlier quotes keep theirs.

    The price with the latest `since` holds, of two with the same one the later version.
    """
    tool = parts.catalog.tool(body.tool)
    new = NewPrice(tool.name, body.tokens, body.per_units, body.since, body.reason)
    made = await parts.ledger.set_price(by, new)
    return json_response({"ok": True, "price": views.prices([made], datetime.now(UTC))[0]})


@router.get(
    "/audit",
    operation_id="operatorListActions",
    summary="Read the log",
    response_model=Actions,
    responses=problems(*READ, "invalid_request"),
    openapi_extra=SECURED,
)
async def list_actions(
    by: OperatorKey, parts: PartsOf, *, user_id: OfUser = None, limit: Limit = 20, cursor: Cursor = None
) -> Response:
    """What operators did, here and at the command line, newest first. Lines are never changed or removed."""
    found = await parts.ledger.actions(by, limit + 1, page_before("act", cursor), _user(user_id))
    return json_response({"ok": True, **page(found, limit, views.action)})


def _user(user_id: str | None) -> str | None:
    return None if user_id is None else own_id("user", user_id)
