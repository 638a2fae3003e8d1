"""An operator's routes about one user and that user's money."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from gateway import operator_ports as ports
from gateway import operator_views as views
from gateway.bodies import StrictRoute
from gateway.deps import SECURED, OperatorKey, PartsOf, own_id, page_before
from gateway.listing import Cursor, Limit, page, searched
from gateway.openapi import READ, REPLAYED, WRITE, problems
from gateway.operator_answers import OperatorMovement, OperatorOverview, OperatorUsers, OperatorUserShown
from gateway.operator_schemas import Adjustment, Because, Grant, Refund, Reversal, in_tokens
from gateway.responses import REPLAY, json_response
from kit.errors import NotFound
from ledger.errors import ExceedsOriginal, InsufficientCredits, NotReversible, ReferenceConflict

router = APIRouter(prefix="/api/v1/operator", tags=["Operator"], route_class=StrictRoute)

TransferId = Annotated[int, Path(ge=1, le=2**63 - 1)]
_CHANGES = problems(*WRITE, NotFound("user"))
_MOVES = {200: {"headers": REPLAYED}} | problems(
    *WRITE, NotFound("user"), InsufficientCredits(100, 40), ReferenceConflict("ticket-17")
)
_RETURNS = {200: {"headers": REPLAYED}} | problems(
    *WRITE,
    NotFound("transfer of a user"),
    ReferenceConflict("ticket-17"),
    NotReversible("purchase", "only a charge can be refunded"),
    ExceedsOriginal(100, 40),
)


@router.get(
    "/users",
    operation_id="operatorFindUsers",
    summary="Find users",
    response_model=OperatorUsers,
    responses=problems(*READ, "invalid_request"),
    openapi_extra=SECURED,
)
async def find_users(  # noqa: PLR0913  # its query parameters
    by: OperatorKey,
    parts: PartsOf,
    *,
    term: Annotated[
        str | None,
        Query(
            alias="q",
            min_length=1,
            max_length=254,
            description="Part of an e-mail, how a key begins, or the id of a user, key, job, hold or purchase.",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        Query(
            min_length=1,
            max_length=255,
            description="A transfer's reference; it is looked for in all of them, which takes seconds in large books.",
        ),
    ] = None,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> Response:
    """Users that fit all that is given, newest first."""
    query = ports.UserQuery(
        searched("q", term), searched("reference", reference), limit + 1, page_before("user", cursor)
    )
    found = await parts.ledger.find_users(by, query)
    return json_response({"ok": True, **page(found, limit, views.user)})


@router.get(
    "/users/{user_id}",
    operation_id="operatorShowUser",
    summary="Show a user",
    response_model=OperatorOverview,
    responses=problems(*READ, NotFound("user")),
    openapi_extra=SECURED,
)
async def show_user(user_id: str, by: OperatorKey, parts: PartsOf) -> Response:
    """Balance, holds, debts, freezes; unused grants, keys, and the newest holds, jobs and transfers."""
    found = await parts.ledger.user_overview(by, own_id("user", user_id))
    return json_response({"ok": True, **views.overview(found)})


@router.post(
    "/users/{user_id}/suspend",
    operation_id="operatorSuspendUser",
    summary="Suspend a user",
    response_model=OperatorUserShown,
    responses=_CHANGES,
    openapi_extra=SECURED,
)
async def suspend_user(user_id: str, body: Because, by: OperatorKey, parts: PartsOf) -> Response:
    """Every key of the user gets 403 from the next request on; work under way ends as it would."""
    found = await parts.ledger.set_suspended(by, own_id("user", user_id), True, body.reason)  # noqa: FBT003
    return json_response({"ok": True, "user": views.user(found)})


@router.post(
    "/users/{user_id}/unsuspend",
    operation_id="operatorUnsuspendUser",
    summary="Take a suspension back",
    response_model=OperatorUserShown,
    responses=_CHANGES,
    openapi_extra=SECURED,
)
async def unsuspend_user(user_id: str, body: Because, by: OperatorKey, parts: PartsOf) -> Response:
    """The user's keys work again."""
    found = await parts.ledger.set_suspended(by, own_id("user", user_id), False, body.reason)  # noqa: FBT003
    return json_response({"ok": True, "user": views.user(found)})


