"""Requests and answers as the OpenAPI document shows them. Tests send the one and check the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gateway.openai_documented import OPENAI_ANSWERS, OPENAI_REQUESTS

_JOB_ID: Final = "job_01k8z0c6m5n7q2r4t6v8x0y2z4"
_JOB_URL: Final = f"https://api.example.com/api/v1/media/jobs/{_JOB_ID}"
_FILE_ID: Final = "file_01k8z0d1b3c5d7f9g1h3j5k7m9"
_USER_ID: Final = "user_01k8z0a9b1c3d5f7g9h1j3k5m7"
_MADE: Final = "2026-11-22T12:00:00Z"
_KEY: Final = {
    "apiKey": "amai_live_...",
    "keyPrefix": "abcde0F3kq",
    "id": "key_01k8z0b2c4d6f8g0h2j4k6m8n0",
    "label": "Agent Worker A",
    "mode": "live",
    "createdAt": _MADE,
    "expiresAt": None,
    "parentId": None,
    "scopes": None,
    "allowedIps": None,
    "spendLimit": None,
}
_COST: Final = {"quoted": 1.0, "held": 1.0, "charged": None}
_COST_TOKENS: Final = {"quotedTokens": 100, "heldTokens": 100, "chargedTokens": None}
_NOTHING: Final = {"credits": 0.0, "tokens": 0}
_FIVE: Final = {"credits": 0.05, "tokens": 5}
_USED: Final = {
    "charged": {"credits": 3.0, "tokens": 300},
    "refunded": {"credits": 1.0, "tokens": 100},
    "net": {"credits": 2.0, "tokens": 200},
}
_CHARGE: Final = {
    "number": 2,
    "transferId": 2,
    "kind": "spend",
    "tool": "chat",
    "reference": "req_2026-07-03_abc123",
    "reason": None,
    "keyId": "key_01k8z0b2c4d6f8g0h2j4k6m8n0",
    "units": 1,
    "priceVersion": 1,
    "amount": {"credits": -0.05, "tokens": -5},
    "balanceAfter": {"credits": 99.95, "tokens": 9995},
    "happenedAt": _MADE,
    "writtenAt": _MADE,
    "reversesId": None,
    "holdId": None,
}
_FOX: Final = {
    "task": "image.generate",
    "input": {"prompt": "cinematic fox astronaut", "aspectRatio": "1:1"},
    "creditsToConsume": 1,
}

_PAYMENT: Final = {
    "payer": "0x857b06519e91e3a54538791bdbb0e22373e36b66",
    "network": "eip155:84532",
    "transaction": "0x1234567890abcdef1234567890abcdef1234567890abcdef1234567890abcdef",
    "amount": "50000000",
    "credits": 600.0,
    "tokens": 60_000,
}
OFFER: Final = {
    "x402Version": 2,
    "error": "This call costs money: send a key, or pay with x402 what `details.accepts` says.",
    "resource": {
        "url": "https://api.example.com/api/v1/media/jobs",
        "description": "image.generate",
        "mimeType": "application/json",
    },
    "accepts": [
        {
            "scheme": "exact",
            "network": "eip155:84532",
            "amount": "100000",
            "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e",
            "payTo": "0x209693Bc6afc0C5328bA36FaF03C514EF312287C",
            "maxTimeoutSeconds": 300,
            "extra": {
                "name": "USDC",
                "version": "2",
                "paymentFlow": "upfront",
                "quote": "1795608300.dGhl...",
            },
        }
    ],
}
"""What a 402 asks a stranger for."""

REQUESTS: Final[Mapping[str, Mapping[str, Any]]] = {
    **OPENAI_REQUESTS,
    "startStripeCheckout": {"A package": {"email": "dev@company.com", "packageCode": "builder_600"}},
    "buyWithX402": {"A package": {"packageCode": "builder_600", "keyLabel": "Primary key"}},
    "settleCheckout": {"Back from the payment page": {"sessionId": "cs_test_..."}},
    "claimStripeKey": {"The first key": {"sessionId": "cs_test_...", "keyLabel": "Primary key"}},
    "startCryptoCheckout": {"A package": {"email": "dev@company.com", "packageCode": "builder_600"}},
    "claimCryptoKey": {"The first key": {"sessionId": "68f7a946db0529ea9b6d3a12", "keyLabel": "Primary key"}},
    "createKey": {
        "A key for an agent": {"label": "Agent Worker A"},
        "A test key": {"label": "Continuous integration", "mode": "test"},
        "A key that ends": {"label": "Build Agent", "expiresAt": "2100-01-31T00:00:00Z"},
        "A key with limits": {
            "label": "Picture Agent",
            "spendLimit": {"credits": 50, "per": "day"},
            "scopes": ["tasks:image.generate", "read"],
            "allowedIps": ["203.0.113.7", "2001:db8::/32"],
        },
    },
    "startSignIn": {"By e-mail": {"email": "dev@company.com"}},
    "verifySignIn": {"The code of the mail": {"email": "dev@company.com", "code": "1234 5678"}},
    "deleteAccount": {
        "An empty account": {"email": "dev@company.com", "confirm": True},
        "An account with a balance": {"email": "dev@company.com", "confirm": True, "forfeit": True},
    },
    "redeemVoucher": {"As it was typed": {"code": "k7qx 2m4p 9trb wz3d"}},
    "setAlerts": {
        "Below 50 credits": {"lowBalance": {"credits": 50, "webhookUrl": "https://example.com/hooks"}},
        "No alert": {"lowBalance": None},
    },
    "setAutoTopup": {
        "Below 50 credits, twice a month at most": {
            "threshold": 50,
            "packageCode": "builder_600",
            "monthMostMinor": 10000,
        }
    },
    "addWebhookEndpoint": {
        "Every event": {"url": "https://example.com/hooks"},
        "What went wrong": {"url": "https://example.com/failures", "events": ["job.failed", "job.expired"]},
        "The signer of what jobs name": {},
    },
    "rotateWebhookEndpoint": {"A day to change over": {"overlapSeconds": 86400}},
    "rotateKey": {"A day to change over": {"keyPrefix": "abcde", "overlapSeconds": 86400}},
    "revokeKey": {"By its first characters": {"keyPrefix": "abcde"}},
    "checkTool": {
        "A chat turn": {"tool": "chat", "units": 1},
        "Two and a half minutes, set aside": {"tool": "dub", "units": 2.5, "hold": True},
    },
    "spendTool": {
        "A chat turn": {"tool": "chat", "units": 1, "reference": "req_2026-07-03_abc123"},
        "Out of a hold": {
            "tool": "dub",
            "units": 2.2,
            "reference": "dub-0042",
            "hold_id": "hold_01k8z0e2k4m6n8p0q2r4s6t8v0",
        },
    },
    "applyReferral": {"As it was dictated": {"code": "k7q2-9xwm"}},
    "consumeCredits": {
        "A charge, safe to retry": {"credits": 1.5, "reason": "rendering", "idempotencyKey": "render-001"},
    },
    "submitJob": {
        "A picture": _FOX,
        "Safe to retry, without a header": {**_FOX, "idempotencyKey": "job-001"},
        "Told of its end": {
            **_FOX,
            "webhookUrl": "https://example.com/hooks",
            "webhookEvents": ["job.succeeded", "job.failed"],
        },
        "A film in another language": {
            "task": "video.dub",
            "input": {
                "videoUrl": "https://cdn.example.com/input/talk.mp4",
                "targetLanguage": "French",
                "maxMinutes": 3,
            },
        },
        "Every setting": {
            "task": "image.generate",
            "input": {
                "prompt": "a lighthouse at dusk, oil on canvas",
                "negativePrompt": "people",
                "aspectRatio": "16:9",
                "seed": 7,
                "steps": 30,
                "guidance": 4.5,
                "outputFormat": "webp",
                "outputQuality": 80,
            },
        },
    },
}
"""By operation id: each request with its title. The published documents' own requests are among them."""

