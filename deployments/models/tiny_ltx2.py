"""A tiny LTX-2 of random weights, with production's ratios: 32 pixels and 8 frames to a latent. Called seeded."""

from __future__ import annotations

from typing import Any, Final

_HIDDEN: Final = 16
_LAYERS: Final = 2
_RATE: Final = 16_000
_HOP: Final = 160
"""Samples to a column of the spectrogram; the vocoder's factors multiply to it, or sound and film differ in length."""
_MEL_BINS: Final = 8


def pipeline() -> Any:
    """Return an `LTX2Pipeline`."""
    from diffusers import FlowMatchEulerDiscreteScheduler, LTX2Pipeline

    tokens = _tokenizer()
    return LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_film_vae(),
        audio_vae=_sound_vae(),
        text_encoder=_text_encoder(len(tokens)),
        tokenizer=tokens,
        connectors=_connectors(),
        transformer=_transformer(),
        vocoder=_vocoder(),
    )


def _tokenizer() -> Any:
    """Return Gemma's tokenizer class with one token for each byte and a few letters."""
    from transformers import GemmaTokenizer

    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += list("▁abcdefghijklmnopqrstuvwxyz")
    return GemmaTokenizer(
        vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=1024
    )


def _text_encoder(vocabulary: int) -> Any:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {
        "vocab_size": vocabulary,
        "hidden_size": _HIDDEN,
        "intermediate_size": 32,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 8192,
        "sliding_window": 512,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": _HIDDEN,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=5,
        boi_token_index=6,
        eoi_token_index=7,
    )
    return Gemma3ForConditionalGeneration(config).eval()


def _connectors() -> Any:
    from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors

    return LTX2TextConnectors(
        caption_channels=_HIDDEN,
        text_proj_in_factor=_LAYERS + 1,  # the encoder's layers and its embeddings
        video_connector_num_attention_heads=4,
        video_connector_attention_head_dim=4,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=4,
        audio_connector_attention_head_dim=4,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
        connector_rope_base_seq_len=32,
        rope_theta=10000.0,
        rope_double_precision=False,
        causal_temporal_positioning=False,
        rope_type="split",
    )


def _transformer() -> Any:
    from diffusers import LTX2VideoTransformer3DModel

    return LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        patch_size=1,
        patch_size_t=1,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=_LAYERS,
        qk_norm="rms_norm_across_heads",
        caption_channels=_HIDDEN,
        rope_double_precision=False,
        rope_type="split",
    )


def _film_vae() -> Any:
    """Channels double with each level; with a test's usual ratios a second of film would take half a minute."""
    from diffusers import AutoencoderKLLTX2Video

    return AutoencoderKLLTX2Video(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(8, 16, 32, 64),
        decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        spatio_temporal_scaling=(True,) * 4,
        decoder_spatio_temporal_scaling=(True,) * 3,
        decoder_inject_noise=(False,) * 4,
        downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        upsample_residual=(True,) * 3,
        upsample_factor=(2, 2, 2),
        timestep_conditioning=False,
        patch_size=4,
        patch_size_t=1,
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
        encoder_causal=True,
        decoder_causal=False,
    )


def _sound_vae() -> Any:
    from diffusers import AutoencoderKLLTX2Audio

    return AutoencoderKLLTX2Audio(
        base_channels=4,
        output_channels=2,
        ch_mult=(1,),
        num_res_blocks=1,
        attn_resolutions=None,
        in_channels=2,
        resolution=32,
        latent_channels=2,
        norm_type="pixel",
        causality_axis="height",
        dropout=0.0,
        mid_block_add_attention=False,
        sample_rate=_RATE,
        mel_hop_length=_HOP,
        is_causal=True,
        mel_bins=_MEL_BINS,
    )


def _vocoder() -> Any:
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    return LTX2Vocoder(
        in_channels=2 * _MEL_BINS,
        hidden_channels=64,
        out_channels=2,
        upsample_kernel_sizes=[16, 8, 8, 4],
        upsample_factors=[5, 4, 4, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
        leaky_relu_negative_slope=0.1,
        output_sampling_rate=_RATE,
    )
