"""The `farebox purchases` command: what was bought, and money back."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deployments.books import as_running, books, in_books
from deployments.handles import local_ledger
from deployments.ledger import LedgerServer
from kit.ids import new_id
from kit.settings import Settings, load_settings
from payments import purchases
from payments.currencies import amount_text
from payments.errors import PaymentsUnavailable
from payments.purchases import Purchase
from payments.stripe_checkout import checkout_for

purchases_app = typer.Typer(
    no_args_is_help=True, help="Purchases: list those of an e-mail address, refund one."
)
console = Console(highlight=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


@purchases_app.command("list")
def list_purchases(
    email: Annotated[
        str, typer.Argument(help="The address that was given at the checkout.", show_default=False)
    ],
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The newest so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show the newest purchases, paid or not."""
    with books(load_settings()) as url:
        found = in_books(url, purchases.of_email, email, limit)
    if as_json:
        typer.echo(json.dumps([_shown(each) for each in found], indent=2))
        return
    if not console.is_terminal:
        for each in found:
            typer.echo("\t".join("-" if value is None else str(value) for value in _shown(each).values()))
        return
    table = Table("created", "id", "package", "paid", "went back")
    for each in found:
        table.add_row(
            f"{each.created_at:%Y-%m-%d %H:%M}",
            each.id,
            escape(each.package_code),
            "-" if each.paid_minor is None else _money(each.paid_minor, each.currency),
            _money(each.returned_minor, each.currency) if each.returned_minor else "",
        )
    console.print(table)


@purchases_app.command()
def refund(
    purchase_id: Annotated[str, typer.Argument(help="As in `farebox purchases list`.", show_default=False)],
    amount_minor: Annotated[
        int | None, typer.Option(min=1, help="In the currency's minor unit; all that is left when not given.")
    ] = None,
    reason: Annotated[
        str,
        typer.Option(metavar="duplicate|fraudulent|requested_by_customer", help="What the provider is told."),
    ] = "requested_by_customer",
    reference: Annotated[
        str, typer.Option(help="Makes a repeat the same refund; new for each run when empty.")
    ] = "",
) -> None:
    """Give a payer money back, and take the same share of the credits along: what was spent of them is owed."""
    if reason not in ("duplicate", "fraudulent", "requested_by_customer"):
        raise RuntimeError(f"{reason!r} is no reason; use duplicate, fraudulent or requested_by_customer")
    settings = as_running(load_settings())
    reference = reference or new_id("req")
    with books(settings) as url:
        after, refund_id = asyncio.run(_refund(settings, url, purchase_id, amount_minor, reason, reference))
    typer.echo(
        f"{refund_id}: {_money(after.returned_minor, after.currency)} of this purchase went back in all"
    )


async def _refund(  # noqa: PLR0913, PLR0917  # what the command was told
    settings: Settings, url: str, purchase_id: str, amount_minor: int | None, reason: str, reference: str
) -> tuple[Purchase, str]:
    server = LedgerServer(settings.model_copy(update={"database_url": url}))
    checkout = checkout_for(settings, local_ledger(server))
    if checkout is None:
        raise PaymentsUnavailable("No payment provider is configured: set STRIPE_SECRET_KEY.")
    try:
        purchase = await server.purchase_by_id(purchase_id)
        refund_id = await checkout.refund(purchase, amount_minor, reason, f"refund:{reference}")
        return await server.purchase_by_id(purchase_id), refund_id
    except PaymentsUnavailable as error:
        raise PaymentsUnavailable(
            f"{error.reason} Repeat it with --reference {reference}: should it have been made, it is not made twice."
        ) from error
    finally:
        await checkout.close()
        await server.close()


def _money(amount_minor: int, currency: str) -> str:
    return f"{amount_text(amount_minor, currency)} {currency.upper()}"


def _shown(purchase: Purchase) -> dict[str, Any]:
    return {
        "id": purchase.id,
        "createdAt": purchase.created_at.isoformat(),
        "email": purchase.email,
        "package": purchase.package_code,
        "priceMinor": purchase.amount_minor,
        "paidMinor": purchase.paid_minor,
        "returnedMinor": purchase.returned_minor,
        "currency": purchase.currency,
        "claimed": purchase.claimed,
    }