_STARTED: Final = {
    "ok": True,
    "packageCode": "builder_600",
    "credits": 600.0,
    "tokens": 60000,
    "priceMinor": 5000,
    "currency": "usd",
    "email": "dev@company.com",
}
_CLAIMED: Final = {
    "ok": True,
    **_KEY,
    "label": "Primary key",
    "email": "dev@company.com",
    "credits": 600.0,
    "tokens": 60000,
    "balance": 600.0,
    "balanceTokens": 60000,
}

ANSWERS: Final[Mapping[str, Any]] = {
    **OPENAI_ANSWERS,
    "buyWithX402": {
        "ok": True,
        **_KEY,
        "label": "Primary key",
        "packageCode": "builder_600",
        "payment": _PAYMENT,
    },
    "startStripeCheckout": _STARTED
    | {"checkoutUrl": "https://checkout.stripe.com/c/pay/cs_test_...", "sessionId": "cs_test_..."},
    "startCryptoCheckout": _STARTED
    | {
        "checkoutUrl": "https://payments.coinbase.com/payment-links/pl_01h8441j23abcd1234567890ef",
        "sessionId": "68f7a946db0529ea9b6d3a12",
    },
    "settleCheckout": {
        "ok": True,
        "paid": True,
        "key": "waits",
        "packageCode": "builder_600",
        "credits": 600.0,
        "tokens": 60000,
    },
    "claimStripeKey": _CLAIMED,
    "claimCryptoKey": _CLAIMED,
    "openBillingPortal": {"ok": True, "portalUrl": "https://billing.stripe.com/p/session/..."},
    "createKey": {"ok": True, **_KEY},
    "startSignIn": {"ok": True, "email": "dev@company.com", "digits": 8, "expiresInS": 600},
    "verifySignIn": {
        "ok": True,
        "userId": _USER_ID,
        "email": "dev@company.com",
        "csrfToken": "...",
        "expiresAt": "2026-12-22T12:00:00Z",
        "opened": False,
    },
    "rotateKey": {"ok": True, **_KEY},
    "refillTestCredits": {
        "ok": True,
        "granted": 400.0,
        "grantedTokens": 40000,
        "balance": 1000.0,
        "balanceTokens": 100000,
    },
    "getBalance": {"ok": True, "credits": 599.0, "tokens": 59900, "held": {"credits": 1.0, "tokens": 100}},
    "checkTool": {"ok": True, "allowed": True, "cost_tokens": 5, "balance_after": 9995},
    "spendTool": {"ok": True, "charged": 5, "balance_after": 9990},
    "consumeCredits": {"ok": True, "consumed": 1.5, "tokens": 150, "balance": 598.5, "balanceTokens": 59850},
    "submitJob": {
        "ok": True,
        "jobId": _JOB_ID,
        "id": _JOB_ID,
        "task": "image.generate",
        "status": "queued",
        "cost": _COST | _COST_TOKENS,
        "balanceAfter": 599.0,
        "balanceAfterTokens": 59900,
        "createdAt": _MADE,
        "urls": {"get": _JOB_URL, "cancel": f"{_JOB_URL}/cancel", "events": f"{_JOB_URL}/events"},
    },
    "getUsage": {
        "ok": True,
        "since": "2026-11-01",
        "until": "2026-11-30",
        "groupBy": ["day", "tool", "task", "key"],
        "data": [
            {
                "day": "2026-11-22",
                "tool": "image",
                "task": "image.generate",
                "keyId": "key_01k8z0b2c4d6f8g0h2j4k6m8n0",
                "keyPrefix": "abcde0F3kq",
                "charges": 3,
                "units": 3,
                **_USED,
            }
        ],
        "total": {"charges": 3, **_USED},
    },
    "getStatement": {"ok": True, "data": [_CHARGE], "nextCursor": "2"},
    "getCost": {
        "ok": True,
        "reference": "req_2026-07-03_abc123",
        "jobId": None,
        "charged": _FIVE,
        "refunded": _NOTHING,
        "net": _FIVE,
        "held": _NOTHING,
        "lines": [_CHARGE],
        "turn": None,
    },
    "getReferral": {
        "ok": True,
        "code": "K7Q29XWM",
        "earned": {"credits": 20.0, "tokens": 2000},
        "pending": {"credits": 10.0, "tokens": 1000},
        "reward": {"credits": 10.0, "tokens": 1000},
        "referrals": {"applied": 3, "ordered": 1, "rewarded": 2},
        "applied": None,
    },
    "applyReferral": {"ok": True, "applied": {"code": "K7Q29XWM", "at": _MADE}},
    "getReceipt": {
        "ok": True,
        "issuer": "https://api.example.com",
        "jobId": _JOB_ID,
        "task": "image.generate",
        "tool": "image",
        "status": "succeeded",
        "units": "1",
        "priceVersion": 1,
        "quotedTokens": 100,
        "quotedCredits": "1.00",
        "chargedTokens": 100,
        "chargedCredits": "1.00",
        "transferId": 2,
        "outputs": [
            {
                "id": _FILE_ID,
                "contentType": "image/png",
                "sizeBytes": 1482093,
                "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            }
        ],
        "createdAt": _MADE,
        "startedAt": _MADE,
        "finishedAt": "2026-11-22T12:00:09Z",
        "jws": "eyJhbGciOiJFZERTQSIs...",
    },
    "getJwks": {
        "keys": [
            {
                "kty": "OKP",
                "crv": "Ed25519",
                "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
                "kid": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
                "use": "sig",
                "alg": "EdDSA",
            }
        ]
    },
    "redeemVoucher": {
        "ok": True,
        "credits": 5.0,
        "tokens": 500,
        "balance": 604.0,
        "balanceTokens": 60400,
        "creditsExpireAt": "2026-12-22T12:00:00Z",
        "redeemedAt": _MADE,
    },
    "getTrialBalance": {
        "ok": True,
        "rows": [
            {
                "mode": "live",
                "kind": "clearing",
                "accounts": 1,
                "entries": 1,
                "credits": -600.0,
                "tokens": -60000,
            },
            {"mode": "live", "kind": "revenue", "accounts": 1, "entries": 1, "credits": 1.0, "tokens": 100},
            {"mode": "live", "kind": "user", "accounts": 1, "entries": 2, "credits": 599.0, "tokens": 59900},
        ],
        "totalTokens": 0,
        "balanced": True,
        "lastBlock": {
            "number": 1,
            "upToTransfer": 2,
            "hash": "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
            "sealedAt": "2026-11-22T12:00:10Z",
        },
    },
    "getJob": {
        "ok": True,
        "jobId": _JOB_ID,
        "id": _JOB_ID,
        "task": "image.generate",
        "status": "succeeded",
        "input": {"prompt": "cinematic fox astronaut", "aspectRatio": "1:1", "outputFormat": "png"},
        "cost": {
            "quoted": 1.0,
            "held": 0.0,
            "charged": 1.0,
            "quotedTokens": 100,
            "heldTokens": 0,
            "chargedTokens": 100,
        },
        "progress": 1.0,
        "stage": None,
        "stages": [],
        "queuePosition": None,
        "startsInSeconds": None,
        "cancelRequested": False,
        "output": [
            {
                "id": _FILE_ID,
                "url": f"https://api.example.com/api/v1/files/{_FILE_ID}/content?expires=1795351200&signature=...",
                "contentType": "image/png",
                "sizeBytes": 1482093,
                "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                "width": 1328,
                "height": 1328,
                "seed": 7,
                "expiresAt": "2026-11-22T13:00:00Z",
                "keptUntil": "2026-12-22T12:00:09Z",
            }
        ],
        "error": None,
        "metrics": {"queueMs": 12, "runMs": 9120, "gpuSeconds": 9.1},
        "attempts": 1,
        "createdAt": _MADE,
        "startedAt": _MADE,
        "finishedAt": "2026-11-22T12:00:09Z",
        "urls": {"get": _JOB_URL, "cancel": f"{_JOB_URL}/cancel", "events": f"{_JOB_URL}/events"},
    },
}
"""By operation id: an answer to each of the operations that a newcomer meets first."""
