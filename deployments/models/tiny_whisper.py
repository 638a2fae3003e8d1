"""Whisper of random weights: every mark of the real one, a hundred thousandth of its size."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from gateway.task_schemas import WHISPER_LANGUAGES


def save(directory: Path) -> None:
    """Save a model of random weights with Whisper's own marks of languages and times, as CTranslate2 reads it."""
    import transformers
    from ctranslate2.converters import TransformersConverter

    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="farebox-whisper-") as place:
        _save_for_transformers(Path(place))
        made = Path(place) / "converted"
        TransformersConverter(place, copy_files=["tokenizer.json"]).convert(str(made))
        shutil.copytree(made, directory, dirs_exist_ok=True)


def _save_for_transformers(directory: Path) -> None:
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
        # Noise of letters can be looked at in a subtitle; control characters, marks and times would be taken out of it.
        suppress_tokens=[
            *(number[word] for word in ByteLevel.alphabet() if not word.isascii()),
            *(number[word] for word in (*marks, *times)),
        ],
    )
    model.save_pretrained(directory)
    WhisperProcessor(WhisperFeatureExtractor(feature_size=80), tokenizer).save_pretrained(directory)
