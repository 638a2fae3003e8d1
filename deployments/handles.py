"""Clients of the deployments: waiting calls share the next batch, every wait ends, errors arrive as ours.

The client works over a Ray handle and over a plain object alike, so that tests run the same code without Ray.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar, cast

import structlog
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from deployments.cold_starts import StartTimes
from deployments.models.batching import BUSY_WAIT_S
from deployments.models.contract import GenerateRequest, ModelBusy, Output, Progress, WeightsMissing
from deployments.models.environments import EnvironmentMissing
from deployments.models.registry import PIPELINES
from gateway.errors import RateLimited
from gateway.limits import tallies
from gateway.ports import Job, JobReceipt, Ledger, ModelState, SubmitJob
from gateway.quotas import Counted, Quota, Take, used_up
from gateway.tool_holds import Held, PlaceHold, SpendHeld
from gateway.worlds import tiny_of
from kit.errors import AppError, Unavailable
from ledger.balances import Balance
from ledger.keys import Credential
from ledger.spends import Allowance, Check, Spend, Spent

log = structlog.get_logger(__name__)

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

CALL_TIMEOUT_S: Final = 20.0
"""Above Postgres's own statement timeout (15 s): whatever takes longer is not coming back."""
BATCH_ITEMS: Final = 256
"""Past this a larger batch gains nothing more and makes its members wait."""
STATES_KEPT_S: Final = 1.0
"""Health is asked often and Serve's controller answers in 40 ms: once a second is enough."""
STATES_TIMEOUT_S: Final = 3.0
"""A controller that takes longer is restarting; health must not wait for it."""
_WELL: Final = ("ready", "starting", "unavailable")
"""From well to ill."""

Call = Callable[..., Awaitable[Any]]
"""`call(method, *args)` of the deployment, wherever it runs."""
Asked = tuple[Item, Take | None]
"""An item of a hot method, with the take that rides with it."""


class Coalescer(Generic[Item, Outcome]):
    """Sends everything that waited while the last batch was away as the next one.

    No timers: a lone item goes at once, a flood travels in few calls. An outcome that is an error is raised to the
    one who asked; a batch that fails as a whole fails for all who were in it.
    """

    def __init__(self, send: Callable[[list[Item]], Awaitable[list[Outcome | AppError]]]) -> None:
        self._send = send
        self._waiting: deque[tuple[Item, asyncio.Future[Outcome]]] = deque()
        self._sender: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Outcome:
        """Return the item's outcome. Raises: the item's own AppError, or Unavailable."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_ITEMS))]
            try:
                outcomes = await self._send([item for item, _ in batch])
            except Exception as error:  # noqa: BLE001  # whatever it is belongs to those who wait for it
                outcomes = [error if isinstance(error, AppError) else _as_error(error)] * len(batch)
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                if future.done():  # the caller went away; its outcome stands all the same
                    continue
                if isinstance(outcome, AppError):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)


class LedgerClient:
    """`gateway.ports.Ledger` over a call: the hot methods coalesce, every other one goes as it is.

    The first call that a limited request makes carries its take, so that nothing is done for one that is refused;
    a hot method's batch takes it along, any other has it counted first.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._take: Coalescer[Take, Quota] = Coalescer(lambda takes: call("take_many", takes))
        self._balance: Coalescer[Asked[Credential], Any] = _together(call, "balance_many")
        self._submit: Coalescer[Asked[SubmitJob], Any] = _together(call, "submit_job_many")
        self._job: Coalescer[Asked[tuple[Credential, str]], Any] = _together(call, "job_many")
        self._spend: Coalescer[Asked[Spend], Any] = _together(call, "spend_many")
        self._check: Coalescer[Asked[Check], Any] = _together(call, "check_many")
        self._hold_tool: Coalescer[Asked[PlaceHold], Any] = _together(call, "hold_tool_many")
        self._spend_held: Coalescer[Asked[SpendHeld], Any] = _together(call, "spend_held_many")

    async def take(self, take: Take) -> Quota:
        """Count a request together with everyone else's."""
        return await self._take(take)

    async def balance(self, credential: Credential) -> Balance:
        """Read a balance together with everyone else who asks now."""
        return cast("Balance", await _counted(self._balance, credential))

    async def submit_job(self, command: SubmitJob) -> JobReceipt:
        """Submit a job together with everyone else who submits now."""
        return cast("JobReceipt", await _counted(self._submit, command))

    async def job(self, credential: Credential, job_id: str) -> Job:
        """Look at a job together with everyone else who polls now."""
        return cast("Job", await _counted(self._job, (credential, job_id)))

    async def spend(self, spend: Spend) -> Spent:
        """Charge together with everyone else who spends now."""
        return cast("Spent", await _counted(self._spend, spend))

    async def check(self, check: Check) -> Allowance:
        """Ask together with everyone else who asks now."""
        return cast("Allowance", await _counted(self._check, check))

    async def hold_tool(self, command: PlaceHold) -> Held | Allowance:
        """Hold together with everyone else who holds now."""
        return cast("Held | Allowance", await _counted(self._hold_tool, command))

    async def spend_held(self, command: SpendHeld) -> Spent:
        """Charge holds together with everyone else who does now."""
        return cast("Spent", await _counted(self._spend_held, command))

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        """Pass any other method on under its own name."""
        if method.startswith("_"):
            raise AttributeError(method)

        async def passed_on(*args: object) -> Any:
            if tally := tallies.get():
                await tally.count(self)
            return await self._call(method, *args)

        return passed_on