@router.post(
    "/users/{user_id}/freeze",
    operation_id="operatorFreezeAccount",
    summary="Stop a user's spending",
    response_model=OperatorUserShown,
    responses=_CHANGES,
    openapi_extra=SECURED,
)
async def freeze_account(user_id: str, body: Because, by: OperatorKey, parts: PartsOf) -> Response:
    """Nothing more is spent or held; the keys still read."""
    found = await parts.ledger.set_frozen(by, own_id("user", user_id), True, body.reason)  # noqa: FBT003
    return json_response({"ok": True, "user": views.user(found)})


@router.post(
    "/users/{user_id}/unfreeze",
    operation_id="operatorUnfreezeAccount",
    summary="Let a user spend again",
    response_model=OperatorUserShown,
    responses=_CHANGES,
    openapi_extra=SECURED,
)
async def unfreeze_account(user_id: str, body: Because, by: OperatorKey, parts: PartsOf) -> Response:
    """Takes a freeze back. A debt goes on to stop spending until it is paid."""
    found = await parts.ledger.set_frozen(by, own_id("user", user_id), False, body.reason)  # noqa: FBT003
    return json_response({"ok": True, "user": views.user(found)})


@router.post(
    "/users/{user_id}/grants",
    operation_id="operatorGrantCredits",
    summary="Give credits",
    response_model=OperatorMovement,
    responses=_MOVES,
    openapi_extra=SECURED,
)
async def grant_credits(user_id: str, body: Grant, by: OperatorKey, parts: PartsOf) -> Response:
    """Booked against promotion, once for each reference; a debt is paid out of it first."""
    command = ports.GiveCredits(
        own_id("user", user_id),
        in_tokens(body.credits),
        body.reference,
        body.reason,
        body.expires_at,
        body.priority,
    )
    return _moved(await parts.ledger.give_credits(by, command))


@router.post(
    "/users/{user_id}/adjustments",
    operation_id="operatorAdjustBalance",
    summary="Correct a balance",
    response_model=OperatorMovement,
    responses=_MOVES,
    openapi_extra=SECURED,
)
async def adjust_balance(user_id: str, body: Adjustment, by: OperatorKey, parts: PartsOf) -> Response:
    """Up or down, once for each reference; at most what is free is taken."""
    command = ports.Adjust(own_id("user", user_id), in_tokens(body.credits), body.reference, body.reason)
    return _moved(await parts.ledger.adjust(by, command))


@router.post(
    "/transfers/{transfer_id}/refund",
    operation_id="operatorRefundTransfer",
    summary="Refund a charge",
    response_model=OperatorMovement,
    responses=_RETURNS,
    openapi_extra=SECURED,
)
async def refund_transfer(transfer_id: TransferId, body: Refund, by: OperatorKey, parts: PartsOf) -> Response:
    """Gives back a charge or a part of it, once for each reference, to the grants that it was drawn from."""
    tokens = None if body.credits is None else in_tokens(body.credits)
    return _moved(
        await parts.ledger.refund(by, ports.GiveBack(transfer_id, tokens, body.reference, body.reason))
    )


@router.post(
    "/transfers/{transfer_id}/reverse",
    operation_id="operatorReverseTransfer",
    summary="Undo a transfer",
    response_model=OperatorMovement,
    responses=_RETURNS,
    openapi_extra=SECURED,
)
async def reverse_transfer(
    transfer_id: TransferId, body: Reversal, by: OperatorKey, parts: PartsOf
) -> Response:
    """Undoes a whole transfer by its opposite, once. Credits that were given leave only while none is spent."""
    return _moved(await parts.ledger.reverse(by, ports.Undo(transfer_id, body.reference, body.reason)))


def _moved(moved: ports.Movement) -> Response:
    return json_response({"ok": True, **views.movement(moved)}, headers=REPLAY if moved.replayed else None)
