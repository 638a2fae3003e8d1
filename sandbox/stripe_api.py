"""The routes under `/v1`: Stripe's own, as far as one-off payments by hosted Checkout need them.

Every request goes the same way: authenticate, read the parameters, take the lock, honour the faults that a
test ordered, replay or run, remember the answer under its idempotency key.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable
from http import HTTPStatus

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from sandbox import stripe_checkout, stripe_lists, stripe_order, stripe_refunds
from sandbox import stripe_shapes as shapes
from sandbox.stripe_errors import ApiError, unauthenticated
from sandbox.stripe_instance import Twin
from sandbox.stripe_lists import check_expand, expanded, page
from sandbox.stripe_params import Params, names, parse_form
from sandbox.stripe_shapes import API_VERSION, Json
from sandbox.stripe_state import KINDS, Collection, Origin, TwinState, fingerprint

router = APIRouter(prefix="/v1")

# Above any honest request, small enough to hold in memory without a thought.
BODY_MOST_BYTES = 256 * 1024
# Stripe's documented limit.
IDEMPOTENCY_KEY_MAX_LENGTH = 255
_EXPAND = frozenset({"expand"})
_FORM = "application/x-www-form-urlencoded"

Read = Callable[[TwinState, Params], Json]
Write = Callable[[TwinState, Params, Origin], Json]


async def answer_read(request: Request, kind: str, operation: Read) -> Response:
    """Answer a GET with an object of this kind: the same until something changes."""
    twin: Twin = request.app.state.twin
    _authenticate(request, twin.settings.secret_key)
    params = Params(parse_form(request.url.query.encode()))
    check_expand(params, kind)
    async with twin.reading() as state:
        fault = _next_fault(state)
        if fault is not None:
            raise fault[0]
        answer = expanded(state, operation(state, params), params)
    return JSONResponse(answer, headers=_headers(twin.new_request_id()))


async def answer_write(request: Request, kind: str, operation: Write) -> Response:
    """Answer a POST with an object of this kind; under one idempotency key it takes effect once.

    Later requests with the key get the first answer again.
    """
    twin: Twin = request.app.state.twin
    _authenticate(request, twin.settings.secret_key)
    values = parse_form(await _form_body(request))
    key = _idempotency_key(request)
    request_id = twin.new_request_id()
    headers = _headers(request_id) | ({"Idempotency-Key": key} if key else {})
    async with twin.writing() as state:
        fault = _next_fault(state)
        if fault is not None and not fault[1]:
            raise fault[0]
        digest = fingerprint(request.method, request.url.path, values)
        saved = state.saved_answer(key, digest) if key else None
        if saved is None:
            origin = Origin(request_id, key)
            check_expand(Params(values), kind)
            status, answer = _run(state, operation, Params(values), origin)
            if key:
                state.save_answer(key, digest, request_id, status, answer)
        else:
            status, answer = saved["status"], saved["body"]
            headers |= {"Idempotent-Replayed": "true", "Original-Request": saved["request_id"]}
        if fault is not None:
            raise fault[0]
    return JSONResponse(answer, status_code=status, headers=headers)


def _run(state: TwinState, operation: Write, params: Params, origin: Origin) -> tuple[int, Json]:
    try:
        made = operation(state, params, origin)
    except ApiError as refusal:
        if not refusal.executed:
            raise
        return refusal.status, refusal.body()
    return 200, expanded(state, made, params)


def _next_fault(state: TwinState) -> tuple[ApiError, bool] | None:
    """Take one of the failures that a test ordered: the error, and whether it comes after the effect."""
    faults = state.faults
    if faults.next_requests_fail == 0:
        return None
    faults.next_requests_fail -= 1
    kind = "api_error" if faults.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    code = {409: "lock_timeout", 429: "rate_limit"}.get(faults.status)
    return ApiError(faults.status, kind, "A failure that a test ordered.", code=code), faults.after_effect


def _authenticate(request: Request, secret_key: str) -> None:
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    presented = credentials.strip() or None
    if presented is not None and scheme.lower() == "basic":  # curl -u KEY:
        try:
            presented = base64.b64decode(presented, validate=True).decode().partition(":")[0]
        except (binascii.Error, UnicodeDecodeError):
            presented = None
    elif scheme.lower() != "bearer":
        presented = None
    if presented is None or not hmac.compare_digest(presented.encode(), secret_key.encode()):
        raise unauthenticated(presented)


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and len(key) > IDEMPOTENCY_KEY_MAX_LENGTH:
        message = f"Idempotency keys hold at most {IDEMPOTENCY_KEY_MAX_LENGTH} characters."
        raise ApiError(400, "invalid_request_error", message)
    return key or None


async def _form_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_MOST_BYTES:
            raise ApiError(413, "invalid_request_error", f"At most {BODY_MOST_BYTES} bytes.")
    content_type = request.headers.get("content-type", _FORM)
    if body and content_type.partition(";")[0].strip().lower() != _FORM:
        raise ApiError(400, "invalid_request_error", f"Stripe's v1 API takes {_FORM}, not {content_type}.")
    return bytes(body)


def _headers(request_id: str) -> dict[str, str]:
    return {"Request-Id": request_id, "Stripe-Version": API_VERSION}


async def show(request: Request, collection: Collection, object_id: str, param: str) -> Response:
    """Answer a GET with one object of a collection."""

    def operation(state: TwinState, params: Params) -> Json:
        params.only(_EXPAND)
        return state.get(collection, object_id, param, in_path=True)

    return await answer_read(request, KINDS[collection], operation)


# Checkout sessions


@router.post("/checkout/sessions")
async def create_session(request: Request) -> Response:
    """Open a session; its `url` is this twin's hosted page."""
    twin: Twin = request.app.state.twin
    public_url = (twin.settings.public_url or str(request.base_url)).rstrip("/")

    def operation(state: TwinState, params: Params, _origin: Origin) -> Json:
        order = stripe_order.read_order(params, state.now())
        return stripe_checkout.open_session(state, order, public_url)

    return await answer_write(request, "checkout.session", operation)


