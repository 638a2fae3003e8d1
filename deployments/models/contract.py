"""What crosses the handle of a model application, and what a model family must offer.

Everything here is plain data that pickles: Ray carries it between processes. Errors are positional
dataclasses for the same reason (`kit.errors`), so they are raised with positional arguments.

    AppError
     +- ModelRefused    400   the input asks for what the model cannot do; trying again cannot help
     +- ModelCanceled   409   the caller went away; the work stopped at the next step
     +- ModelBusy       429   too many jobs wait at this replica; no work began
     +- WeightsMissing  503   the weights are not on this machine and could not be had
     +- ModelFailed     500   the pipeline raised; another attempt may work
         +- ModelBroken 500   the same, and this process can no longer compute at all
         +- TooLarge    500   the job alone does not fit into the memory; no attempt will work
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Self, runtime_checkable

from kit.errors import AppError
from kit.settings import Profile

TINY_NOTICE = "tiny profile - not a real result"
"""Said wherever a person can meet an output of random weights: on the file, inside it, in its facts."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """One of a job's media inputs, fetched. `content_type` was read from the bytes, not believed."""

    content_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One job's work. `input` is the caller's JSON object, which the family checks.

    `units_milli` is how much of the task's unit is paid for at most, in thousandths: no more may be made. `media`
    has the fetched file of each media input, under the input's name without its `Url` or `FileId`.
    """

    job_id: str
    task: str
    input: dict[str, Any]
    units_milli: int = 1000
    media: Mapping[str, InputFile] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Metrics:
    """What one job took. A server's own figures replace a family's, which knows nothing of the others in a batch.

    Units: `run_ms` is the time the job was at work. `busy_seconds` is its share of the time that the model worked:
    a batch's time is divided between those who are in it, so that the jobs' sum is the model's. `gpu_seconds` is the
    same on a whole GPU, and 0 on a CPU. `peak_memory_bytes` is the batch's peak on the GPU; on a CPU it is the peak
    of the process so far, because the system keeps no other figure. `batch_size`: how many jobs began together.
    """

    run_ms: int
    gpu_seconds: float
    peak_memory_bytes: int
    busy_seconds: float = 0.0
    batch_size: int = 1


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a running job is. `fraction` never falls within one attempt and ends at 1.

    `metrics`: what the job took so far, as the server knows it; the last one of a job that has no output counts.
    """

    fraction: float
    step: int
    steps: int
    metrics: Metrics | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Media:
    """One finished file. `facts` is public JSON: what a caller needs to make or judge the same file again.

    A picture's facts have `width` and `height`, a sound's `durationSeconds`, `sampleRate` and `channels`, a film's
    all of these.
    """

    content_type: str
    data: bytes
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Output:
    """A finished job: its files, what it took, and the name of the model that made it.

    `units_milli` is how much of the task's unit was made where that could only be known by making it; None: all
    that was quoted.
    """

    media: list[Media]
    metrics: Metrics
    model: str
    units_milli: int | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """Where a model's weights are: a directory, or a hub id with the revision to load (None: the newest).

    `profile` is the profile the weights belong to, which may differ from the one asked for: an application
    without small weights runs its tiny ones, and says so.
    """

    source: str
    revision: str | None
    profile: Profile
    model: str

    @property
    def directory(self) -> Path | None:
        """The weights' directory if they are on this machine."""
        path = Path(self.source)
        return path if path.is_dir() else None


@dataclass(frozen=True, slots=True)
class Placement:
    """What a replica may use. `cpu_offload` keeps idle parts of a model in main memory, for smaller GPUs."""

    device: Literal["cpu", "cuda"]
    cpu_threads: int
    cpu_offload: bool


OnProgress = Callable[[Progress], None]
IsCanceled = Callable[[], bool]


def _wait_for_the_others(_: Output | AppError) -> None:
    """Leave an outcome to the end of the call."""


@dataclass(frozen=True, slots=True)
class Member:
    """One job of a batch: its request, whom to tell of its progress, and whether its caller still wants it.

    `on_outcome` takes the outcome of a job that is done before its neighbours are, so that it need not wait for them.
    """

    request: GenerateRequest
    on_progress: OnProgress
    is_canceled: IsCanceled
    on_outcome: Callable[[Output | AppError], None] = _wait_for_the_others


