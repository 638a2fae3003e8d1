"""The `farebox` command: start the platform, look after the books, prepare models."""

from __future__ import annotations

import re
import signal
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Annotated, Final, Literal, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments import account_cli, operator_cli, revenue_cli
from deployments.audit_report import report_audit, report_chain
from deployments.books import books, in_books
from deployments.cli_people import show_outbox, users_app
from deployments.command_line import by_hand, user_id_of, user_of_email
from deployments.launcher import Launcher, LaunchError
from deployments.listing import show
from deployments.models_cli import models_app
from deployments.provenance import provenance_for
from deployments.purchases import purchases_app
from deployments.receipts import receipt_app
from deployments.reconcile_cli import reconcile
from deployments.serve_api import dashboard_hint
from deployments.webhooks import webhooks_app
from gateway.catalog import TOKENS_PER_CREDIT
from kit import migrate as migrations
from kit.db import is_away
from kit.errors import AppError, InvalidRequest
from kit.postgres import PostgresStartError
from kit.settings import Profile, Settings, SettingsError, load_settings
from ledger import keys as api_keys
from ledger.accounts import World, lock_by_user, open_account
from ledger.actions import Action, record
from ledger.refills import refill

OPERATING = "Looking after accounts"
NO_SUCH: Final = ("42P01", "42703", "42883")
"""SQLSTATEs of a table, a column and a function that are not there: the schema is older than this code."""

app = typer.Typer(
    name="farebox",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="""Run generative models on Ray and sell them by prepaid credits.

    [bold]farebox up[/] starts everything on this machine: Postgres, Ray, the models and, while no payment provider
    is configured, a payment sandbox. [bold]farebox demo[/] does so in a temporary place and plays one customer from
    the checkout to a downloaded picture.

    The environment decides: FAREBOX_PORT (8000), FAREBOX_DATA_DIR (.farebox), FAREBOX_PROFILE (tiny, small, gpu),
    FAREBOX_SCALE (empty, cluster), DATABASE_URL (empty: embedded Postgres), STRIPE_*, COINBASE_* and BTCPAY_* (all
    empty: sandbox).""",
)
keys_app = typer.Typer(no_args_is_help=True, help="API keys of a user: list, create, revoke.")
app.add_typer(keys_app, name="keys")
app.add_typer(models_app, name="models")
app.add_typer(users_app, name="users")
app.command("outbox")(show_outbox)
app.add_typer(receipt_app, name="receipt")
app.add_typer(webhooks_app, name="webhooks")
app.add_typer(purchases_app, name="purchases")
app.command()(reconcile)
for name, nouns in {
    "account": account_cli.account_app,
    "prices": operator_cli.prices_app,
    "voucher": operator_cli.voucher_app,
    "operator": operator_cli.operator_app,
}.items():
    app.add_typer(nouns, name=name, rich_help_panel=OPERATING)
for command in (
    account_cli.grant,
    account_cli.refund,
    account_cli.holds,
    account_cli.jobs,
    operator_cli.log,
    revenue_cli.revenue,
):
    app.command(rich_help_panel=OPERATING)(command)
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

