"""A tiny Qwen3-TTS of random weights, with production's codec: 24 kHz, 12.5 tokens a second. Called seeded."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any, Final

_GROUPS: Final = 16
"""Codes to a token, as in production."""
_CODES: Final = 64
_SPECIAL_CODES: Final = 1024
"""The talker never samples its last 1,024 words but the end: with fewer of them there is nothing to sample from."""
_LOUDNESS: Final = 1e-4
"""Seen to bring the noise of these weights to the loudness of speech."""
_SPECIAL_TOKENS: Final = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<tts_pad>",
    "<tts_text_bos>",
    "<tts_text_eod>",
)
_SPEAKER_FIELDS: Final = frozenset(
    {
        "mel_dim",
        "enc_dim",
        "enc_channels",
        "enc_kernel_sizes",
        "enc_dilations",
        "enc_attention_channels",
        "enc_res2net_scale",
        "enc_se_channels",
        "sample_rate",
    }
)
"""What the package reads back of the speaker encoder's configuration; it writes more."""
_LANGUAGES: Final = (
    "chinese",
    "english",
    "french",
    "german",
    "italian",
    "japanese",
    "korean",
    "portuguese",
    "russian",
    "spanish",
)


def save(directory: Path, kind: str) -> None:
    """Save the weights of a variant (`voice_design`, `base`) with tokenizer and codec."""
    from qwen_tts.core.models.configuration_qwen3_tts import Qwen3TTSConfig
    from qwen_tts.core.models.modeling_qwen3_tts import Qwen3TTSForConditionalGeneration

    tokenizer = _tokenizer(directory)
    number = {name: tokenizer.convert_tokens_to_ids(name) for name in _SPECIAL_TOKENS}
    config = Qwen3TTSConfig(
        talker_config=_talker(len(tokenizer)),
        speaker_encoder_config={
            "enc_dim": 32,
            "enc_channels": [16, 16, 16, 16, 48],
            "enc_attention_channels": 8,
            "enc_res2net_scale": 2,
            "enc_se_channels": 8,
        },
        tokenizer_type="qwen3_tts_tokenizer_12hz",
        tts_model_size="tiny",
        tts_model_type=kind,
        im_start_token_id=number["<|im_start|>"],
        im_end_token_id=number["<|im_end|>"],
        tts_pad_token_id=number["<tts_pad>"],
        tts_bos_token_id=number["<tts_text_bos>"],
        tts_eos_token_id=number["<tts_text_eod>"],
    )
    Qwen3TTSForConditionalGeneration(config).eval().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    _write(directory / "processor_config.json", {"processor_class": "Qwen3TTSProcessor"})
    _write(
        directory / "preprocessor_config.json",
        {"feature_extractor_type": "", "processor_class": "Qwen3TTSProcessor"},
    )
    _write(directory / "generation_config.json", {"max_new_tokens": 64})
    written = json.loads((directory / "config.json").read_text())
    encoder = written["speaker_encoder_config"]
    written["speaker_encoder_config"] = {name: encoder[name] for name in encoder.keys() & _SPEAKER_FIELDS}
    _write(directory / "config.json", written)
    _save_codec(directory / "speech_tokenizer")


def _write(path: Path, facts: dict[str, Any]) -> None:
    path.write_text(json.dumps(facts, indent=1, sort_keys=True))


def _tokenizer(directory: Path) -> Any:
    """Return Qwen's tokenizer class with one token for each byte; this version of it reads its words from files."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2TokenizerFast  # type: ignore[attr-defined]  # of the environment's version

    words, merges = directory / "vocab.json", directory / "merges.txt"
    _write(words, {token: number for number, token in enumerate(sorted(ByteLevel.alphabet()))})
    merges.write_text("#version: 0.2\n")
    return Qwen2TokenizerFast(
        vocab_file=str(words),
        merges_file=str(merges),
        unk_token=None,
        eos_token="<|im_end|>",  # noqa: S106  # a token of text
        pad_token="<|endoftext|>",  # noqa: S106
        additional_special_tokens=list(_SPECIAL_TOKENS),
    )


def _talker(text_words: int) -> dict[str, Any]:
    layer = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "num_code_groups": _GROUPS,
    }
    return {
        **layer,
        "vocab_size": _CODES + _SPECIAL_CODES,
        "num_hidden_layers": 2,
        "text_hidden_size": 32,
        "text_vocab_size": text_words,
        "rope_theta": 1_000_000,
        "rope_scaling": {
            "interleaved": True,
            "mrope_section": [4, 2, 2],
            "rope_type": "default",
            "type": "default",
        },
        "codec_pad_id": _CODES,
        "codec_bos_id": _CODES + 1,
        "codec_eos_token_id": _CODES + 2,
        "codec_think_id": _CODES + 3,
        "codec_nothink_id": _CODES + 4,
        "codec_think_bos_id": _CODES + 5,
        "codec_think_eos_id": _CODES + 6,
        "codec_language_id": {name: _CODES + 7 + place for place, name in enumerate(_LANGUAGES)},
        "spk_id": {},
        "spk_is_dialect": {},
        "code_predictor_config": {**layer, "vocab_size": _CODES, "num_hidden_layers": 1},
    }


def _save_codec(directory: Path) -> None:
    import torch
    from qwen_tts.core.tokenizer_12hz.configuration_qwen3_tts_tokenizer_v2 import Qwen3TTSTokenizerV2Config
    from qwen_tts.core.tokenizer_12hz.modeling_qwen3_tts_tokenizer_v2 import Qwen3TTSTokenizerV2Model
    from transformers import EncodecFeatureExtractor

    encoder = {
        "sampling_rate": 24000,
        "frame_rate": 12.5,
        "hidden_size": 32,
        "num_filters": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 64,
        "codebook_size": _CODES,
        "codebook_dim": 16,
        "vector_quantization_hidden_dimension": 16,
        "num_quantizers": 32,
        "num_semantic_quantizers": 1,
        "upsampling_ratios": [8, 6, 5, 4],
        "upsample_groups": 32,
    }
    decoder = {
        "codebook_size": _CODES,
        "codebook_dim": 32,
        "hidden_size": 32,
        "latent_dim": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": 72,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_quantizers": _GROUPS,
        "upsample_rates": [8, 5, 4, 3],  # with the two halvings below, 1,920 samples to a token
        "upsampling_ratios": [2, 2],
        "decoder_dim": 64,
        "max_position_embeddings": 8000,
    }
    config = Qwen3TTSTokenizerV2Config(
        encoder_config=encoder,
        decoder_config=decoder,
        encoder_valid_num_quantizers=_GROUPS,
        input_sample_rate=24000,
        output_sample_rate=24000,
        decode_upsample_rate=1920,
        encode_downsample_rate=1920,
    )
    model = Qwen3TTSTokenizerV2Model(config).eval()
    filters = [
        each
        for each in model.decoder.modules()
        if isinstance(each, (torch.nn.Conv1d, torch.nn.ConvTranspose1d))
    ]
    with torch.no_grad():
        for each in filters:
            torch.nn.init.kaiming_normal_(each.weight)  # or every layer is fainter than the one before
        filters[-1].weight.mul_(_LOUDNESS)
        for name, tensor in chain(model.named_parameters(), model.named_buffers()):
            if name.endswith(("embedding_sum", "embed_sum")):
                tensor.normal_()  # a new codebook is all zeros: every code would sound the same, like nothing
    model.save_pretrained(directory)
    EncodecFeatureExtractor(feature_size=1, sampling_rate=24000, padding_value=0.0).save_pretrained(directory)
