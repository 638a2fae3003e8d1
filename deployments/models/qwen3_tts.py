"""Qwen3-TTS: speech in a voice that a text describes, or in the voice of a recording, through the `qwen_tts` package.

It runs in the environment `speech`: the package pins an older transformers than the other families use.

Invariants:
- No more seconds are made than were paid for; what was made is told in whole seconds begun.
- The same seed, settings and weights give the same file on the same kind of device: each job draws from a source of its
  own, also in a batch. There the sums come out with other roundings, so that a draw at the edge between two tokens may
  fall to the other side.
- A canceled job stops at its next token, which is 80 ms of speech.
- A file from tiny weights says so in its metadata and facts, as the manifest of the weights decides.

Source: https://github.com/QwenLM/Qwen3-TTS (calls, languages, 12.5 tokens a second at 24 kHz).
"""

from __future__ import annotations

import importlib.util
import sys
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from deployments.models import fields, loading, sound
from deployments.models.contract import (
    GenerateRequest,
    IsCanceled,
    Member,
    ModelCanceled,
    ModelFailed,
    ModelRefused,
    OnProgress,
    Output,
    Placement,
    Progress,
    Weights,
    alone,
)
from deployments.models.environments import EnvironmentMissing
from deployments.models.meter import Meter
from kit.errors import AppError

if TYPE_CHECKING:
    import numpy as np

LANGUAGES: Final = (
    "Auto",
    "Chinese",
    "English",
    "French",
    "German",
    "Italian",
    "Japanese",
    "Korean",
    "Portuguese",
    "Russian",
    "Spanish",
)
"""What the model card lists; the model tells the language of the text by itself at 'Auto'."""
TOKENS_PER_S: Final = 12.5
"""The codec's own rate. Source: the model's name and card."""
RATE: Final = 24_000
"""Samples a second in both directions."""
TINY_TOKENS: Final = 25
"""Two seconds, for which a laptop computes about as long: random weights would never end by themselves."""
MAX_TEXT_CHARS: Final = 4000
MAX_VOICE_CHARS: Final = 1000
PLAIN_VOICE: Final = "A clear, natural voice at a calm pace."
"""What the model is told where the caller describes no voice."""
MIN_REFERENCE_S: Final = 1.0
"""A shorter recording is too little of a voice."""
MAX_REFERENCE_S: Final = 60.0
"""The model card asks for three seconds and more; what is beyond a minute adds nothing and takes long to read."""


@dataclass(frozen=True, slots=True)
class SpeechOrder:
    """A checked input of either task with every default filled in. `tokens` is the most that may be made."""

    text: str
    language: str
    seed: int
    output_format: str
    tokens: int

    @classmethod
    def read(cls, request: GenerateRequest, known: frozenset[str], *, tiny: bool) -> Self:
        """Check a request's input. Raises: ModelRefused, naming the field."""
        given = request.input
        fields.refuse_unknown(given, request.task, known)
        text = fields.text(given, "text", "", MAX_TEXT_CHARS)
        if not text.strip():
            raise ModelRefused("text", "write what is to be said")
        paid_tokens = int(request.units_milli * TOKENS_PER_S / 1000)
        return cls(
            text=text,
            language=fields.choice(given, "language", LANGUAGES, "Auto"),
            seed=fields.seed(request),
            output_format=fields.choice(given, "outputFormat", tuple(sound.CONTENT_TYPES), "mp3"),
            tokens=min(paid_tokens, TINY_TOKENS) if tiny else paid_tokens,
        )