Email = Annotated[str, typer.Argument(help="The user's e-mail address.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def main() -> None:
    """Run the command; an expected failure is one line that says what to do, never a stack."""
    try:
        app()
    except (SettingsError, LaunchError, PostgresStartError, AppError) as error:
        fail(error.message if isinstance(error, AppError) else str(error))
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) in NO_SUCH:
            fail("the database does not have this version's schema: run `farebox migrate`")
        if not is_away(error):
            raise
        fail(f"the database does not answer: {error.orig}")
    except RuntimeError as error:  # the launcher's parts (Ray head, ports) raise their own kinds of it
        fail(str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def fail(text: str) -> NoReturn:
    """Say why on standard error and leave with status 1."""
    errors.print(f"[red]farebox:[/] {escape(text)}", soft_wrap=True)
    raise SystemExit(1)


class Steps:
    """Tells a start's steps: a spinner where a terminal is, plain lines where not."""

    def __init__(self) -> None:
        self._status = console.status("starting") if console.is_terminal else None
        if self._status:
            self._status.start()

    def step(self, what: str) -> None:
        if self._status:
            self._status.update(f"{escape(what)} ...")

    def done(self, what: str) -> None:
        console.print(f"[green]ok[/]    {escape(what)}", soft_wrap=True)

    def warn(self, what: str) -> None:
        console.print(f"[yellow]warn[/]  {escape(what)}", soft_wrap=True)

    def end(self) -> None:
        """Take the spinner away."""
        if self._status:
            self._status.stop()


def end_on_signals() -> None:
    """Make SIGTERM end us as Ctrl-C does: in order, once; a second signal while ending is ignored."""

    def stop(signum: int, _: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(signum)

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)


@app.command()
def up(
    profile: Annotated[
        Profile | None, typer.Option(help="Which weights: FAREBOX_PROFILE says so too. [default: tiny]")
    ] = None,
    scale: Annotated[
        Literal["cluster"] | None,
        typer.Option(
            help="For many GPUs instead of one: the numbers of a cluster, as FAREBOX_SCALE=cluster."
        ),
    ] = None,
) -> None:
    """Start the whole platform and stay with it until Ctrl-C."""
    end_on_signals()
    chosen = {name: value for name, value in (("profile", profile), ("scale", scale)) if value}
    steps = Steps()
    try:
        settings = load_settings(**chosen)
        provenance_for(settings)  # refused now, and not in the first job
        with Launcher(settings, steps) as platform:
            steps.end()
            say_ready(platform)
            platform.watch()
    except KeyboardInterrupt:
        console.print("Farebox has ended.")
    finally:
        steps.end()


def say_ready(platform: Launcher) -> None:
    """Print the ready line and what a newcomer needs next."""
    settings = platform.settings
    url = f"http://{settings.host}:{settings.port}"

    def say(text: str) -> None:
        console.print(text, soft_wrap=True)

    say(f"\n[bold green]Farebox is ready at {url}[/]  [dim]({platform.started_in_s:.0f} s)[/]")
    if platform.sandbox_url:
        say(f"Payments    sandbox at {platform.sandbox_url}: real flow, no real money")
    else:
        say(f"Payments    {', '.join(providers(settings)) or 'none: checkouts answer 503'}")
    dashboard = dashboard_hint(platform.head.api.url, platform.head.paths.token)
    marked = (
        " (tiny random weights: real pipelines, meaningless results)" if settings.profile != "gpu" else ""
    )
    say(f"Models      profile {settings.profile}{marked}")
    for name in platform.failed_models:
        say(f"[yellow]            {name} does not run; its jobs wait[/]")
    say(f"Dashboard   {dashboard}")
    say(f"Docs        {url}/docs")
    say(f"Try         curl -s {url}/api/v1/packages")
    say("[dim]Ctrl-C ends everything that was started here.[/]")


def providers(settings: Settings) -> list[str]:
    """Name the payment providers that are configured."""
    named = {
        "Stripe": settings.stripe_secret_key.get_secret_value(),
        "Coinbase": settings.coinbase_api_key_id,
        "BTCPay": settings.btcpay_url,
        "wallets (x402)": settings.x402_facilitator,
    }
    return [name for name, value in named.items() if value]


@app.command()
def demo(
    keep: Annotated[Path, typer.Option(help="Where the picture is kept.")] = Path("demo-picture.png"),
) -> None:
    """Start a platform in a temporary place, play one customer through HTTP, end it."""
    from deployments.demo import play
    from deployments.ray_ports import is_free

    end_on_signals()
    with tempfile.TemporaryDirectory(prefix="farebox-") as place:
        port = next(port for port in range(8100, 8900, 10) if is_free(port) and is_free(port + 1))
        settings = load_settings(
            data_dir=Path(place), port=port, profile="tiny", database_url="", public_url=""
        )
        steps = Steps()
        try:
            with Launcher(settings, steps) as platform:
                steps.end()
                play(console, f"http://{settings.host}:{port}", keep.absolute())
                report_audit(console, platform.settings.database_url)
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        finally:
            steps.end()
    console.print("The demo has ended, and everything that it started.")


@app.command()
def migrate() -> None:
    """Bring the database to the newest schema; a repeat does nothing."""
    with books(load_settings()) as url:
        console.print(f"schema at version {migrations.upgrade(url)}")


@app.command()
def audit(
    as_json: AsJson = False,
    chain: Annotated[bool, typer.Option("--chain", help="Verify the hash chain instead.")] = False,
    head: Annotated[
        str,
        typer.Option(metavar="HEX", help="With --chain: a head that was kept; the chain must contain it."),
    ] = "",
) -> None:
    """Check every invariant of the books; exit with 1 and the first offending rows when one is broken.

    With --chain: verify every sealed block, name the first broken one, and print the head to be kept elsewhere.
    """
    if head and not (chain and re.fullmatch(r"[0-9a-fA-F]{64}", head)):
        fail("--head goes with --chain and is the 64 hex digits that an earlier run printed")
    with books(load_settings()) as url:
        if chain:
            sound = report_chain(console, url, bytes.fromhex(head) if head else None, as_json=as_json)
        else:
            sound = report_audit(console, url, as_json=as_json)
    if not sound:
        raise SystemExit(1)


@keys_app.command("list")
def list_keys(email: Email) -> None:
    """Show a user's keys; secrets are shown only once, when they are made."""

    async def rows(conn: AsyncConnection) -> list[api_keys.ApiKey]:
        return await api_keys.list_keys(conn, await user_id_of(conn, email))

    with books(load_settings()) as url:
        found = in_books(url, rows)
    show(
        console,
        ("prefix", "world", "label", "created", "state"),
        [
            (key.prefix, key.world, key.label, f"{key.created_at:%Y-%m-%d %H:%M}", _state(key))
            for key in found
        ],
    )


def _state(key: api_keys.ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {key.revoked_at:%Y-%m-%d}"
    if key.expires_at is None:
        return "works"
    return (
        f"{'ended' if key.expires_at <= datetime.now(UTC) else 'works until'} {key.expires_at:%Y-%m-%d %H:%M}"
    )


@keys_app.command("create")
def create_key(
    email: Email,
    label: Annotated[str, typer.Option(help="What it is for.")] = "made by operator",
    test: Annotated[bool, typer.Option("--test", help="To the test world, with test credits.")] = False,
) -> None:
    """Make a key for a user, opening the account if there is none; prints the secret, once."""
    settings = load_settings()
    if not 0 < len(label) <= 100 or not label.isprintable():  # noqa: PLR2004  # the table's own bound
        raise InvalidRequest("label", "must be 1 to 100 printable characters")

    async def make(conn: AsyncConnection) -> api_keys.NewApiKey:
        user_id = await user_of_email(conn, email)
        world: World = "test" if test else "live"
        if test:
            account_id = await open_account(conn, user_id, world)
            await refill(conn, account_id, settings.test_credits * TOKENS_PER_CREDIT)
        made = await api_keys.mint(conn, user_id, label, brand=settings.key_brand, world=world)
        about = {"label": label, "world": world}
        await record(conn, by_hand(), Action("key.create", made.key.id, user_id, after=about))
        return made

    with books(settings) as url:
        made = in_books(url, make)
    console.print(made.secret, soft_wrap=True)


@keys_app.command("revoke")
def revoke_key(email: Email, prefix: Annotated[str, typer.Argument(help="How the key begins.")]) -> None:
    """Revoke the user's one key that begins so, from the next request on."""

    async def revoke(conn: AsyncConnection) -> api_keys.ApiKey:
        user_id = await user_id_of(conn, email)
        await lock_by_user(conn, user_id)
        was_live = (await api_keys.match(conn, user_id, prefix, None)).revoked_at is None
        gone = await api_keys.revoke(conn, user_id, prefix)
        if was_live:
            await record(conn, by_hand(), Action("key.revoke", gone.id, user_id, after={"label": gone.label}))
        return gone

    with books(load_settings()) as url:
        gone = in_books(url, revoke)
    console.print(f"revoked {gone.prefix} ({escape(gone.label)})")


if __name__ == "__main__":
    main()
