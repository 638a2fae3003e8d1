"""The OpenAPI 3.1 document: what FastAPI reads from the routes, and what it cannot know.

Examples of refusals are made from the errors themselves, so that the document cannot promise another text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway.answers import Problem
from gateway.catalog import Catalog
from gateway.documented import ANSWERS, OFFER, REQUESTS
from gateway.documented_rest import REST
from gateway.errors import (
    AccountInUse,
    BalanceLeft,
    CostExceedsLimit,
    EndpointDisabled,
    EndpointExists,
    IdempotencyKeyReused,
    JobNotFinished,
    RangeNotSatisfiable,
    RateLimited,
    TooManyEndpoints,
    TooManyFiles,
    WrongCode,
)
from gateway.limits import WINDOW_S, Gate
from gateway.openai_answers import OpenAIProblem
from gateway.openai_errors import openai_body, openai_code, speaks_openai
from gateway.problems import problem_body
from gateway.task_schemas import INPUTS
from kit.errors import (
    AppError,
    AuthRequired,
    Forbidden,
    Internal,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    Unavailable,
    UnsupportedMediaType,
)
from ledger.errors import AccountFrozen, AmbiguousPrefix, HoldResolved, InsufficientCredits, KeyCapReached
from payments.errors import (
    AccountExists,
    AlreadyClaimed,
    CardNeeded,
    ClaimExpired,
    PaymentFailed,
    PaymentIncomplete,
    PaymentMismatch,
    PaymentPending,
    PaymentRequired,
    PaymentReused,
    PaymentsUnavailable,
    SettlementPending,
    SettlementUnclear,
)
from payments.x402 import ASK
from payments.x402_wire import SIGNATURE_HEADER, encode

READ: Final = ("auth_required", "forbidden", "unavailable")
"""What any route with a key may refuse with."""
WRITE: Final = (*READ, "invalid_request", "payload_too_large", "unsupported_media_type")
"""And what any of them with a body may."""

_SAMPLES: Final[dict[str, AppError]] = {
    sample.code: sample
    for sample in (
        InvalidRequest("prompt", "is required"),
        AuthRequired(),
        InsufficientCredits(100, 40),
        AccountFrozen(400),
        KeyCapReached(100, 40, "day"),
        Forbidden("This account is suspended; write to support."),
        NotFound("job"),
        IdempotencyKeyReused("job-001"),
        CostExceedsLimit(100, 50),
        JobNotFinished("running"),
        HoldResolved("expired"),
        AmbiguousPrefix(["abcde0F3kq", "abcdeZ81mm"]),
        TooManyFiles(1000),
        RangeNotSatisfiable(5120),
        EndpointExists("https://example.com/hooks"),
        TooManyEndpoints(20),
        EndpointDisabled(),
        WrongCode(),
        BalanceLeft(5900),
        AccountInUse(100),
        PaymentPending(),
        PaymentIncomplete("pur_01k8z0c6m5n7q2r4t6v8x0y2z4", 4_000, 5_000, "usd"),
        PaymentFailed(),
        AlreadyClaimed(),
        ClaimExpired(30),
        AccountExists(),
        CardNeeded(),
        PaymentRequired(ASK, encode(OFFER)),
        PaymentReused("payment"),
        SettlementPending("x402_01k8z0c6m5n7q2r4t6v8x0y2z4"),
        SettlementUnclear("x402_01k8z0c6m5n7q2r4t6v8x0y2z4"),
        PaymentMismatch("pur_01k8z0c6m5n7q2r4t6v8x0y2z4", "amount"),
        PayloadTooLarge(1 << 20),
        UnsupportedMediaType("application/json"),
        Internal(),
        Unavailable("The ledger", 2),
        PaymentsUnavailable("No payment provider is configured on this server."),
    )
}

_MEANINGS: Final = {
    400: "The request cannot be understood; `details` names the fields.",
    401: "No valid API key or session.",
    402: "Not enough credits, or no account: nothing was held or charged. The same idempotency key works after a"
    " top-up; `payment_required` offers to pay for this very call (also in the header `PAYMENT-REQUIRED`).",
    403: "Not allowed.",
    404: "Nothing by that name belongs to you.",
    409: "In conflict with what is; `error` says how.",
    413: "The body is too large.",
    415: "The body is of another type.",
    416: "The file has no such bytes; `Content-Range` says how many it has.",
    429: "Too many requests; nothing was done. Try again after `Retry-After` seconds.",
    500: "Our fault. What was done is whole or not at all: repeat a write under its idempotency key.",
    503: "A part is away for now; nothing was charged. Try again after `Retry-After` seconds.",
    504: "The work goes on; this answer waited long enough.",
}
_RETRY_AFTER: Final = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
_OFFERED: Final = {
    "PAYMENT-REQUIRED": {
        "description": "With `payment_required`: the x402 offer, as base64 of JSON; the same stands in `details`.",
        "schema": {"type": "string"},
    }
}
_LIMIT_FIELDS: Final = {
    "RateLimit-Policy": {
        "description": "The limit: `q` requests in `w` seconds, counted together under the name.",
        "schema": {"type": "string"},
        "example": '"key";q=60000;w=60',
    },
    "RateLimit": {
        "description": "What is left of it: `r` requests; the window ends in `t` seconds.",
        "schema": {"type": "string"},
        "example": '"key";r=59999;t=60',
    },
}
_LIMIT_REFERENCES: Final = {name: {"$ref": f"#/components/headers/{name}"} for name in _LIMIT_FIELDS}

REPLAYED: Final[dict[str, Any]] = {
    "Idempotent-Replayed": {
        "description": "`true` when this is the first answer again.",
        "schema": {"type": "string", "enum": ["true"]},
    }
}
LOCATION: Final[dict[str, Any]] = {
    "Location": {"description": "The job's own address.", "schema": {"type": "string", "format": "uri"}}
}
PAID: Final[dict[str, Any]] = {
    "PAYMENT-RESPONSE": {
        "description": "Of a call that was paid by x402: the settlement, as base64 of JSON.",
        "schema": {"type": "string"},
    }
}
X402: Final[dict[str, Any]] = {
    "parameters": [
        {
            "name": SIGNATURE_HEADER,
            "in": "header",
            "required": False,
            "description": "An x402 payment (version 2) that answers the offer of a 402, in place of a key.",
            "schema": {"type": "string", "contentEncoding": "base64"},
        }
    ]
}
"""For `openapi_extra` of a route that a stranger may pay for."""
WAITED: Final[dict[str, Any]] = {
    "Preference-Applied": {"description": "How long was waited at most.", "schema": {"type": "string"}}
}
UPLOAD: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "additionalProperties": False,
                    "properties": {
                        "file": {
                            "type": "string",
                            "minLength": 1,
                            "contentMediaType": "application/octet-stream",
                        }
                    },
                }
            }
        },
    }
}
CRYPTO_WEBHOOK: Final[dict[str, Any]] = {
    "parameters": [
        {
            "name": name,
            "in": "header",
            "description": f"Signs an event of {provider}. One of the three is needed.",
            "schema": {"type": "string"},
            "example": example,
        }
        for name, provider, example in (
            (
                "X-Hook0-Signature",
                "Coinbase Business",
                "t=1636936200,h=content-type x-event-id,v1=6ff29df3...",
            ),
            ("BTCPay-Sig", "BTCPay Server", "sha256=1b3d69df..."),
            ("X-CC-Webhook-Signature", "Coinbase Commerce, which has closed", "1b3d69df..."),
        )
    ],
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
}
WEBHOOK: Final[dict[str, Any]] = {
    "parameters": [
        {
            "name": "Stripe-Signature",
            "in": "header",
            "required": True,
            "schema": {"type": "string"},
            "example": "t=1700000000,v1=0c8670ed...",
        }
    ],
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
}
CSV: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"text/csv": {"schema": {"type": "string"}}}},
}
CONTENT: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The bytes, under the file's own type.",
        "content": {"*/*": {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}},
    },
    307: {"description": "The bytes lie in a bucket: follow `Location`.", "headers": LOCATION},
}
PART: Final[dict[int | str, dict[str, Any]]] = {
    206: {
        "description": "The part that `Range` asked for; `Content-Range` says which.",
        "content": CONTENT[200]["content"],
    }
}

_TAGS: Final = [
    {"name": "Purchases", "description": "From a package to the first API key."},
    {"name": "Keys", "description": "One key per environment or agent; revoked on its next request."},
    {"name": "Credits", "description": "What an account may spend."},
    {"name": "Sign-in", "description": "One-time codes by e-mail, and the sessions that they open."},
    {"name": "Account", "description": "Export and deletion of one's data."},
    {"name": "Tools", "description": "Work that you do and we meter: check the price, then spend."},
    {
        "name": "Media jobs",
        "description": "Submit, poll, cancel. A job is paid when it succeeds, and only then.",
    },
    {
        "name": "Usage",
        "description": "What was spent, on what and when; statements, and signed receipts.",
    },
    {"name": "Referral", "description": "Bring a customer; their first order earns you credits."},
    {"name": "Files", "description": "Uploads and outputs."},
    {
        "name": "OpenAI-compatible",
        "description": "OpenAI's routes and shapes, for its clients: change the base URL and the key.",
    },
    {
        "name": "Alerts and webhooks",
        "description": "What you are told without asking: by mail, and by webhooks that are signed as Standard Webhooks"
        " has it.",
    },
    {"name": "Webhooks", "description": "For the payment provider."},
    {"name": "Operations", "description": "Health and the public books."},
    {
        "name": "Operator",
        "description": "For whoever runs this server, with an operator's key (`..._op_...`), which is no customer's.",
    },
]

_DESCRIPTION: Final = """\
**Start**: create a checkout, pay, claim the first API key, submit a job, poll it, download its output.

