"""Whisper: what is said in a recording, with the times at which it is said, through transformers.

Invariants:
- No recording is longer than what was paid for; its length in minutes is what is charged.
- The same recording and weights give the same transcript: the likeliest words are taken, nothing is drawn.
- Times rise, lie within the recording, and are the same in all files; each segment lasts.
- A transcript from tiny weights says so in its facts and files, as the manifest of the weights decides.
- A canceled job stops at its next half minute of sound.

Source: https://huggingface.co/openai/whisper-large-v3-turbo (windows of 30 s at 16 kHz, languages).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from deployments.models import fields, loading, sound
from deployments.models.contract import (
    GenerateRequest,
    IsCanceled,
    Media,
    ModelCanceled,
    OnProgress,
    Output,
    Placement,
    Progress,
    Weights,
)
from deployments.models.meter import Meter
from gateway.task_schemas import WHISPER_LANGUAGES

if TYPE_CHECKING:
    import numpy as np

RATE: Final = 16_000
WINDOW_S: Final = 30
LEAST_STEP_S: Final = 15
"""A window is heard again from its last words on only if they are in its second half: the work at most doubles."""
TINY_WORDS: Final = 28
"""Random weights would never end a window by themselves."""
WINDOW_WORDS: Final = 448
"""What the decoder has room for, its own marks included. Source: the model's configuration."""

FIELDS: Final = frozenset({"audioUrl", "audioFileId", "language", "maxMinutes"})


@dataclass(frozen=True, slots=True)
class Segment:
    """Some words and when they are said. Units: milliseconds from the beginning."""

    start_ms: int
    end_ms: int
    text: str


