"""Stable Audio Open: sound effects from a description, through `diffusers.StableAudioPipeline`.

Invariants:
- A sound lasts exactly as long as was asked and paid for.
- The same seed, settings and weights give the same file.
- A file from tiny weights says so in its metadata and facts, as the manifest of the weights decides.
- A canceled job stops at its next step.

Source: https://huggingface.co/stabilityai/stable-audio-open-1.0 (length, steps, negative prompt).
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

STEPS: Final = 200
"""The model card's setting."""
TINY_STEPS: Final = 4
"""Enough to see progress; noise does not get better with more."""
MAX_SECONDS: Final = 47
"""The most that the model makes. Source: the model card."""
TINY_LATENTS: Final = 3008
"""Room for the same 47 seconds: 256 samples to a latent, 16,000 to a second."""
MAX_PROMPT_CHARS: Final = 1000
NEGATIVE_PROMPT: Final = "Low quality."
"""The model card's."""

FIELDS: Final = frozenset({"prompt", "negativePrompt", "durationSeconds", "seed", "outputFormat"})


@dataclass(frozen=True, slots=True)
class EffectOrder:
    """A checked `sfx.generate` input with every default filled in."""

    prompt: str
    negative_prompt: str
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
            raise ModelRefused("prompt", "describe the sound in words")
        return cls(
            prompt=prompt,
            negative_prompt=fields.text(given, "negativePrompt", "", MAX_PROMPT_CHARS) or NEGATIVE_PROMPT,
            seconds=fields.paid_seconds(request, MAX_SECONDS, 5),
            seed=fields.seed(request),
            output_format=fields.choice(given, "outputFormat", tuple(sound.CONTENT_TYPES), "mp3"),
        )


class StableAudio:
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
        from diffusers import StableAudioPipeline

        pipeline = diffusion.load_pipeline(StableAudioPipeline, weights, placement)
        return cls(pipeline, weights, placement, tiny=loading.is_tiny(weights))

    def generate(self, request: GenerateRequest, on_progress: OnProgress, is_canceled: IsCanceled) -> Output:
        """Make one sound; blocks until it is done.

        Raises: ModelRefused before any computing; ModelCanceled at the step after the cancellation;
        ModelFailed if there is no sound; ModelBroken if the GPU is lost to this process.
        """
        order = EffectOrder.read(request)
        steps = TINY_STEPS if self._tiny else STEPS
        meter = Meter(self._placement.device)
        result = diffusion.run_pipeline(
            self._pipeline,
            steps,
            on_progress,
            is_canceled,
            prompt=order.prompt,
            negative_prompt=order.negative_prompt,
            audio_end_in_s=float(order.seconds),
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
        """Save a pipeline of random weights, at 16 kHz."""
        import torch

        diffusion.quiet_libraries()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pipeline = _tiny_pipeline()
        pipeline.save_pretrained(directory, safe_serialization=True)


def _tiny_pipeline() -> Any:
    from diffusers import (
        AutoencoderOobleck,
        CosineDPMSolverMultistepScheduler,
        StableAudioDiTModel,
        StableAudioPipeline,
        StableAudioProjectionModel,
    )
    from transformers import T5Config, T5EncoderModel

    text, condition, latents = 32, 4, 3
    tokens = _tiny_tokenizer()
    return StableAudioPipeline(
        vae=AutoencoderOobleck(
            encoder_hidden_size=6,
            downsampling_ratios=[4, 8, 8],
            decoder_channels=3,
            decoder_input_channels=latents,
            audio_channels=2,
            channel_multiples=[1, 2, 4],
            sampling_rate=16_000,
        ),
        text_encoder=T5EncoderModel(
            T5Config(vocab_size=len(tokens), d_model=text, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
        ).eval(),
        projection_model=StableAudioProjectionModel(
            text_encoder_dim=text, conditioning_dim=condition, min_value=0, max_value=512
        ),
        tokenizer=tokens,
        transformer=StableAudioDiTModel(
            sample_size=TINY_LATENTS,
            in_channels=latents,
            out_channels=latents,
            num_layers=2,
            attention_head_dim=4,
            num_key_value_attention_heads=2,
            cross_attention_dim=condition,
            cross_attention_input_dim=condition,
            time_proj_dim=8,
            global_states_input_dim=2 * condition,
        ),
        scheduler=CosineDPMSolverMultistepScheduler(
            solver_order=2, prediction_type="v_prediction", sigma_data=1.0, sigma_schedule="exponential"
        ),
    )


def _tiny_tokenizer() -> Any:
    """Return T5's tokenizer class with one token for each of a few letters."""
    from transformers import T5Tokenizer

    letters = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?'-:;()"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -1.0), *((letter, -2.0) for letter in letters)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=64)