def _together(call: Call, method: str) -> Coalescer[Asked[Any], Any]:
    """Return the coalescer of a hot method."""

    async def send(asked: list[Asked[Any]]) -> list[Any]:
        items, takes = [item for item, _ in asked], [take for _, take in asked]
        outcomes: list[Any] = await (call(method, items, takes) if any(takes) else call(method, items))
        return outcomes

    return Coalescer(send)


async def _counted(coalescer: Coalescer[Asked[Item], Any], item: Item) -> Any:
    """Send an item with its request's take, if that did not go out yet; return or raise the item's outcome."""
    tally = tallies.get()
    take = tally.board() if tally else None
    if tally is None or take is None:
        return await coalescer((item, None))
    try:
        counted: Counted = await coalescer((item, take))
    except RateLimited as refusal:
        tally.settle(used_up(refusal))
        raise
    tally.settle(counted.quota)
    if isinstance(counted.outcome, AppError):
        raise counted.outcome
    return counted.outcome


def local_ledger(server: object) -> Ledger:
    """Return the port over a LedgerServer in this process."""

    async def call(method: str, *args: object) -> Any:
        return await getattr(server, method)(*args)

    return cast("Ledger", LedgerClient(call))


def remote_ledger(handle: Any) -> Ledger:
    """Return the port over a handle of the Ledger deployment."""
    return cast("Ledger", LedgerClient(ledger_call(handle)))


def ledger_call(handle: Any) -> Call:
    """Return a call on a Ledger handle: bounded in time, its errors ours."""

    async def call(method: str, *args: object) -> Any:
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await getattr(handle, method).remote(*args)
        except Exception as error:
            raise _as_error(error) from error

    return call


@dataclass
class ModelAway(AppError):
    """The application could not be called: not deployed, starting, or without a replica. No work began."""

    reason: str
    code = "model_unavailable"
    status = 503
    retryable = True

    @property
    def message(self) -> str:
        return f"The model is not available right now: {self.reason}"


@dataclass
class ModelGone(AppError):
    """The replica went away in the middle of the work; another attempt may succeed."""

    application: str
    code = "interrupted"
    status = 500
    retryable = True

    @property
    def message(self) -> str:
        return f"The {self.application} model went away in the middle of the work."


class ModelCalls(Protocol):
    """The model applications, as the runner calls them."""

    def generate(self, application: str, request: GenerateRequest) -> AsyncGenerator[Progress | Output, None]:
        """Yield progress, then the output. Raises: ModelAway before work began, any AppError after."""


