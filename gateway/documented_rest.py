"""Answers of the operations that a newcomer meets later, as the OpenAPI document shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gateway.documented import ANSWERS

_OK: Final = {"ok": True}
_JOB: Final = {name: value for name, value in ANSWERS["getJob"].items() if name != "ok"}
_KEY: Final = {
    **{name: value for name, value in ANSWERS["createKey"].items() if name not in {"ok", "apiKey"}},
    "revokedAt": None,
    "lastUsedAt": "2026-11-22T12:34:00Z",
}
_USER: Final = {"userId": ANSWERS["verifySignIn"]["userId"], "email": "dev@company.com"}
_OUTPUT: Final = _JOB["output"][0]
_FILE: Final = {
    "id": _OUTPUT["id"],
    "name": "0.png",
    "contentType": _OUTPUT["contentType"],
    "sizeBytes": _OUTPUT["sizeBytes"],
    "sha256": _OUTPUT["sha256"],
    "jobId": _JOB["jobId"],
    "createdAt": _JOB["finishedAt"],
    "url": _OUTPUT["url"],
    "expiresAt": _OUTPUT["expiresAt"],
}
_LOW_BALANCE: Final = {
    "threshold": {"credits": 50.0, "tokens": 5000},
    "webhookUrl": "https://example.com/hooks",
    "armed": True,
    "alertedAt": None,
}
_AUTO_TOPUP: Final = {
    **_OK,
    "autoTopup": {
        "threshold": {"credits": 50.0, "tokens": 5000},
        "packageCode": "builder_600",
        "credits": 600.0,
        "tokens": 60000,
        "priceMinor": 5000,
        "currency": "usd",
        "monthMostMinor": 10000,
        "spentMinor": 5000,
        "state": "on",
        "reason": None,
        "restUntil": None,
        "setAt": "2026-11-22T12:00:00Z",
    },
}
_PURCHASE: Final = {
    "id": "pur_01k8z0b2c4d6f8g0h2j4k6m8n0",
    "provider": "stripe",
    "packageCode": "builder_600",
    "credits": 600.0,
    "tokens": 60000,
    "priceMinor": 5000,
    "currency": "usd",
    "email": "dev@company.com",
    "createdAt": "2026-11-22T12:00:00Z",
    "paid": True,
    "paidMinor": 5000,
    "returnedMinor": 0,
}
_ENDPOINT: Final = {
    "id": "hook_01k8z0g1m3n5p7q9r1s3t5v7w9",
    "url": "https://example.com/hooks",
    "events": None,
    "createdAt": _JOB["createdAt"],
    "disabledAt": None,
    "oldSecretUntil": None,
}
_DELIVERY: Final = {
    "id": "msg_01k8z0h3n5p7r9t1v3x5z7b9d1",
    "endpointId": _ENDPOINT["id"],
    "url": _ENDPOINT["url"],
    "event": "job.succeeded",
    "jobId": _JOB["jobId"],
    "status": "waiting",
    "attempts": 1,
    "answered": 503,
    "problem": "answered 503: try later",
    "payload": {
        "type": "job.succeeded",
        "timestamp": _JOB["finishedAt"],
        "data": {
            **{
                name: _JOB[name]
                for name in ("jobId", "task", "status", "error", "createdAt", "startedAt", "finishedAt")
            },
            "quoted": {"credits": 1.0, "tokens": 100},
            "charged": {"credits": 1.0, "tokens": 100},
            "output": [{name: _OUTPUT[name] for name in _OUTPUT if name not in {"url", "expiresAt"}}],
        },
    },
    "createdAt": _JOB["finishedAt"],
    "nextAttemptAt": "2026-11-22T12:00:15Z",
    "deliveredAt": None,
}

REST: Final[Mapping[str, Any]] = {
    "listPackages": {
        **_OK,
        "packages": [
            {
                "code": "builder_600",
                "name": "Builder",
                "credits": 600.0,
                "tokens": 60000,
                "priceMinor": 5000,
                "currency": "usd",
            }
        ],
        "priceVersion": 1,
        "since": "2026-11-22",
    },
    "getPricing": {
        **_OK,
        "price_version": 1,
        "since": "2026-11-22",
        "tools": [
            {
                "tool": "chat",
                "unit": "turn",
                "tokens_per_unit": 5,
                "tokens": 5,
                "per_units": 1,
                "model": "Qwen3-8B",
                "licence": "Apache-2.0",
                "since": "2026-11-22",
                "price_version": 1,
            }
        ],
    },
    "getHealth": {
        **_OK,
        "status": "ready",
        "version": "0.1.0",
        "instance": "b1946ac92492d234",
        "profile": "gpu",
        "sandbox": False,
        "ledger": {"state": "ready", "reason": None},
        "models": {
            "image": {"state": "ready", "reason": None, "asleep": False, "startsInSeconds": None},
            "video": {"state": "starting", "reason": None, "asleep": True, "startsInSeconds": 90},
        },
        "payments": {"state": "ready", "mode": "live"},
    },
    "getBalanceShort": ANSWERS["getBalance"],
    "getReceiptShort": ANSWERS["getReceipt"],
    "submitJob": ANSWERS["getJob"],
    "listJobs": {**_OK, "data": [_JOB], "nextCursor": None},
    "cancelJob": {
        **_OK,
        **_JOB,
        "status": "canceled",
        "cost": {**_JOB["cost"], "charged": 0.0, "chargedTokens": 0},
        "progress": 0.0,
        "stage": None,
        "stages": [],
        "cancelRequested": True,
        "output": [],
        "metrics": {},
        "attempts": 0,
        "startedAt": None,
    },
    "listKeys": {**_OK, "keys": [_KEY]},
    "revokeKey": {
        **_OK,
        "keyPrefix": _KEY["keyPrefix"],
        "revoked": True,
        "key": {**_KEY, "revokedAt": "2026-11-22T13:00:00Z"},
    },
    "uploadFile": {**_OK, **_FILE, "jobId": None},
    "getFile": {**_OK, **_FILE},
    "listFiles": {**_OK, "data": [_FILE], "nextCursor": None},
    "deleteFile": {**_OK, "id": _FILE["id"], "deleted": True},
    "receiveStripeWebhook": {**_OK, "received": True, "duplicate": False},
    "receiveCryptoWebhook": {**_OK, "received": True, "duplicate": False},
    "getSession": {**_OK, **_USER, "via": "key", "csrfToken": None},
    "signOut": {**_OK, "signedOut": True},
    "signOutEverywhere": {**_OK, "signedOut": True, "sessions": 2},
    "getAlerts": {**_OK, "lowBalance": _LOW_BALANCE},
    "setAlerts": {**_OK, "lowBalance": _LOW_BALANCE},
    "getAutoTopup": _AUTO_TOPUP,
    "setAutoTopup": _AUTO_TOPUP,
    "deleteAutoTopup": {**_OK, "autoTopup": None},
    "saveCard": {**_OK, "cardUrl": "https://checkout.stripe.com/c/pay/cs_test_..."},
    "listPurchases": {**_OK, "data": [_PURCHASE], "nextCursor": None},
    "addWebhookEndpoint": {**_OK, **_ENDPOINT, "secret": "whsec_..."},
    "listWebhookEndpoints": {**_OK, "data": [_ENDPOINT]},
    "rotateWebhookEndpoint": {**_OK, **_ENDPOINT, "secret": "whsec_..."},
    "deleteWebhookEndpoint": {**_OK, "id": _ENDPOINT["id"], "deleted": True},
    "listWebhookDeliveries": {**_OK, "data": [_DELIVERY], "nextCursor": None},
    "replayWebhookDelivery": {
        **_OK,
        **_DELIVERY,
        "attempts": 0,
        "answered": None,
        "problem": None,
        "nextAttemptAt": _JOB["finishedAt"],
    },
    "exportAccount": {
        **_OK,
        "lowBalance": _LOW_BALANCE,
        "autoTopup": _AUTO_TOPUP["autoTopup"],
        "webhookEndpoints": [_ENDPOINT],
        "webhookDeliveries": [_DELIVERY],
        "user": {"id": _USER["userId"], "email": _USER["email"]},
        "keys": [_KEY],
        "sessions": [],
        "purchases": [_PURCHASE],
        "statement": ANSWERS["getStatement"]["data"],
        "jobs": [_JOB],
        "files": [_FILE],
    },
    "deleteAccount": {**_OK, "deleted": True},
}
"""By operation id, for whatever answer of it has no example yet."""