@router.get("/checkout/sessions")
async def list_sessions(request: Request) -> Response:
    """List sessions, newest first."""

    def operation(state: TwinState, params: Params) -> Json:
        rows = state.newest_first("sessions")
        return page(rows, params, request.url.path, ("customer", "payment_intent", "status"))

    return await answer_read(request, "list of checkout.session", operation)


@router.get("/checkout/sessions/{session_id}")
async def retrieve_session(request: Request, session_id: str) -> Response:
    """Show one session as it stands."""
    return await show(request, "sessions", session_id, "session")


@router.get("/checkout/sessions/{session_id}/line_items")
async def list_line_items(request: Request, session_id: str) -> Response:
    """Show what a session sells."""

    def operation(state: TwinState, params: Params) -> Json:
        state.get("sessions", session_id, "session", in_path=True)
        rows = stripe_lists.line_items_of(state, session_id)
        return page(rows["data"], params, rows["url"])

    return await answer_read(request, "list of item", operation)


@router.post("/checkout/sessions/{session_id}/expire")
async def expire_session(request: Request, session_id: str) -> Response:
    """Close an open session before its time."""

    def operation(state: TwinState, params: Params, origin: Origin) -> Json:
        params.only(_EXPAND)
        return stripe_checkout.expire(state, session_id, origin)

    return await answer_write(request, "checkout.session", operation)


# Payments, refunds, customers


@router.get("/payment_intents")
async def list_payment_intents(request: Request) -> Response:
    """List payments, newest first."""

    def operation(state: TwinState, params: Params) -> Json:
        return page(state.newest_first("payment_intents"), params, request.url.path, ("customer",))

    return await answer_read(request, "list of payment_intent", operation)


@router.get("/payment_intents/{intent_id}")
async def retrieve_payment_intent(request: Request, intent_id: str) -> Response:
    """Show one payment."""
    return await show(request, "payment_intents", intent_id, "intent")


@router.get("/charges/{charge_id}")
async def retrieve_charge(request: Request, charge_id: str) -> Response:
    """Show one attempt to move money."""
    return await show(request, "charges", charge_id, "charge")


@router.post("/refunds")
async def create_refund(request: Request) -> Response:
    """Give money back, at most what is left."""

    def operation(state: TwinState, params: Params, origin: Origin) -> Json:
        return stripe_refunds.refund(state, stripe_refunds.read_refund(params), origin)

    return await answer_write(request, "refund", operation)


