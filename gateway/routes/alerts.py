"""What the caller's account is told of by mail and webhook."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from gateway.bodies import StrictRoute
from gateway.catalog import TOKENS_PER_CREDIT
from gateway.deps import SECURED, CallerKey, PartsOf
from gateway.openapi import READ, WRITE, problems
from gateway.responses import amount, json_response
from gateway.routes.webhooks import own_url
from gateway.webhook_ports import LowBalance
from gateway.webhook_schemas import Alerts, SetAlerts

router = APIRouter(prefix="/api/v1", tags=["Alerts and webhooks"], route_class=StrictRoute)


@router.get(
    "/alerts",
    operation_id="getAlerts",
    summary="Get the alerts",
    response_model=Alerts,
    responses=problems(*READ),
    openapi_extra=SECURED,
)
async def get_alerts(credential: CallerKey, parts: PartsOf) -> Response:
    """What the account is told of. A limited key may not ask."""
    return json_response({"ok": True, "lowBalance": shown(await parts.ledger.low_balance(credential))})


@router.put(
    "/alerts",
    operation_id="setAlerts",
    summary="Set the alerts",
    response_model=Alerts,
    responses=problems(*WRITE),
    openapi_extra=SECURED,
)
async def set_alerts(body: SetAlerts, credential: CallerKey, parts: PartsOf) -> Response:
    """Tells once, by mail and by webhook (`balance.low`), when what is free to spend falls below the threshold.

    It is told again only after a top-up has lifted the balance to the threshold or above. The same threshold again
    changes nothing of that. A limited key may not set it.
    """
    wish = body.low_balance
    tokens = None if wish is None else int(wish.credits * TOKENS_PER_CREDIT)
    url = None if wish is None else own_url(parts, "lowBalance.webhookUrl", wish.webhook_url)
    alert = await parts.ledger.set_low_balance(credential, tokens, url)
    return json_response({"ok": True, "lowBalance": shown(alert)})


def shown(alert: LowBalance | None) -> dict[str, Any] | None:
    """Return the alert of a low balance as its owner sees it."""
    if alert is None:
        return None
    return {
        "threshold": amount(alert.threshold_tokens),
        "webhookUrl": alert.webhook_url,
        "armed": alert.armed,
        "alertedAt": alert.alerted_at,
    }
