"""Logs and metrics: structured lines that carry the request id and never a secret; counters at `/metrics`.

Metric labels name routes, tools and applications, never a user, key or job: a label of unbounded values would
grow the registry without end.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, Final

import prometheus_client
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, multiprocess

_SECRETS: Final = re.compile(
    r"\b(\w{2,12}_(?:live|test)_)[0-9A-Za-z]{8,}|(whsec_|Bearer\s+|code=|signature=)[^\s\"'&]+"
)
"""API keys of any brand, Stripe's own keys, webhook secrets, bearer headers and signed-URL signatures."""
_CARDS: Final = re.compile(r"(?<![\w.])\d(?:[ -]?\d){12,18}(?!\w|\.\d)")
"""As many digits as card numbers have, in the groups that people type; `_luhn` tells them from other numbers."""

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""From a coalesced read (about a millisecond) to the longest call that is not a job."""

requests_total = Counter(
    "farebox_http_requests", "HTTP requests by route and status.", ["method", "route", "status"]
)
request_seconds = Histogram(
    "farebox_http_request_seconds", "Time to answer, by route.", ["route"], buckets=SECONDS
)
ledger_batch_items = Histogram(
    "farebox_ledger_batch_items",
    "Calls that shared one transaction.",
    ["method"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128),
)
ledger_seconds = Histogram(
    "farebox_ledger_seconds", "Time of one ledger transaction.", ["method"], buckets=SECONDS
)
jobs_total = Counter("farebox_jobs", "Jobs that ended, by task and outcome.", ["task", "outcome"])
job_run_seconds = Histogram(
    "farebox_job_run_seconds",
    "Time a model worked on a job.",
    ["task"],
    buckets=(0.1, 0.5, 1, 5, 15, 60, 300, 1800),
)
webhooks_total = Counter(
    "farebox_webhooks",
    "Webhooks by provider, as they came in and as they were handled.",
    ["provider", "outcome"],
)
webhooks_sent_total = Counter(
    "farebox_webhooks_sent", "Webhooks posted to customers, by outcome.", ["outcome"]
)
reconciliations_total = Counter(
    "farebox_reconciliations", "Comparisons of providers with the books, by outcome.", ["outcome"]
)
reconciliation_differences = Gauge(
    "farebox_reconciliation_differences",
    "Differences that the last comparison with a provider left.",
    ["provider"],
    multiprocess_mode="mostrecent",
)
errors_total = Counter("farebox_unexpected_errors", "Exceptions that reached a process edge.", ["edge"])


def redact(text: str) -> str:
    """Blank out whatever looks like a key, code, signature or card number."""
    text = _SECRETS.sub(lambda match: f"{match[1] or match[2]}***", text)
    return _CARDS.sub(lambda match: "***" if _luhn(match[0]) else match[0], text)


def _luhn(written: str) -> bool:
    """Whether the digits end with the check digit of card numbers. Source: ISO/IEC 7812-1, annex B."""
    digits = [int(char) for char in reversed(written) if char.isdigit()]
    doubled = [2 * digit for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(each // 10 + each % 10 for each in doubled)) % 10 == 0


def _redact_event(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = redact(value)
    return event


def configure_logging(level: str = "info", log_format: str = "json") -> None:
    """Send every logger of the process through one redacting pipeline to standard error.

    To the process's own standard error: Serve replaces `sys.stderr` with a buffer that a killed replica loses.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _redact_event,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if log_format == "json" else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.__stderr__)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # One line a request is ours; theirs repeat it, and httpx prints addresses with their query strings.
    for name in ("uvicorn.access", "httpx", "httpcore", "stripe"):
        logging.getLogger(name).setLevel(logging.WARNING)


def render_metrics(shared_dir: Path | None) -> bytes:
    """Return the Prometheus text of this process, or of all processes that share `shared_dir`."""
    if shared_dir is None:
        return prometheus_client.generate_latest()
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, path=str(shared_dir))  # type: ignore[no-untyped-call]
    return prometheus_client.generate_latest(registry)
