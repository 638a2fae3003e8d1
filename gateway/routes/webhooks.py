"""Webhook endpoints of the caller's account, and what was delivered to them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query
from starlette.responses import Response

from gateway.bodies import StrictRoute
from gateway.deps import SECURED, CallerKey, Parts, PartsOf, own_id, page_before
from gateway.listing import Limit, MessageCursor, page
from gateway.openapi import READ, WRITE, problems
from gateway.responses import json_response
from gateway.webhook_ports import Delivery, Endpoint, NewSecret
from gateway.webhook_schemas import (
    AddEndpoint,
    Deliveries,
    DeliveryShown,
    EndpointDeleted,
    Endpoints,
    EndpointSecret,
    RotateEndpoint,
)
from kit.errors import InvalidRequest
from kit.post import check_url

router = APIRouter(prefix="/api/v1", tags=["Alerts and webhooks"], route_class=StrictRoute)


@router.get(
    "/webhook-endpoints",
    operation_id="listWebhookEndpoints",
    summary="List webhook endpoints",
    response_model=Endpoints,
    responses=problems(*READ),
    openapi_extra=SECURED,
)
async def list_endpoints(credential: CallerKey, parts: PartsOf) -> Response:
    """The account's endpoints, newest first. Secrets are not kept and cannot be shown. A limited key may not ask."""
    found = await parts.ledger.endpoints(credential)
    return json_response({"ok": True, "data": [shown(each) for each in found]})


@router.post(
    "/webhook-endpoints",
    operation_id="addWebhookEndpoint",
    summary="Add a webhook endpoint",
    response_model=EndpointSecret,
    responses=problems(*WRITE, "endpoint_exists", "too_many_endpoints"),
    openapi_extra=SECURED,
)
async def add_endpoint(body: AddEndpoint, credential: CallerKey, parts: PartsOf) -> Response:
    """Tells a URL of every event of the account, or of those named, from now on. Only this answer shows the secret.

    Bodies are `{"type", "timestamp", "data"}`, signed as [Standard Webhooks](https://www.standardwebhooks.com) has
    it: verify `webhook-signature` with the secret before you believe one, and take each `webhook-id` once. Answer 2xx
    within 10 seconds; anything else is tried again for three days, and 410 disables the endpoint. Redirects are not
    followed. An account has one endpoint for each URL. A limited key may not add any.
    """
    made = await parts.ledger.add_endpoint(
        credential, own_url(parts, "url", body.url), None if body.events is None else tuple(body.events)
    )
    return _with_secret(made)


@router.post(
    "/webhook-endpoints/{endpoint_id}/rotate",
    operation_id="rotateWebhookEndpoint",
    summary="Give a webhook endpoint a new secret",
    response_model=EndpointSecret,
    responses=problems(*WRITE, "not_found"),
    openapi_extra=SECURED,
)
async def rotate_endpoint(
    endpoint_id: str, body: RotateEndpoint, credential: CallerKey, parts: PartsOf
) -> Response:
    """Makes a new secret, which only this answer shows. Until the overlap ends both sign, in one header.

    A rotation within the overlap ends the oldest secret at once.
    """
    own = own_id("hook", endpoint_id, "webhook endpoint")
    return _with_secret(await parts.ledger.rotate_endpoint(credential, own, body.overlap_seconds))


@router.delete(
    "/webhook-endpoints/{endpoint_id}",
    operation_id="deleteWebhookEndpoint",
    summary="Delete a webhook endpoint",
    response_model=EndpointDeleted,
    responses=problems(*READ, "not_found"),
    openapi_extra=SECURED,
)
async def delete_endpoint(endpoint_id: str, credential: CallerKey, parts: PartsOf) -> Response:
    """Deletes it with its deliveries; what waits is not sent. Without the one that has no URL, the URLs that jobs
    under way named are not told.
    """
    own = own_id("hook", endpoint_id, "webhook endpoint")
    await parts.ledger.drop_endpoint(credential, own)
    return json_response({"ok": True, "id": own, "deleted": True})


@router.get(
    "/webhook-deliveries",
    operation_id="listWebhookDeliveries",
    summary="List webhook deliveries",
    response_model=Deliveries,
    responses=problems(*READ, "invalid_request", "not_found"),
    openapi_extra=SECURED,
)
async def list_deliveries(
    credential: CallerKey,
    parts: PartsOf,
    *,
    job_id: Annotated[str | None, Query(alias="jobId", description="Only those of this job.")] = None,
    limit: Limit = 20,
    cursor: MessageCursor = None,
) -> Response:
    """What was told or is still to be, newest first; those that ended are kept for 30 days."""
    job = None if job_id is None else own_id("job", job_id)
    found = await parts.ledger.deliveries(credential, limit + 1, page_before("msg", cursor), job)
    return json_response({"ok": True, **page(found, limit, shown_delivery)})


@router.post(
    "/webhook-deliveries/{delivery_id}/replay",
    operation_id="replayWebhookDelivery",
    summary="Send a webhook again",
    response_model=DeliveryShown,
    responses=problems(*READ, "not_found", "endpoint_disabled"),
    openapi_extra=SECURED,
)
async def replay_delivery(delivery_id: str, credential: CallerKey, parts: PartsOf) -> Response:
    """Sends it now, delivered before or given up, with all its attempts again: the same body and `webhook-id`, signed
    anew.
    """
    own = own_id("msg", delivery_id, "webhook delivery")
    replayed = await parts.ledger.replay_delivery(credential, own)
    return json_response({"ok": True, **shown_delivery(replayed)})


def own_url(parts: Parts, field: str, url: str | None) -> str | None:
    """Return a URL that could be posted to. Raises: InvalidRequest."""
    if url is not None:
        try:
            check_url(url, private=parts.settings.private_webhooks)
        except ValueError as error:
            raise InvalidRequest(field, str(error)) from error
    return url


def _with_secret(made: NewSecret) -> Response:
    return json_response({"ok": True, **shown(made.endpoint), "secret": made.secret})


def shown(endpoint: Endpoint) -> dict[str, Any]:
    """Return an endpoint as it may be shown at any time."""
    until = endpoint.old_until
    return {
        "id": endpoint.id,
        "url": endpoint.url,
        "events": endpoint.events,
        "createdAt": endpoint.created_at,
        "disabledAt": endpoint.disabled_at,
        "oldSecretUntil": until if until and until > datetime.now(UTC) else None,
    }


def shown_delivery(delivery: Delivery) -> dict[str, Any]:
    """Return a delivery as its owner sees it."""
    return {
        "id": delivery.id,
        "endpointId": delivery.endpoint_id,
        "url": delivery.url,
        "event": delivery.event,
        "jobId": delivery.job_id,
        "status": delivery.status,
        "attempts": delivery.attempts,
        "answered": delivery.answered,
        "problem": delivery.problem,
        "payload": orjson.Fragment(delivery.body),
        "createdAt": delivery.created_at,
        "nextAttemptAt": delivery.retry_at if delivery.status == "waiting" else None,
        "deliveredAt": delivery.delivered_at,
    }
