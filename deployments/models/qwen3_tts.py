"""Qwen3-TTS: speech in a voice that a text describes, or in the voice of a recording, through the `qwen_tts` package.

It runs in the environment `speech`: the package pins an older transformers than the other families use.

Invariants:
- No more seconds are made than were paid for; what was made is told in whole seconds begun.
- The same seed, settings and weights give the same file on the same kind of device.
- A canceled job stops at its next token, which is 80 ms of speech.
- A file from tiny weights says so in its metadata and facts, as the manifest of the weights decides.

Source: https://github.com/QwenLM/Qwen3-TTS (calls, languages, 12.5 tokens a second at 24 kHz).
"""

from __future__ import annotations

import importlib.util
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
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
    ModelCanceled,
    ModelFailed,
    ModelRefused,
    OnProgress,
    Output,
    Placement,
    Progress,
    Weights,
)
from deployments.models.environments import EnvironmentMissing
from deployments.models.meter import Meter

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
    """The loaded model. One job at a time: a job's progress and cancellation are hooked into the model itself."""

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

    def generate(self, request: GenerateRequest, on_progress: OnProgress, is_canceled: IsCanceled) -> Output:
        """Speak one text; blocks until it is done.

        Raises: ModelRefused before any computing; ModelCanceled at the token after the cancellation;
        ModelFailed if there is no sound.
        """
        order = SpeechOrder.read(request, self.known, tiny=self._tiny)
        speak = self._speaker(request, order)
        meter = Meter(self._placement.device)
        samples = self._sample(order, speak, on_progress, is_canceled)
        facts = {
            **loading.origin(self._weights, tiny=self._tiny),
            "language": order.language,
            "seed": order.seed,
        }
        media = sound.finished(samples[None], RATE, order.output_format, facts)
        begun_s = -(-len(samples) // RATE)
        return Output([media], meter.read(), self._weights.model, begun_s * 1000)

    @abstractmethod
    def _speaker(self, request: GenerateRequest, order: SpeechOrder) -> Callable[..., Any]:
        """Return the package's call for a job, its settings of sampling still open. Raises: ModelRefused."""

    def _sample(
        self,
        order: SpeechOrder,
        speak: Callable[..., Any],
        on_progress: OnProgress,
        is_canceled: IsCanceled,
    ) -> np.ndarray[Any, Any]:
        """Make the speech, reporting and looking for a cancellation at each token.

        Shapes: (samples,), float32 in -1..1.
        """
        import torch

        devices = [torch.cuda.current_device()] if self._placement.device == "cuda" else []
        on_progress(Progress(0.0, 0, order.tokens))
        with (
            _at_each_token(self._model.model.talker, order.tokens, on_progress, is_canceled),
            torch.random.fork_rng(devices=devices),  # the package samples from the process's own randomness
            torch.inference_mode(),
        ):
            torch.manual_seed(order.seed)
            sounds, rate = speak(text=order.text, language=order.language, max_new_tokens=order.tokens)
        if rate != RATE:
            raise ModelFailed("The model's sound has another rate than its card says.")
        samples: np.ndarray[Any, Any] = sounds[0]
        on_progress(Progress(1.0, order.tokens, order.tokens))
        return samples


class DesignedVoice(_Voice):
    """`audio.speak`: the voice is one that a text describes."""

    kind = "voice_design"
    known = frozenset({"text", "voiceDescription", "language", "seed", "outputFormat"})

    def _speaker(self, request: GenerateRequest, order: SpeechOrder) -> Callable[..., Any]:  # noqa: ARG002
        voice = fields.text(request.input, "voiceDescription", "", MAX_VOICE_CHARS).strip() or PLAIN_VOICE
        return lambda **settings: self._model.generate_voice_design(instruct=voice, **settings)

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

    def _speaker(self, request: GenerateRequest, order: SpeechOrder) -> Callable[..., Any]:  # noqa: ARG002
        file = fields.file(request, "referenceAudio")
        samples = sound.decode(file, "referenceAudioUrl", RATE, MAX_REFERENCE_S)
        if len(samples) < MIN_REFERENCE_S * RATE:
            raise ModelRefused("referenceAudioUrl", f"is shorter than {MIN_REFERENCE_S:g} s")
        words = fields.text(request.input, "referenceText", "", MAX_TEXT_CHARS).strip() or None
        return lambda **settings: self._model.generate_voice_clone(
            ref_audio=(samples, RATE), ref_text=words, x_vector_only_mode=words is None, **settings
        )

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
    talker: Any, tokens: int, on_progress: OnProgress, is_canceled: IsCanceled
) -> Iterator[None]:
    """Report and look for a cancellation whenever the model begins a token: the package itself never calls back."""
    begun = 0

    def before(*_: Any) -> None:
        nonlocal begun
        if is_canceled():
            raise ModelCanceled
        if 0 < begun < tokens:
            on_progress(Progress(begun / tokens, begun, tokens))
        begun += 1

    hook = talker.register_forward_pre_hook(before)
    try:
        yield
    finally:
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