class ModelHandles:
    """The model applications of this Serve instance, each its own application."""

    def __init__(self, applications: Sequence[str], start_times: StartTimes | None = None) -> None:
        self._applications = list(applications)
        self._start_times = start_times
        self._handles: dict[str, Any] = {}
        self._states: dict[str, ModelState] = {}
        self._states_at = -STATES_KEPT_S
        self._asking = asyncio.Lock()
        self._look: asyncio.Task[Any] | None = None

    async def generate(
        self, application: str, request: GenerateRequest
    ) -> AsyncGenerator[Progress | Output, None]:
        """Yield the job's progress, then its output; leaving early stops the work at its next step.

        Raises: ModelAway or ModelBusy before work began, ModelGone when the replica died in it, or the model's own
        AppError.
        """
        began = False
        stream: Any = None
        try:
            stream = (await self._handle(application)).options(stream=True).generate.remote(request)
            async for event in stream:
                began = True
                yield event
        except (asyncio.CancelledError, GeneratorExit):
            if stream is not None:
                stream.cancel()
            raise
        except BackPressureError as error:
            raise ModelBusy(application, BUSY_WAIT_S) from error
        except Exception as error:
            refusal = _app_error(error)
            if refusal is None:
                # A handle of an application that was deleted or replaced stays broken: look it up anew.
                self._handles.pop(application, None)
                log.warning("model call failed", application=application, began=began, exc_info=error)
                died = began or isinstance(error, RayActorError)
                refusal = ModelGone(application) if died else ModelAway(type(error).__name__)
            raise refusal from error

    async def states(self) -> dict[str, ModelState]:
        """Return the state of each application, at most a second old; never raises."""
        async with self._asking:
            if time.monotonic() - self._states_at > STATES_KEPT_S:
                try:
                    if self._look is None or self._look.done():
                        self._look = asyncio.create_task(asyncio.to_thread(serve.status))
                    # A call that hangs keeps its thread: the next look waits for it too, and takes no other.
                    async with asyncio.timeout(STATES_TIMEOUT_S):
                        status = await asyncio.shield(self._look)
                    states = [_state(name, status.applications.get(name)) for name in self._applications]
                    if self._start_times is not None and any(each.state == "starting" for each in states):
                        states = await self._start_times.told(states)
                    self._states = {state.application: state for state in states}
                except Exception:
                    log.warning("serve status failed", exc_info=True)
                    self._states = {
                        name: ModelState(name, "unavailable", "Serve does not answer")
                        for name in self._applications
                    }
                self._states |= _of_pipelines(self._states)
                self._states_at = time.monotonic()
            return self._states

    async def _handle(self, application: str) -> Any:
        if application not in self._handles:
            # The look-up asks Serve's controller and blocks while it does.
            self._handles[application] = await asyncio.to_thread(serve.get_app_handle, application)
        return self._handles[application]


def _state(name: str, overview: Any) -> ModelState:
    if overview is None:
        return ModelState(name, "unavailable", "not deployed")
    status = str(getattr(overview.status, "value", overview.status))
    if status == "RUNNING":
        if any(_works(each) for each in overview.deployments.values()):
            return ModelState(name, "ready", None)
        # Between zero and one: the first call that came in brings a replica, and waits for it.
        asleep = not any(each.replica_states for each in overview.deployments.values())
        return ModelState(name, "starting", None, asleep=asleep)
    if status in ("NOT_STARTED", "DEPLOYING"):
        return ModelState(name, "starting", None)
    if status == "DEPLOY_FAILED":
        told = [overview.message, *(each.message for each in overview.deployments.values())]
        return ModelState(name, "unavailable", _public_reason("\n".join(map(str, told))), failed=True)
    return ModelState(name, "unavailable", status.lower())


def _works(deployment: Any) -> bool:
    return any(getattr(state, "value", state) == "RUNNING" for state in deployment.replica_states)


def _of_pipelines(states: Mapping[str, ModelState]) -> dict[str, ModelState]:
    """Return the states of pipelines: each is as well as the least well of those that do its work."""
    found = {}
    for pipeline, parts in PIPELINES.items():
        for named in (str, tiny_of):
            known = [states[named(part)] for part in parts.values() if named(part) in states]
            if len(known) == len(parts):
                worst = max(known, key=lambda each: (each.failed, _WELL.index(each.state)))
                reason = worst.reason and f"{worst.application}: {worst.reason}"
                waits = [each.starts_in_s for each in known if each.starts_in_s is not None]
                found[named(pipeline)] = ModelState(
                    named(pipeline), worst.state, reason, worst.failed, worst.asleep, max(waits, default=None)
                )
    return found


def _public_reason(message: str) -> str:
    """Return why an application failed, without the tracebacks: our own words if they are among them."""
    found = re.findall(rf"{EnvironmentMissing.code}: (.+)", message)
    if re.search(rf"\b{WeightsMissing.code}: ", message):
        return "its weights are not on this server."
    return found[-1].strip() if found else "its model could not be started."


def _as_error(error: BaseException) -> AppError:
    """Return the AppError behind whatever the Ledger's handle raised; anything else means that it is away."""
    found = _app_error(error)
    if found is None:
        log.warning("ledger call failed", exc_info=error)
        return Unavailable("The ledger", 2)
    return found


def _app_error(error: BaseException) -> AppError | None:
    """Return our error out of Ray's wrapping: an instance of both its class and ours, with ours as the cause."""
    for candidate in (getattr(error, "cause", None), error):
        if isinstance(candidate, AppError):
            return candidate
    return None
