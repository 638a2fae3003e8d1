"""Tiny, seeded versions of the parts that the Qwen families share. They are called inside a seeded context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_SPECIAL_TOKENS: Final = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Qwen2.5-VL's own, in its order; the tiny tokenizer puts them after one token for each byte."""

_CHAT_TEMPLATE: Final = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen's form of a conversation, without its tools and thinking."""


def image_parts() -> dict[str, Any]:
    """Return the parts of a Qwen-Image pipeline: 3.5 MB, production's ratios of pixels, latents and patches."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImageTransformer2DModel,
    )

    latent_channels, hidden = 4, 16
    tokens = tokenizer()
    encoder = text_encoder(tokens.get_vocab(), hidden)
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=latent_channels * 4,  # a patch is 2 x 2 latents
        out_channels=latent_channels,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=hidden,
        axes_dims_rope=(8, 4, 4),  # together one head
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=latent_channels,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],  # three halvings: 8 pixels to a latent, as in production
        latents_mean=[0.0] * latent_channels,
        latents_std=[1.0] * latent_channels,
    )
    # Production's schedule, so that the tiny profile meets its limits too.
    scheduler = FlowMatchEulerDiscreteScheduler(
        base_image_seq_len=256,
        base_shift=0.5,
        max_image_seq_len=8192,
        max_shift=0.9,
        shift=1.0,
        shift_terminal=0.02,
        time_shift_type="exponential",
        use_dynamic_shifting=True,
    )
    return {
        "scheduler": scheduler,
        "vae": vae,
        "text_encoder": encoder,
        "tokenizer": tokens,
        "transformer": transformer,
    }


def tokenizer() -> Any:
    """Return Qwen's tokenizer class with one token for each byte and no merges."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    tokens = (*sorted(ByteLevel.alphabet()), *_SPECIAL_TOKENS)
    end_of_text, _, end_of_turn, *_ = _SPECIAL_TOKENS
    made = Qwen2Tokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[],
        extra_special_tokens=list(_SPECIAL_TOKENS[1:]),
        unk_token=end_of_text,
        eos_token=end_of_turn,
        pad_token=end_of_text,
    )
    made.chat_template = _CHAT_TEMPLATE
    return made


def text_encoder(vocabulary: Mapping[str, int], hidden: int) -> Any:
    """Return Qwen2.5-VL of two small layers; every special id must be one of the tokenizer's."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ends = {"bos_token_id": vocabulary["<|endoftext|>"], "eos_token_id": vocabulary["<|im_end|>"]}
    text_config = {
        "vocab_size": len(vocabulary),
        "hidden_size": hidden,
        "intermediate_size": hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        # The sections cover half of a head's 8 channels.
        "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6},
        **ends,
    }
    vision_config = {
        "depth": 2,
        "hidden_size": hidden,
        "intermediate_size": hidden,
        "num_heads": 2,
        "out_hidden_size": hidden,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(
        text_config=text_config,
        vision_config=vision_config,
        image_token_id=vocabulary["<|image_pad|>"],
        video_token_id=vocabulary["<|video_pad|>"],
        vision_start_token_id=vocabulary["<|vision_start|>"],
        vision_end_token_id=vocabulary["<|vision_end|>"],
        **ends,
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()