class ModelFamily(Protocol):
    """One kind of pipeline. Its calls block; the server runs them in one thread, one at a time.

    `load` returns a family that is ready to generate, or raises `WeightsMissing`. `generate` looks at
    `is_canceled` between steps and raises `ModelCanceled`; it raises `ModelRefused` for an input that it
    cannot serve, before any computing. `build_tiny` fills an empty directory with seeded random weights for
    the same pipeline classes: the same seed and library versions give the same files.
    """

    @classmethod
    def load(cls, weights: Weights, placement: Placement) -> Self: ...

    def generate(
        self, request: GenerateRequest, on_progress: OnProgress, is_canceled: IsCanceled
    ) -> Output: ...

    @staticmethod
    def build_tiny(directory: Path, seed: int) -> None: ...


@runtime_checkable
class BatchingFamily(ModelFamily, Protocol):
    """A family whose pipeline gains from several jobs in one call.

    `batch_key` names what jobs must have in common to share a call, how long they take included; it raises
    `ModelRefused` for an input that cannot be served, and is quick: it runs on the server's loop. `generate_many` gets
    members of one key and returns an outcome for each, in their order; it may tell a member its own before, for good.
    It asks every member's `is_canceled` at each step, goes on for the others, and raises `ModelCanceled` when nobody
    is left. Whatever else it raises counts for all who have no outcome yet: the call is split and tried again for
    them. A job's output is the same in a batch and alone, up to the rounding of its device.
    """

    def batch_key(self, request: GenerateRequest) -> Hashable: ...

    def generate_many(self, members: Sequence[Member]) -> list[Output | AppError]: ...


def alone(family: BatchingFamily, member: Member) -> Output:
    """Return the output of a batch of one. Raises: its error."""
    [outcome] = family.generate_many([member])
    if isinstance(outcome, AppError):
        raise outcome
    return outcome


def progress_of_all(members: Sequence[Member]) -> OnProgress:
    """Return what tells all members of a step that they take together."""

    def tell(progress: Progress) -> None:
        for member in members:
            member.on_progress(progress)

    return tell


def all_canceled(members: Sequence[Member]) -> IsCanceled:
    """Return what tells whether nobody is left. Each member is asked each time: who has gone is let go at once."""
    return lambda: [member.is_canceled() for member in members].count(False) == 0


class SmallFamily(ModelFamily, Protocol):
    """A family that has small weights too: `build_small` makes an empty directory of what lies unpacked in another."""

    @staticmethod
    def build_small(unpacked: Path, directory: Path) -> None: ...


@dataclass
class ModelRefused(AppError):
    """The model cannot do what the input asks: the job fails at once and no attempt is repeated."""

    field: str
    problem: str
    code = "invalid_request"
    status = 400

    @property
    def message(self) -> str:
        return f"input.{self.field}: {self.problem}"

    @property
    def details(self) -> list[dict[str, str]]:
        return [{"field": f"input.{self.field}", "message": self.problem}]


@dataclass
class ModelCanceled(AppError):
    """The job was canceled; its work stopped and nothing was made."""

    code = "canceled"
    status = 409

    @property
    def message(self) -> str:
        return "The job was canceled."


@dataclass
class ModelBusy(AppError):
    """As many jobs as may wait are waiting at this replica. No work began: a job stays in the queue."""

    application: str
    wait_s: int
    code = "model_busy"
    status = 429
    retryable = True

    @property
    def message(self) -> str:
        return f"The {self.application} model has too much to do; try again in {self.wait_s} s."

    @property
    def retry_after_s(self) -> int:
        return self.wait_s


@dataclass
class WeightsMissing(AppError):
    """The weights are not here and could not be had; the text is for the operator."""

    what: str
    remedy: str
    code = "weights_missing"
    status = 503

    @property
    def message(self) -> str:
        return f"{self.what}: {self.remedy}"


@dataclass
class ModelFailed(AppError):
    """The pipeline raised. `reason` is public; the cause is in the replica's log under the job's id."""

    reason: str
    code = "model_failed"
    status = 500
    retryable = True

    @property
    def message(self) -> str:
        return self.reason


@dataclass
class ModelBroken(ModelFailed):
    """The pipeline raised and this process can no longer compute: the replica must be replaced."""


@dataclass
class TooLarge(ModelFailed):
    """The job alone needs more memory than there is. Another attempt would end alike; nothing is charged."""

    retryable = False
