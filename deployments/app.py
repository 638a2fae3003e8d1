"""The applications: the only place where deployments are bound. `serve_config.yaml` holds their numbers.

Annotations here are real objects (no postponed evaluation): Serve reads a builder's argument type from them.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application

from deployments.models.environments import python_of
from deployments.models.registry import entry_for
from deployments.models.server import MAX_WAITING, ModelServer
from kit.settings import Profile, load_settings
from kit.telemetry import configure_logging


class FareboxArgs(BaseModel):
    """`places`: how many jobs of each model application the Runner keeps in flight; `cluster_places` on a cluster.

    `starts_in_s`: how long a model without a replica takes to work, by profile or `cluster`, until it was measured.
    """

    model_config = ConfigDict(extra="forbid")

    places: dict[str, int]
    cluster_places: dict[str, int] = Field(default_factory=dict)
    starts_in_s: dict[str, int] = Field(default_factory=dict)


class ModelArgs(BaseModel):
    """A model application and the options of its deployment (numbers only): by profile, and for a cluster.

    Among them may be `cpu_offload` and `cpu_threads`, which go before the application's own. `profile` sets the weights
    whatever the platform's profile is: the tiny models of the test world beside real ones. `max_batch`: how many jobs
    may share a call of the pipeline under each profile, one unless it is said here. `family` replaces the registry's
    class as `module:Class`: fault tests put slow and failing models there.
    """

    model_config = ConfigDict(extra="forbid")

    application: str
    profiles: dict[str, dict[str, Any]] = Field(default_factory=dict)
    revision: str | None = None
    cpu_threads: int = 1
    cpu_offload: bool = False
    family: str | None = None
    profile: Profile | None = None
    max_batch: dict[str, int] = Field(default_factory=dict)


class ModelReplica(ModelServer):
    """A ModelServer in a process of its own: it logs as every other process of the platform does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        settings = load_settings()
        configure_logging(settings.log_level, settings.log_format)
        super().__init__(*args, **kwargs)


def numbers_of(profiles: dict[str, dict[str, Any]], profile: str, scale: str) -> dict[str, Any]:
    """Return the options under which a model's application runs: a scale's own go before the profile's."""
    return profiles.get(scale or profile) or profiles.get(profile, {})


def farebox(args: FareboxArgs) -> Application:
    """Build the platform: the surface, the books, the runner. Money goes on whatever the models do."""
    # Here, so that the many processes of models, which import this module too, are spared the rest of the platform.
    from deployments.ingress import Ingress
    from deployments.ledger import LedgerServer
    from deployments.runner import RunnerServer

    places = args.places | (args.cluster_places if load_settings().scale else {})
    ledger = serve.deployment(name="Ledger")(LedgerServer).bind()
    runner = serve.deployment(name="Runner")(RunnerServer).bind(ledger, places)
    return serve.deployment(name="Ingress")(serve.ingress()(Ingress)).bind(ledger, runner, args.starts_in_s)


def model(args: ModelArgs) -> Application:
    """Build one model's own application: it deploys, fails, upgrades and scales to zero alone.

    Raises: EnvironmentMissing, where the model has an environment of its own: it alone then fails.
    """
    settings = load_settings()
    profile = args.profile or settings.profile
    options = dict(numbers_of(args.profiles, profile, "" if args.profile else settings.scale))
    cpu_offload = options.pop("cpu_offload", args.cpu_offload)
    cpu_threads = options.pop("cpu_threads", args.cpu_threads)
    if (environment := entry_for(args.application).environment) and args.family is None:
        actor = options.get("ray_actor_options", {})
        entry = entry_for(args.application)
        python = {"py_executable": str(python_of(environment)), "env_vars": entry.variables_for(cpu_threads)}
        options = {**options, "ray_actor_options": {**actor, "runtime_env": python}}
    replica: type = ModelReplica
    bounds: dict[str, Any] = {
        "max_batch": args.max_batch.get(profile, 1),
        "max_waiting": options.get("max_ongoing_requests", MAX_WAITING),
    }
    if entry_for(args.application).is_chat:
        # Here, as above: what it takes from the surface is nothing to the other models.
        from deployments.chat_replica import ChatReplica

        replica, bounds = (
            ChatReplica,
            {"gpu_share": options.get("ray_actor_options", {}).get("num_gpus", 1.0)},
        )
    return serve.deployment(name="Model", **options)(replica).bind(
        args.application,
        profile,
        str(settings.weights_dir),
        family=args.family,
        revision=args.revision,
        cpu_threads=cpu_threads,
        cpu_offload=cpu_offload,
        **bounds,
    )