**Auth**: `Authorization: Bearer <key>` or `x-api-key: <key>`. A key is shown once, when it is made. A browser that
signed in by e-mail sends its session cookie instead; writes then repeat its CSRF token in `x-csrf-token`. A request
with both is the key's.

**Money**: 1 credit is 100 tokens; tokens are whole numbers. A job's cost is held when it is submitted and
charged when it succeeds; a failed or canceled job costs nothing. A tool's price stands in `GET /api/v1/pricing`.

**Without an account**: where this server takes x402, a submit without a key is answered 402 with its own price in
USDC; the same request with a signed payment runs. Its answer carries a key for a day, which reads the job; the credits
of a failed job stay the wallet's, and that key, or the next payment's, spends them.

**Retries**: send `X-Idempotency-Key` with a write and repeat it at will: the first answer comes again.

**Webhooks**: name a `webhookUrl` with a job, or add an endpoint for the account. Each event is posted as
`{"type", "timestamp", "data"}` with the headers `webhook-id`, `webhook-timestamp` and `webhook-signature` of Standard
Webhooks, until it is answered 2xx or three days are over. Verify the signature, and take each `webhook-id` once.

**Limits** are counted by the minute for a key or a user, and for what a request without a key names. Limited routes
answer with `RateLimit` and `RateLimit-Policy`; past the limit 429 `rate_limited` with `Retry-After`.