class Whisper:
    """The loaded model. One job at a time."""

    def __init__(
        self, model: Any, processor: Any, weights: Weights, placement: Placement, *, tiny: bool
    ) -> None:
        self._model = model  # Any: transformers leaves its classes untyped
        self._processor = processor
        self._weights = weights
        self._placement = placement
        self._tiny = tiny

    @classmethod
    def load(cls, weights: Weights, placement: Placement) -> Self:
        """Load the model from a directory or the hub. Raises: WeightsMissing, for the operator."""
        loading.require_weights(weights, placement)
        from transformers import WhisperForConditionalGeneration, WhisperProcessor

        local = weights.directory is not None
        try:
            model = WhisperForConditionalGeneration.from_pretrained(
                weights.source,
                revision=weights.revision,
                dtype=loading.dtype(placement),
                use_safetensors=True,
                local_files_only=local,
            )
            processor = WhisperProcessor.from_pretrained(
                weights.source, revision=weights.revision, local_files_only=local
            )
        except OSError as error:
            raise loading.weights_unusable(weights, error) from error
        model.to(placement.device)
        return cls(model, processor, weights, placement, tiny=loading.is_tiny(weights))

    def generate(self, request: GenerateRequest, on_progress: OnProgress, is_canceled: IsCanceled) -> Output:
        """Write down one recording; blocks until it is done.

        Raises: ModelRefused before any computing; ModelCanceled at the window after the cancellation.
        """
        fields.refuse_unknown(request.input, request.task, FIELDS)
        language = fields.choice(request.input, "language", WHISPER_LANGUAGES, "") or None
        paid_s = request.units_milli * 60 / 1000
        samples = sound.decode(fields.file(request, "audio"), "audioUrl", RATE, paid_s)
        meter = Meter(self._placement.device)
        segments = self._listen(samples, language, on_progress, is_canceled)
        metrics = meter.read()
        facts = {
            **loading.origin(self._weights, tiny=self._tiny),
            "language": language or "auto",
            "durationSeconds": round(len(samples) / RATE, 3),
        }
        made_milli = -(-len(samples) * 1000 // (60 * RATE))
        return Output(_files(segments, facts), metrics, self._weights.model, made_milli)

    def _listen(
        self,
        samples: np.ndarray[Any, Any],
        language: str | None,
        on_progress: OnProgress,
        is_canceled: IsCanceled,
    ) -> list[Segment]:
        """Return what is said, window by window, reporting and looking for a cancellation between them.

        A window's last words may be cut off by its end: they are heard again at the beginning of the next.
        """
        length_s = -(-len(samples) // RATE)
        segments: list[Segment] = []
        at = 0
        while at < len(samples):
            if is_canceled():
                raise ModelCanceled
            on_progress(Progress(at / len(samples), at // RATE, length_s))
            window = samples[at : at + WINDOW_S * RATE]
            heard = self._hear(window, language)
            step = len(window)
            if at + step < len(samples) and len(heard) > 1 and heard[-1].start_ms >= LEAST_STEP_S * 1000:
                step = heard.pop().start_ms * RATE // 1000
            from_ms = at * 1000 // RATE
            segments += [Segment(from_ms + s.start_ms, from_ms + s.end_ms, s.text) for s in heard]
            at += step
        on_progress(Progress(1.0, length_s, length_s))
        return _rising(segments)

    def _hear(self, window: np.ndarray[Any, Any], language: str | None) -> list[Segment]:
        """Return what is said in one window, with times from its beginning."""
        import torch

        heard = self._processor(window, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True)
        with torch.inference_mode():
            made = self._model.generate(
                heard.input_features.to(self._placement.device, loading.dtype(self._placement)),
                attention_mask=heard.attention_mask.to(self._placement.device),
                language=language,
                task="transcribe",
                return_timestamps=True,
                return_segments=True,
                do_sample=False,
                num_beams=1,
                max_length=TINY_WORDS if self._tiny else WINDOW_WORDS,
            )
        end_ms = len(window) * 1000 // RATE
        found = []
        for part in made["segments"][0]:
            if text := _one_line(self._processor.tokenizer.decode(part["tokens"], skip_special_tokens=True)):
                start_ms, end_of_it_ms = (round(float(part[edge]) * 1000) for edge in ("start", "end"))
                found.append(Segment(min(end_ms, start_ms), min(end_ms, end_of_it_ms), text))
        return found

    @staticmethod
    def build_tiny(directory: Path, seed: int) -> None:
        """Save a model of random weights with Whisper's own marks of languages and times."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _save_tiny(directory)


def _one_line(text: str) -> str:
    """Return a segment's words without what would end a subtitle's block or look like its times."""
    printed = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(printed.replace("\ufffd", "").replace("-->", "→").split())


def _rising(segments: Sequence[Segment]) -> list[Segment]:
    """Return segments that last and do not overlap: a model may err, players of subtitles do not forgive it.

    The words of one that would not last go to the one before.
    """
    risen: list[Segment] = []
    for segment in segments:
        start_ms = max(risen[-1].end_ms if risen else 0, segment.start_ms)
        if segment.end_ms > start_ms:
            risen.append(Segment(start_ms, segment.end_ms, segment.text))
        elif risen:
            last = risen[-1]
            risen[-1] = Segment(last.start_ms, last.end_ms, f"{last.text} {segment.text}")
    return risen


def _files(segments: Sequence[Segment], facts: dict[str, Any]) -> list[Media]:
    """Return the transcript as JSON, and as subtitles in both formats that players read.

    Source: WebVTT (W3C); SubRip has no standard, its times have commas.
    """
    text = " ".join(segment.text for segment in segments)
    whole = {
        **facts,
        "text": text,
        "segments": [
            {"start": segment.start_ms / 1000, "end": segment.end_ms / 1000, "text": segment.text}
            for segment in segments
        ],
    }
    srt = "".join(
        f"{number}\n{_clock(s.start_ms, ',')} --> {_clock(s.end_ms, ',')}\n{s.text}\n\n"
        for number, s in enumerate(segments, 1)
    )
    notice = f"NOTE {facts['notice']}\n\n" if "notice" in facts else ""
    vtt = f"WEBVTT\n\n{notice}" + "".join(
        f"{_clock(s.start_ms, '.')} --> {_clock(s.end_ms, '.')}\n{_escaped(s.text)}\n\n" for s in segments
    )
    return [
        Media("application/json", json.dumps(whole, ensure_ascii=False).encode(), {**facts, "text": text}),
        Media("application/x-subrip", srt.encode(), facts),
        Media("text/vtt", vtt.encode(), facts),
    ]


def _clock(at_ms: int, point: str) -> str:
    """Write a time as subtitles do: hours, minutes, seconds, milliseconds."""
    seconds, milli = divmod(at_ms, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{point}{milli:03}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _save_tiny(directory: Path) -> None:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    languages = [f"<|{code}|>" for code in WHISPER_LANGUAGES]
    end, start = "<|endoftext|>", "<|startoftranscript|>"
    marks = [start, *languages, "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>"]
    marks += ["<|nospeech|>", "<|notimestamps|>"]
    times = [f"<|{place * 0.02:.2f}|>" for place in range(1501)]
    words = (*sorted(ByteLevel.alphabet()), end, *marks, *times)
    number = {word: place for place, word in enumerate(words)}
    tokenizer = WhisperTokenizer(
        vocab=number, merges=[], language="en", task="transcribe", extra_special_tokens=marks
    )
    tokenizer.add_tokens(times)
    config = WhisperConfig(
        vocab_size=len(words),
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_mel_bins=80,
        max_target_positions=448,
        bos_token_id=number[end],
        eos_token_id=number[end],
        pad_token_id=number[end],
        decoder_start_token_id=number[start],
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig(
        bos_token_id=number[end],
        eos_token_id=number[end],
        pad_token_id=number[end],
        decoder_start_token_id=number[start],
        is_multilingual=True,
        max_length=448,
        no_timestamps_token_id=number["<|notimestamps|>"],
        prev_sot_token_id=number["<|startofprev|>"],
        lang_to_id={mark: number[mark] for mark in languages},
        task_to_id={"transcribe": number["<|transcribe|>"], "translate": number["<|translate|>"]},
        return_timestamps=False,
        alignment_heads=[[0, 0], [1, 0]],
        # Noise of letters can be looked at in a subtitle; control characters and marks would be taken out of it.
        suppress_tokens=[
            number[word] for word in (*ByteLevel.alphabet(), *marks) if word in marks or not word.isascii()
        ],
    )
    model.save_pretrained(directory)
    WhisperProcessor(WhisperFeatureExtractor(feature_size=80), tokenizer).save_pretrained(directory)
