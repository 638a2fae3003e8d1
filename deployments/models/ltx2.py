"""LTX-2: films with sound from a text, and from a picture if there is one, through `diffusers.LTX2Pipeline`.

Invariants:
- A film lasts exactly as long as was asked and paid for, in pictures and in sound.
- The same seed, settings, source and weights give the same film.
- A film from tiny weights says so on every frame and in its metadata, as the manifest of the weights decides.
- A canceled job stops at its next step.

Source: https://huggingface.co/Lightricks/LTX-2 and the pipeline's documentation (frames, steps, guidance).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from deployments.models import diffusion, fields, film, loading, picture, sound
from deployments.models.contract import (
    GenerateRequest,
    IsCanceled,
    ModelFailed,
    ModelRefused,
    OnProgress,
    Output,
    Placement,
    Weights,
)
from deployments.models.meter import Meter

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

FRAMES_PER_S: Final = 24
"""The model's own rate. A second is three steps in time of the latents, so any whole second can be made exactly."""
SIZES: Final[Mapping[str, tuple[int, int]]] = {
    "1:1": (768, 768),
    "16:9": (1024, 576),
    "9:16": (576, 1024),
    "4:3": (896, 672),
    "3:4": (672, 896),
    "3:2": (960, 640),
    "2:3": (640, 960),
}
"""Width and height by aspect ratio: exact, in multiples of a latent's 32 pixels, near the card's 768 x 512 and up."""
TINY_SIZES: Final[Mapping[str, tuple[int, int]]] = {
    "1:1": (160, 160),
    "16:9": (256, 144),
    "9:16": (144, 256),
    "4:3": (192, 144),
    "3:4": (144, 192),
    "3:2": (192, 128),
    "2:3": (128, 192),
}
"""The same ratios, small. Where a side is no multiple of 32 pixels, a little more is made and cut off."""
LATENT_PX: Final = 32

STEPS: Final = 30
"""The setting of the pipeline's documentation."""
TINY_STEPS: Final = 2
"""Enough to see progress; noise does not get better with more."""
MIN_STEPS: Final = 2
MAX_STEPS: Final = 50
"""A second has one price, so it also has a most that it may cost us."""
MAX_SECONDS: Final = 20
"""What the model was trained for at most."""
MAX_PROMPT_CHARS: Final = 4000
"""About the 1,024 tokens that the pipeline reads at most."""

GUIDANCE: Final = {
    "guidance_scale": 3.0,
    # Spatio-temporal and modality guidance came with later weights, which need settings of their own.
    "stg_scale": 0.0,
    "modality_scale": 1.0,
    "guidance_rescale": 0.0,
    "audio_guidance_scale": 3.0,
    "audio_stg_scale": 0.0,
    "audio_modality_scale": 1.0,
    "audio_guidance_rescale": 0.0,
    "spatio_temporal_guidance_blocks": None,
    "use_cross_timestep": False,
}
"""The documentation's settings for the first version's weights, each named since the defaults are of the next."""
NEGATIVE_PROMPT: Final = "worst quality, inconsistent motion, blurry, jittery, distorted"
"""The documentation's: without one, guidance would lead away from nothing."""

FIELDS: Final = frozenset(
    {
        "prompt",
        "negativePrompt",
        "sourceImageUrl",
        "sourceImageFileId",
        "durationSeconds",
        "aspectRatio",
        "sound",
        "seed",
        "steps",
        "outputFormat",
    }
)


@dataclass(frozen=True, slots=True)
class FilmOrder:
    """A checked `video.generate` input with every default filled in."""

    prompt: str
    negative_prompt: str
    source: Image.Image | None
    seconds: int
    aspect_ratio: str
    width: int
    height: int
    sound: bool
    seed: int
    steps: int

    @classmethod
    def read(cls, request: GenerateRequest, *, tiny: bool) -> Self:
        """Check a request's input. Raises: ModelRefused, naming the field."""
        given = request.input
        fields.refuse_unknown(given, request.task, FIELDS)
        prompt = fields.text(given, "prompt", "", MAX_PROMPT_CHARS)
        if not prompt.strip():
            raise ModelRefused("prompt", "describe the film in words")
        sizes = TINY_SIZES if tiny else SIZES
        aspect_ratio = fields.choice(given, "aspectRatio", tuple(sizes), "16:9")
        width, height = sizes[aspect_ratio]
        fields.choice(given, "outputFormat", film.FORMATS, "mp4")
        file = request.media.get("sourceImage")
        return cls(
            prompt=prompt,
            negative_prompt=fields.text(given, "negativePrompt", "", MAX_PROMPT_CHARS) or NEGATIVE_PROMPT,
            source=None if file is None else picture.decode(file, "sourceImageUrl"),
            seconds=fields.paid_seconds(request, MAX_SECONDS, 5),
            aspect_ratio=aspect_ratio,
            width=width,
            height=height,
            sound=fields.truth(given, "sound", default=True),
            seed=fields.seed(request),
            steps=fields.integer(given, "steps", MIN_STEPS, MAX_STEPS, TINY_STEPS if tiny else STEPS),
        )