class _Voice(ABC):
    """The loaded model. One call at a time: its jobs' progress and cancellation are hooked into the model itself."""

    kind: ClassVar[str]
    """The variant of the weights, in the package's own word."""
    known: ClassVar[frozenset[str]]

    def __init__(self, model: Any, weights: Weights, placement: Placement, *, tiny: bool) -> None:
        self._model = model  # Any: the package's classes are untyped
        self._weights = weights
        self._placement = placement
        self._tiny = tiny

    @classmethod
    def load(cls, weights: Weights, placement: Placement) -> Self:
        """Load the model from a directory or the hub. Raises: WeightsMissing, EnvironmentMissing, for the operator."""
        loading.require_weights(weights, placement)
        package = _package()
        try:
            source = weights.source
            if weights.directory is None:
                from huggingface_hub import snapshot_download

                # The package passes the revision to the model alone, and would read its other parts at the newest.
                source = snapshot_download(weights.source, revision=weights.revision)
            model = package.Qwen3TTSModel.from_pretrained(
                source,
                dtype=loading.dtype(placement),
                device_map=placement.device,
                attn_implementation="sdpa" if placement.device == "cuda" else "eager",
            )
        except OSError as error:
            raise loading.weights_unusable(weights, error) from error
        return cls(model, weights, placement, tiny=loading.is_tiny(weights))

    @staticmethod
    @abstractmethod
    def build_tiny(directory: Path, seed: int) -> None:
        """Fill an empty directory with the variant's seeded random weights."""

    def generate(self, request: GenerateRequest, on_progress: OnProgress, is_canceled: IsCanceled) -> Output:
        """Speak one text; blocks until it is done.

        Raises: ModelRefused before any computing; ModelCanceled at the token after the cancellation;
        ModelFailed if there is no sound.
        """
        return alone(self, Member(request, on_progress, is_canceled))

    def batch_key(self, request: GenerateRequest) -> Hashable:
        """Return about how long the speech is, since a call lasts as long as its longest, and the manner of the call.

        Raises: ModelRefused.
        """
        order = SpeechOrder.read(request, self.known, tiny=self._tiny)
        return order.tokens.bit_length(), self._manner(request)

    def generate_many(self, members: Sequence[Member]) -> list[Output | AppError]:
        """Speak the text of each member in one call of the model; blocks until all are done.

        Raises: ModelCanceled at the token after the last cancellation; ModelRefused for a member's recording.
        """
        orders = [SpeechOrder.read(member.request, self.known, tiny=self._tiny) for member in members]
        voices = self._voices([member.request for member in members])
        meter = Meter(self._placement.device)
        sounds = self._sample(orders, members, voices)
        metrics = meter.read()
        outcomes: list[Output | AppError] = []
        for order, samples in zip(orders, sounds, strict=True):
            facts = {
                **loading.origin(self._weights, tiny=self._tiny),
                "language": order.language,
                "seed": order.seed,
            }
            begun_s = -(-len(samples) // RATE)
            try:
                media = sound.finished(samples[None], RATE, order.output_format, facts)
            except AppError as error:
                outcomes.append(error)
            else:
                outcomes.append(Output([media], metrics, self._weights.model, begun_s * 1000))
        return outcomes

    @abstractmethod
    def _manner(self, request: GenerateRequest) -> Hashable:
        """Return what is said once for all of a call."""

    @abstractmethod
    def _voices(self, requests: Sequence[GenerateRequest]) -> dict[str, Any]:
        """Return what the package's call is told of the voices of jobs. Raises: ModelRefused."""

    @abstractmethod
    def _speak(self, **settings: Any) -> Any:
        """Call the package."""

    def _sample(
        self, orders: Sequence[SpeechOrder], members: Sequence[Member], voices: dict[str, Any]
    ) -> list[np.ndarray[Any, Any]]:
        """Make the speech, reporting and looking for cancellations at each token.

        Shapes: (samples,) each, float32 in -1..1.
        """
        import torch

        for order, member in zip(orders, members, strict=True):
            member.on_progress(Progress(0.0, 0, order.tokens))
        talker = self._model.model.talker
        with _at_each_token(talker, orders, members, self._placement.device), torch.inference_mode():
            sounds, rate = self._speak(
                text=[order.text for order in orders],
                language=[order.language for order in orders],
                max_new_tokens=max(order.tokens for order in orders),
                **voices,
            )
        if rate != RATE:
            raise ModelFailed("The model's sound has another rate than its card says.")
        for order, member in zip(orders, members, strict=True):
            member.on_progress(Progress(1.0, order.tokens, order.tokens))
        return list(sounds)


class DesignedVoice(_Voice):
    """`audio.speak`: the voice is one that a text describes."""

    kind = "voice_design"
    known = frozenset({"text", "voiceDescription", "language", "seed", "outputFormat"})

    def _manner(self, request: GenerateRequest) -> Hashable:
        fields.text(request.input, "voiceDescription", "", MAX_VOICE_CHARS)
        return None

    def _voices(self, requests: Sequence[GenerateRequest]) -> dict[str, Any]:
        described = [
            fields.text(each.input, "voiceDescription", "", MAX_VOICE_CHARS).strip() for each in requests
        ]
        return {"instruct": [voice or PLAIN_VOICE for voice in described]}

    def _speak(self, **settings: Any) -> Any:
        return self._model.generate_voice_design(**settings)

    @staticmethod
    def build_tiny(directory: Path, seed: int) -> None:
        """Save a model of random weights, with production's codec ratios."""
        _build_tiny(directory, seed, DesignedVoice.kind)


class ClonedVoice(_Voice):
    """`voice.clone`: the voice is that of a recording. With the recording's text its manner of speaking comes along."""

    kind = "base"
    known = frozenset(
        {
            "text",
            "referenceAudioUrl",
            "referenceAudioFileId",
            "referenceText",
            "language",
            "seed",
            "outputFormat",
        }
    )

    def _manner(self, request: GenerateRequest) -> Hashable:
        fields.file(request, "referenceAudio")
        return self._words(request) is None

    def _voices(self, requests: Sequence[GenerateRequest]) -> dict[str, Any]:
        words = [self._words(each) for each in requests]
        return {
            "ref_audio": [(self._recording(each), RATE) for each in requests],
            "ref_text": words,
            "x_vector_only_mode": [each is None for each in words],
        }

    def _speak(self, **settings: Any) -> Any:
        return self._model.generate_voice_clone(**settings)

    @staticmethod
    def _words(request: GenerateRequest) -> str | None:
        return fields.text(request.input, "referenceText", "", MAX_TEXT_CHARS).strip() or None

    @staticmethod
    def _recording(request: GenerateRequest) -> np.ndarray[Any, Any]:
        samples = sound.decode(
            fields.file(request, "referenceAudio"), "referenceAudioUrl", RATE, MAX_REFERENCE_S
        )
        if len(samples) < MIN_REFERENCE_S * RATE:
            raise ModelRefused("referenceAudioUrl", f"is shorter than {MIN_REFERENCE_S:g} s")
        return samples

    @staticmethod
    def build_tiny(directory: Path, seed: int) -> None:
        """Save a model of random weights, with production's codec ratios."""
        _build_tiny(directory, seed, ClonedVoice.kind)


def _build_tiny(directory: Path, seed: int, kind: str) -> None:
    _package()
    import torch

    from deployments.models import tiny_qwen3_tts

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tiny_qwen3_tts.save(directory, kind)


@contextmanager
def _at_each_token(
    talker: Any, orders: Sequence[SpeechOrder], members: Sequence[Member], device: str
) -> Iterator[None]:
    """Draw each job's tokens from its own source, and report and look for cancellations at each of them.

    The package never calls back and draws from the process's own randomness, for all jobs of a call at once. So its
    draws are taken over: a job that has as many tokens as were paid for, or that nobody wants any more, gets the
    token of the end, and its neighbours go on.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    sources = [torch.Generator(device).manual_seed(order.seed) for order in orders]
    end = talker.config.codec_eos_token_id
    over = [False] * len(orders)
    begun, inside = 0, False

    def before(*_: Any) -> None:
        nonlocal begun, inside
        inside = True
        gone = [member.is_canceled() for member in members]
        if all(gone):
            raise ModelCanceled
        for place, (order, member) in enumerate(zip(orders, members, strict=True)):
            over[place] |= gone[place] or begun + 1 >= order.tokens
            if 0 < begun < order.tokens:
                member.on_progress(Progress(begun / order.tokens, begun, order.tokens))
        begun += 1

    def after(*_: Any) -> None:
        nonlocal inside
        inside = False

    class OwnSources(TorchFunctionMode):
        """Sees what torch is asked for in this thread alone."""

        def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is not torch.multinomial:
                return function(*args, **(kwargs or {}))
            chances = args[0]
            drawn = [
                torch.multinomial(row[None], 1, generator=source)
                for row, source in zip(chances, sources, strict=True)
            ]
            tokens = torch.cat(drawn)
            if not inside:  # the model's own token, and not one of the codebooks below it
                tokens[torch.tensor(over, device=tokens.device)] = end
            return tokens

    hooks = [talker.register_forward_pre_hook(before), talker.register_forward_hook(after)]
    try:
        with OwnSources():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _package() -> Any:
    """Import `qwen_tts`. Raises: EnvironmentMissing where it is not installed, or does not import."""
    if importlib.util.find_spec("torchaudio") is None:
        _stand_in_for_torchaudio()
    try:
        import qwen_tts
    except ImportError as error:
        raise EnvironmentMissing("speech", f"does not work ({type(error).__name__})") from error
    return qwen_tts


def _stand_in_for_torchaudio() -> None:
    """Let the package import: it names torchaudio for its 25 Hz codec, which none of our weights has."""
    names = ("torchaudio", "torchaudio.compliance", "torchaudio.compliance.kaldi")
    for name in names:
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
