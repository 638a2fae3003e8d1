"""`farebox revenue`: what each model took and earned, by the books."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.console import Console

from deployments.command_line import AsJson, on_books
from deployments.listing import show
from gateway import metering
from gateway.periods import instant
from gateway.responses import credits_text
from gateway.routes.operator_revenue import PERIOD, shown
from kit.errors import InvalidRequest

console = Console(highlight=False)

A_SECOND = timedelta(seconds=1)
"""Ahead of now: what ended in this moment counts too."""


def revenue(
    since: Annotated[
        str, typer.Option(metavar="TIME", help="RFC 3339 with its offset; without it, 30 days ago.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Show revenue per GPU-second by model, for live customers; on a CPU, per second that the model worked."""
    until = datetime.now(UTC) + A_SECOND
    begin = instant("since", since) if since else until - PERIOD
    if begin >= until:
        raise InvalidRequest("since", "must lie in the past")
    found = on_books(metering.revenue, begin, until)
    if as_json:
        print(json.dumps([shown(each) for each in found], indent=2))
        return
    show(
        console,
        (
            "application",
            "model",
            "device",
            "succeeded",
            "attempts",
            "seconds",
            "unpaid s",
            "credits",
            "tokens/s",
        ),
        [
            (
                *(
                    each.application,
                    each.model,
                    "GPU" if each.on_gpu else "CPU",
                    each.succeeded,
                    each.attempts,
                ),
                *(f"{each.busy_s:.1f}", f"{each.unpaid_s:.1f}", credits_text(each.tokens), each.tokens_per_s),
            )
            for each in found
        ],
    )