class LTX2:
    """The loaded pipelines, from text and from a picture, on one set of weights. One job at a time."""

    def __init__(  # its parts
        self, from_text: Any, from_picture: Any, weights: Weights, placement: Placement, *, tiny: bool
    ) -> None:
        self._from_text = from_text  # Any: diffusers' pipelines are untyped
        self._from_picture = from_picture
        self._weights = weights
        self._placement = placement
        self._tiny = tiny

    @classmethod
    def load(cls, weights: Weights, placement: Placement) -> Self:
        """Load the pipelines from a directory or the hub. Raises: WeightsMissing, for the operator."""
        loading.require_weights(weights, placement)
        from diffusers import LTX2ImageToVideoPipeline, LTX2Pipeline

        from_text = diffusion.load_pipeline(LTX2Pipeline, weights, placement)
        from_picture: Any = LTX2ImageToVideoPipeline(**from_text.components)
        from_picture.set_progress_bar_config(disable=True)
        return cls(from_text, from_picture, weights, placement, tiny=loading.is_tiny(weights))

    def generate(self, request: GenerateRequest, on_progress: OnProgress, is_canceled: IsCanceled) -> Output:
        """Make one film; blocks until it is done.

        Raises: ModelRefused before any computing; ModelCanceled at the step after the cancellation;
        ModelFailed if the film is not one; ModelBroken if the GPU is lost to this process.
        """
        order = FilmOrder.read(request, tiny=self._tiny)
        meter = Meter(self._placement.device)
        settings: dict[str, Any] = {**GUIDANCE}
        width, height = _latent_size(order.width, order.height)
        if order.source is not None:
            settings["image"] = _fitted(order.source, (width, height))
        result = diffusion.run_pipeline(
            self._from_text if order.source is None else self._from_picture,
            order.steps,
            on_progress,
            is_canceled,
            prompt=order.prompt,
            negative_prompt=order.negative_prompt,
            width=width,
            height=height,
            # The first latent in time is one frame, each further one eight.
            num_frames=order.seconds * FRAMES_PER_S + 1,
            frame_rate=float(FRAMES_PER_S),
            generator=diffusion.noise(order.seed),
            output_type="np",
            **settings,
        )
        metrics = meter.read()
        facts = {
            **loading.origin(self._weights, tiny=self._tiny),
            "aspectRatio": order.aspect_ratio,
            "seed": order.seed,
            "steps": order.steps,
            "fromImage": order.source is not None,
        }
        rate = int(self._from_text.vocoder.config.output_sampling_rate)
        media = film.finished(
            _cut(result.frames[0], order),
            FRAMES_PER_S,
            sound.fitted(result.audio[0].float().cpu().numpy(), order.seconds * rate)
            if order.sound
            else None,
            rate,
            facts,
        )
        return Output([media], metrics, self._weights.model)

    @staticmethod
    def build_tiny(directory: Path, seed: int) -> None:
        """Save a pipeline of random weights: 3 MB, production's ratios of pixels, frames and latents."""
        import torch

        from deployments.models import tiny_ltx2

        diffusion.quiet_libraries()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pipeline = tiny_ltx2.pipeline()
        pipeline.save_pretrained(directory, safe_serialization=True)


def _latent_size(width: int, height: int) -> tuple[int, int]:
    """Return the smallest size in whole latents that has room for a film's."""
    return -(-width // LATENT_PX) * LATENT_PX, -(-height // LATENT_PX) * LATENT_PX


def _fitted(source: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the middle of a picture in a size: cut, never distorted."""
    from PIL import Image, ImageOps

    return ImageOps.fit(source, size, Image.Resampling.LANCZOS)


def _cut(frames: np.ndarray[Any, Any], order: FilmOrder) -> np.ndarray[Any, Any]:
    """Return the middle of the frames in the film's size, and as many of them as its seconds have.

    Shapes: (frames, height, width, 3).
    """
    count, height, width, _ = frames.shape
    wanted = order.seconds * FRAMES_PER_S
    if count < wanted:
        raise ModelFailed("The model's film was too short.")
    top, left = (height - order.height) // 2, (width - order.width) // 2
    return frames[:wanted, top : top + order.height, left : left + order.width]