@router.get("/refunds")
async def list_refunds(request: Request) -> Response:
    """List refunds, newest first."""

    def operation(state: TwinState, params: Params) -> Json:
        return page(state.newest_first("refunds"), params, request.url.path, ("charge", "payment_intent"))

    return await answer_read(request, "list of refund", operation)


@router.get("/refunds/{refund_id}")
async def retrieve_refund(request: Request, refund_id: str) -> Response:
    """Show one refund."""
    return await show(request, "refunds", refund_id, "refund")


@router.post("/customers")
async def create_customer(request: Request) -> Response:
    """Make a customer that a session can be opened for."""

    def operation(state: TwinState, params: Params, _origin: Origin) -> Json:
        params.only(frozenset({"email", "expand", "metadata", "name"}))
        email, name = params.email("email"), params.text("name", max_length=256)
        metadata = params.metadata()
        customer = shapes.customer(state.new_id("cus_", 14), email, name, metadata, int(state.now()))
        return state.add("customers", customer)

    return await answer_write(request, "customer", operation)


@router.get("/customers/{customer_id}")
async def retrieve_customer(request: Request, customer_id: str) -> Response:
    """Show one customer."""
    return await show(request, "customers", customer_id, "customer")


# Disputes, warnings, the portal


@router.get("/disputes")
async def list_disputes(request: Request) -> Response:
    """List disputes, newest first."""

    def operation(state: TwinState, params: Params) -> Json:
        return page(state.newest_first("disputes"), params, request.url.path, ("charge", "payment_intent"))

    return await answer_read(request, "list of dispute", operation)


@router.get("/disputes/{dispute_id}")
async def retrieve_dispute(request: Request, dispute_id: str) -> Response:
    """Show one dispute."""
    return await show(request, "disputes", dispute_id, "dispute")


@router.get("/radar/early_fraud_warnings")
async def list_warnings(request: Request) -> Response:
    """List early fraud warnings, newest first."""

    def operation(state: TwinState, params: Params) -> Json:
        return page(state.newest_first("warnings"), params, request.url.path, ("charge", "payment_intent"))

    return await answer_read(request, "list of radar.early_fraud_warning", operation)


@router.get("/radar/early_fraud_warnings/{warning_id}")
async def retrieve_warning(request: Request, warning_id: str) -> Response:
    """Show one early fraud warning."""
    return await show(request, "warnings", warning_id, "early_fraud_warning")


@router.post("/billing_portal/sessions")
async def create_portal_session(request: Request) -> Response:
    """Open a portal session; its `url` is this twin's page."""
    twin: Twin = request.app.state.twin
    public_url = (twin.settings.public_url or str(request.base_url)).rstrip("/")

    def operation(state: TwinState, params: Params, _origin: Origin) -> Json:
        params.only(
            frozenset({"customer", "expand", "locale", "return_url"}), names("configuration flow_data")
        )
        customer = state.get("customers", params.required_text("customer"), "customer")
        session_id = state.new_id("bps_1", 23)
        opened = {
            "id": session_id,
            "object": "billing_portal.session",
            "configuration": "bpc_sandbox",
            "created": int(state.now()),
            "customer": customer["id"],
            "flow": None,
            "livemode": False,
            "locale": params.text("locale"),
            "on_behalf_of": None,
            "return_url": params.url("return_url"),
            "url": f"{public_url}/p/session/{session_id}",
        }
        return state.add("portal_sessions", opened)

    return await answer_write(request, "billing_portal.session", operation)


# Events


@router.get("/events")
async def list_events(request: Request) -> Response:
    """List events, newest first, of one type or several."""

    def operation(state: TwinState, params: Params) -> Json:
        types = params.words("types")
        rows = [event for event in state.newest_first("events") if not types or event["type"] in types]
        return page(rows, params.without("types"), request.url.path, ("type",))

    return await answer_read(request, "list of event", operation)


@router.get("/events/{event_id}")
async def retrieve_event(request: Request, event_id: str) -> Response:
    """Show one event, as it was."""
    return await show(request, "events", event_id, "id")
