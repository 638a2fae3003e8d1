"""ACE-Step: music with or without singing, from a description and lyrics, through `diffusers.AceStepPipeline`.

Invariants:
- A piece lasts exactly as long as was asked and paid for.
- The same seed, settings and weights give the same file.
- A file from tiny weights says so in its metadata and facts, as the manifest of the weights decides.
- A canceled job stops at its next step.

Source: https://github.com/ace-step/ACE-Step-1.5 and the pipeline's documentation (steps, lyrics).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from deployments.models import diffusion, fields, loading, sound
from deployments.models.contract import (
    GenerateRequest,
    IsCanceled,
    ModelRefused,
    OnProgress,
    Output,
    Placement,
    Weights,
)
from deployments.models.meter import Meter

STEPS: Final = 8
"""What the distilled weights are made for. Source: the pipeline's documentation."""
TINY_STEPS: Final = 2
"""Enough to see progress; noise does not get better with more."""
MAX_SECONDS: Final = 240
"""A long song; the model goes further, one job should not hold a GPU for longer."""
MAX_PROMPT_CHARS: Final = 1000
MAX_LYRICS_CHARS: Final = 4000
"""About the 2,048 tokens of lyrics that the pipeline reads at most."""
INSTRUMENTAL: Final = "[Instrumental]"
"""What the model reads as music without singing. Source: the model's README."""

FIELDS: Final = frozenset({"prompt", "lyrics", "durationSeconds", "seed", "outputFormat"})


@dataclass(frozen=True, slots=True)
class MusicOrder:
    """A checked `music.generate` input with every default filled in."""

    prompt: str
    lyrics: str
    seconds: int
    seed: int
    output_format: str

    @classmethod
    def read(cls, request: GenerateRequest) -> Self:
        """Check a request's input. Raises: ModelRefused, naming the field."""
        given = request.input
        fields.refuse_unknown(given, request.task, FIELDS)
        prompt = fields.text(given, "prompt", "", MAX_PROMPT_CHARS)
        if not prompt.strip():
            raise ModelRefused("prompt", "describe the music in words")
        return cls(
            prompt=prompt,
            lyrics=fields.text(given, "lyrics", "", MAX_LYRICS_CHARS).strip() or INSTRUMENTAL,
            seconds=fields.paid_seconds(request, MAX_SECONDS, 30),
            seed=fields.seed(request),
            output_format=fields.choice(given, "outputFormat", tuple(sound.CONTENT_TYPES), "mp3"),
        )


class AceStep:
    """The loaded pipeline. One job at a time: the pipeline keeps the state of its schedule."""

    def __init__(self, pipeline: Any, weights: Weights, placement: Placement, *, tiny: bool) -> None:
        self._pipeline = pipeline  # Any: diffusers' pipelines are untyped
        self._weights = weights
        self._placement = placement
        self._tiny = tiny

    @classmethod
    def load(cls, weights: Weights, placement: Placement) -> Self:
        """Load the pipeline from a directory or the hub. Raises: WeightsMissing, for the operator."""
        loading.require_weights(weights, placement)
        from diffusers import AceStepPipeline

        pipeline = diffusion.load_pipeline(AceStepPipeline, weights, placement)
        return cls(pipeline, weights, placement, tiny=loading.is_tiny(weights))

    def generate(self, request: GenerateRequest, on_progress: OnProgress, is_canceled: IsCanceled) -> Output:
        """Make one piece; blocks until it is done.

        Raises: ModelRefused before any computing; ModelCanceled at the step after the cancellation;
        ModelFailed if there is no sound; ModelBroken if the GPU is lost to this process.
        """
        order = MusicOrder.read(request)
        steps = TINY_STEPS if self._tiny else STEPS
        meter = Meter(self._placement.device)
        result = diffusion.run_pipeline(
            self._pipeline,
            steps,
            on_progress,
            is_canceled,
            prompt=order.prompt,
            lyrics=order.lyrics,
            audio_duration=float(order.seconds),
            generator=diffusion.noise(order.seed),
        )
        rate = int(self._pipeline.vae.config.sampling_rate)
        samples = sound.fitted(result.audios[0].float().cpu().numpy(), order.seconds * rate)
        metrics = meter.read()
        facts = {**loading.origin(self._weights, tiny=self._tiny), "seed": order.seed, "steps": steps}
        return Output(
            [sound.finished(samples, rate, order.output_format, facts)], metrics, self._weights.model
        )

    @staticmethod
    def build_tiny(directory: Path, seed: int) -> None:
        """Save a pipeline of random weights: 25 latents a second, as in production, at 16 kHz."""
        import torch

        diffusion.quiet_libraries()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pipeline = _tiny_pipeline()
        pipeline.save_pretrained(directory, safe_serialization=True)


def _tiny_pipeline() -> Any:
    from diffusers import AceStepPipeline, AutoencoderOobleck, FlowMatchEulerDiscreteScheduler
    from diffusers.models.transformers.ace_step_transformer import AceStepTransformer1DModel
    from diffusers.pipelines.ace_step import (
        AceStepAudioTokenDetokenizer,
        AceStepAudioTokenizer,
        AceStepConditionEncoder,
    )
    from transformers import Qwen3Config, Qwen3Model

    from deployments.models import tiny_qwen

    hidden, latents = 32, 8
    layer = {
        "hidden_size": hidden,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    attention = {**layer, "rope_theta": 10_000.0, "sliding_window": 16}
    tokens = tiny_qwen.tokenizer()
    text_encoder = Qwen3Model(
        Qwen3Config(**layer, num_hidden_layers=2, vocab_size=len(tokens), max_position_embeddings=4096)
    ).eval()
    return AceStepPipeline(
        vae=AutoencoderOobleck(
            encoder_hidden_size=6,
            downsampling_ratios=[4, 4, 5, 8],  # 640 samples to a latent: 25 of them are a second at 16 kHz
            decoder_channels=3,
            decoder_input_channels=latents,
            audio_channels=2,
            channel_multiples=[1, 2, 4, 4],
            sampling_rate=16_000,
        ),
        text_encoder=text_encoder,
        tokenizer=tokens,
        transformer=AceStepTransformer1DModel(
            num_hidden_layers=2,
            in_channels=3 * latents,
            audio_acoustic_hidden_dim=latents,
            patch_size=2,
            **attention,
        ),
        condition_encoder=AceStepConditionEncoder(
            text_hidden_dim=hidden,
            timbre_hidden_dim=latents,
            num_lyric_encoder_hidden_layers=2,
            num_timbre_encoder_hidden_layers=2,
            **attention,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
        audio_tokenizer=AceStepAudioTokenizer(
            audio_acoustic_hidden_dim=latents,
            pool_window_size=2,
            fsq_dim=hidden,
            fsq_input_levels=[4, 4, 4],
            fsq_input_num_quantizers=1,
            num_attention_pooler_hidden_layers=1,
            **attention,
        ),
        audio_token_detokenizer=AceStepAudioTokenDetokenizer(
            audio_acoustic_hidden_dim=latents,
            pool_window_size=2,
            num_attention_pooler_hidden_layers=1,
            **attention,
        ),
    )