**Refusals** are `{"ok": false, "error", "message", "details"?}`: `error` is stable. Every answer carries
`x-request-id`.
"""


@dataclass(frozen=True, slots=True)
class Shape:
    """How the refusals of a route look: their schema, their body, the code that it states."""

    model: type[BaseModel]
    body: Callable[[AppError], dict[str, Any]]
    code: Callable[[AppError], str]


OURS: Final = Shape(Problem, problem_body, lambda error: error.code)
OPENAI: Final = Shape(OpenAIProblem, openai_body, openai_code)


def problems(*refusals: str | AppError, shape: Shape = OURS) -> dict[int | str, dict[str, Any]]:
    """Describe a route's refusals, by their codes or as it words them, grouped by status.

    Says that others look the same.
    """
    described: dict[int | str, dict[str, Any]] = {}
    for refusal in (*refusals, "internal_error"):
        sample = _SAMPLES[refusal] if isinstance(refusal, str) else refusal
        response = described.setdefault(
            sample.status,
            {
                "model": shape.model,
                "description": _MEANINGS[sample.status],
                "content": {"application/json": {"examples": {}}},
            },
        )
        response["content"]["application/json"]["examples"][shape.code(sample)] = {
            "value": shape.body(sample)
        }
        if sample.retry_after_s is not None:
            response["headers"] = _RETRY_AFTER
        if isinstance(sample, PaymentRequired):
            response["headers"] = _OFFERED
    described["default"] = {"model": shape.model, "description": "Any other refusal has the same shape."}
    return described


def document(
    app: FastAPI, catalog: Catalog, base_url: str, version: str, cookie_name: str
) -> Callable[[], dict[str, Any]]:
    """Return a function that makes the document once."""
    made: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not made:
            made.update(_document(app, catalog, base_url, version, cookie_name))
        return made

    return openapi


def _document(
    app: FastAPI, catalog: Catalog, base_url: str, version: str, cookie_name: str
) -> dict[str, Any]:
    offers = "\n".join(
        f"- `{task.name}`: {task.summary} {task.tool.price_text}, by {task.tool.model} ({task.tool.licence})."
        for task in catalog.tasks.values()
    )
    made = get_openapi(
        title="Farebox",
        version=version,
        openapi_version="3.1.0",
        summary="Generative models by prepaid credits",
        description=f"{_DESCRIPTION}\n**Tasks**:\n{offers}\n",
        routes=app.routes,
        tags=_TAGS,
        servers=[{"url": base_url}],
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    parts = made.setdefault("components", {})
    parts["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer <key>`"},
        "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        "session": {
            "type": "apiKey",
            "in": "cookie",
            "name": cookie_name,
            "description": "Set by `POST /api/v1/auth/email/verify`. Writes also need `x-csrf-token`.",
        },
    }
    schemas = parts.setdefault("schemas", {})
    schemas.update(_task_inputs())
    _offer(schemas, catalog)
    parts["headers"] = _LIMIT_FIELDS
    gates = {route.operation_id: route.app for route in app.routes if isinstance(route, APIRoute)}
    for path, operations in made["paths"].items():
        for operation in operations.values():
            _complete(operation)
            gate = gates[operation["operationId"]]
            if isinstance(gate, Gate):
                _limit(operation["responses"], gate, OPENAI if speaks_openai(path) else OURS)
    return made


def _limit(responses: dict[str, Any], gate: Gate, shape: Shape) -> None:
    """Describe the limit of a route: its 429, and the fields that all its counted answers carry."""
    refusal = RateLimited(gate.bucket.name, gate.limit, WINDOW_S, 12)
    responses["429"] = {
        "description": _MEANINGS[429],
        "headers": {**_RETRY_AFTER},
        "content": {
            "application/json": {
                "schema": {"$ref": f"#/components/schemas/{shape.model.__name__}"},
                "examples": {shape.code(refusal): {"value": shape.body(refusal)}},
            }
        },
    }
    for status, response in responses.items():
        if status.startswith("2") or status == "429":
            response["headers"] = response.get("headers", {}) | _LIMIT_REFERENCES


def _complete(operation: dict[str, Any]) -> None:
    """Add the examples, and take out what only FastAPI's way of writing puts in."""
    name = operation["operationId"]
    for parameter in operation.get("parameters", ()):
        if choices := parameter["schema"].pop("anyOf", None):  # a parameter is left out, never null
            parameter["schema"] |= next(choice for choice in choices if choice.get("type") != "null")
    if name in REQUESTS:
        operation["requestBody"]["content"]["application/json"]["examples"] = {
            title: {"value": value} for title, value in REQUESTS[name].items()
        }
    for status, response in operation["responses"].items():
        if response["description"] == "Successful Response":
            response["description"] = "Accepted." if status == "202" else "Done."
            if name in ANSWERS:
                response["content"]["application/json"]["example"] = ANSWERS[name]
        answer = response.get("content", {}).get("application/json")
        if answer and status.startswith("2") and name in REST:
            answer.setdefault("example", REST[name])


def _offer(schemas: dict[str, Any], catalog: Catalog) -> None:
    """Name what is on sale where a request names it."""
    for request, field, names in (
        ("StartCheckout", "packageCode", catalog.packages),
        ("CheckTool", "tool", catalog.tools),
        ("SpendTool", "tool", catalog.tools),
        ("SubmitJob", "task", catalog.tasks),
    ):
        schemas[request]["properties"][field]["enum"] = list(names)


def _task_inputs() -> dict[str, Any]:
    """Return the schemas of the tasks' inputs; a job's `input` refers to them by name."""
    models: list[tuple[type[BaseModel], Any]] = [(model, "validation") for model in INPUTS.values()]
    _, found = models_json_schema(models, ref_template="#/components/schemas/{model}")
    return dict(found["$defs"])
