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
        "models": {"image": {"state": "ready", "reason": None}},
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
    "getSession": {**_OK, **_USER, "via": "key", "csrfToken": None},
    "signOut": {**_OK, "signedOut": True},
    "signOutEverywhere": {**_OK, "signedOut": True, "sessions": 2},
    "exportAccount": {
        **_OK,
        "user": {"id": _USER["userId"], "email": _USER["email"]},
        "keys": [_KEY],
        "sessions": [],
        "purchases": [],
        "statement": ANSWERS["getStatement"]["data"],
        "jobs": [_JOB],
        "files": [_FILE],
    },
    "deleteAccount": {**_OK, "deleted": True},
}
"""By operation id, for whatever answer of it has no example yet."""
