"""Prices, vouchers, operators and the log at the command line; each change is a line of the log."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.command_line import AsJson, Limit, Moment, Reason, by_hand, moment, on_books, user_id_of
from deployments.listing import show
from gateway import interventions, prices
from gateway.catalog import TOKENS_PER_CREDIT, load_catalog
from gateway.prices import NewPrice
from gateway.responses import credits_text
from kit.errors import InvalidRequest
from kit.settings import load_settings
from ledger import actions, operators
from payments import vouchers
from payments.vouchers import MAX_CODES, VoucherTerms

prices_app = typer.Typer(no_args_is_help=True, help="Prices that lie over the catalogue's: list, set.")
voucher_app = typer.Typer(no_args_is_help=True, help="Vouchers: make, list, disable.")
operator_app = typer.Typer(no_args_is_help=True, help="Operators' keys: add, list, revoke.")
console = Console(highlight=False)


# -- prices --------------------------------------------------------------------------------------------------------


@prices_app.command("list")
def list_prices() -> None:
    """Show announced prices, newest first; tools without one have the catalogue's."""
    announced = on_books(prices.list_prices)
    now = datetime.now(UTC)
    in_force = {price.version for price in prices.current(announced, now)}

    def told(price: prices.PriceVersion) -> str:
        return "announced" if price.since > now else "current" if price.version in in_force else "past"

    show(
        console,
        ("version", "tool", "tokens", "per units", "since", "state"),
        [(p.version, p.tool, p.tokens, p.per_units, p.since, told(p)) for p in announced],
    )


@prices_app.command("set")
def set_price(
    tool: str,
    tokens: Annotated[int, typer.Argument(min=1, max=1_000_000)],
    reason: Reason,
    per_units: Annotated[int, typer.Option(help="1, 10, 100 or 1000.")] = 1,
    since: Moment = "",
) -> None:
    """Announce a price, at least a minute ahead; without --since it begins in a minute."""
    if per_units not in (1, 10, 100, 1000):
        raise InvalidRequest("per-units", "must be 1, 10, 100 or 1000")
    new = NewPrice(load_catalog().tool(tool).name, tokens, per_units, moment("since", since), reason)
    made = on_books(prices.announce, by_hand(), new)
    console.print(
        f"version {made.version}: {tool} costs {tokens} per {per_units} from {made.since:%F %T} UTC on"
    )


# -- vouchers ------------------------------------------------------------------------------------------------------


@voucher_app.command("make")
def make_vouchers(  # noqa: PLR0913, PLR0917  # its options
    label: Annotated[str, typer.Argument(help="What they are for; redeemers' statements show it.")],
    credits_each: Annotated[int, typer.Argument(min=1, max=1_000_000, metavar="CREDITS")],
    count: Annotated[int, typer.Option(min=1, max=MAX_CODES, help="How many codes.")] = 1,
    redemptions: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Per code; each account redeems a code once.")
    ] = 1,
    expires: Moment = "",
    credits_days: Annotated[
        int | None, typer.Option(min=1, max=3650, help="How long redeemed credits live; else for ever.")
    ] = None,
    reason: Reason = "",
) -> None:
    """Make codes and print them, once: only their hashes are kept."""
    terms = VoucherTerms(
        label, credits_each * TOKENS_PER_CREDIT, redemptions, moment("expires", expires), credits_days
    )
    for new in on_books(interventions.make_vouchers, by_hand(), terms, count, reason or None):
        typer.echo(f"{new.code}\t{new.voucher.id}")


@voucher_app.command("list")
def list_vouchers(limit: Limit = 50) -> None:
    """Show vouchers, newest first."""
    show(
        console,
        ("id", "begins", "label", "credits", "redeemed", "expires", "disabled"),
        [
            (
                *(v.id, v.hint, v.terms.label, credits_text(v.terms.amount_tokens)),
                *(f"{v.redemptions}/{v.terms.max_redemptions}", v.terms.expires_at, v.disabled_at),
            )
            for v in on_books(vouchers.list_vouchers, limit)
        ],
    )


@voucher_app.command("disable")
def disable_voucher(voucher_id: str, reason: Reason) -> None:
    """Close a voucher; what was redeemed stays."""
    closed = on_books(interventions.disable_voucher, by_hand(), voucher_id, reason)
    console.print(f"{closed.id} is disabled; it was redeemed {closed.redemptions} times")


# -- operators and their log ---------------------------------------------------------------------------------------


@operator_app.command("add")
def add_operator(name: Annotated[str, typer.Argument(help="As the log shows it.")]) -> None:
    """Make a key for the operator API; prints it, once."""
    settings = load_settings()
    if not 0 < len(name) <= 100 or not name.isprintable():  # noqa: PLR2004  # the table's own bound
        raise InvalidRequest("name", "must be 1 to 100 printable characters")

    async def add(conn: AsyncConnection) -> operators.NewOperator:
        return await operators.add(conn, by_hand(), name, brand=settings.key_brand)

    console.print(on_books(add).secret, soft_wrap=True)


@operator_app.command("list")
def list_operators() -> None:
    """Show operators; keys are shown only once, when they are made."""
    show(
        console,
        ("id", "name", "created", "last used", "revoked"),
        [
            (o.id, o.name, o.created_at, o.last_used_at, o.revoked_at)
            for o in on_books(operators.list_operators)
        ],
    )


@operator_app.command("revoke")
def revoke_operator(name: str) -> None:
    """Revoke an operator's key, from the next request on."""
    gone = on_books(operators.revoke, by_hand(), name)
    console.print(f"revoked {gone.name} ({gone.id})", markup=False)


def log(
    user: Annotated[str, typer.Option(help="Only what concerned this user: e-mail or id.")] = "",
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """Show what operators did, newest first, here and by HTTP."""

    async def page(conn: AsyncConnection) -> list[actions.LoggedAction]:
        whose = await user_id_of(conn, user) if user else None
        return await actions.list_actions(conn, limit, user_id=whose)

    found = on_books(page)
    if as_json:
        print(json.dumps([asdict(line) for line in found], default=str, indent=2))
        return
    show(
        console,
        ("at", "by", "via", "action", "target", "after", "reason"),
        [
            (
                *(
                    line.at,
                    line.name,
                    "api" if line.operator_id else "command line",
                    line.action,
                    line.target,
                ),
                *(json.dumps(line.after, default=str) if line.after else "", line.reason),
            )
            for line in found
        ],
    )
