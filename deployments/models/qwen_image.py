"""Qwen-Image: pictures from text, through `diffusers.QwenImagePipeline`, on production weights or tiny ones.

Invariants:
- The same seed, settings and weights give the same picture: noise comes from a CPU generator on every device, each
  job's from its own. In a batch a channel differs from the picture made alone by one level of 255 at most on a CPU
  (other shapes are added up in another order); in bfloat16 on a GPU that has not been measured.
- A picture from tiny weights says so on itself and in its metadata. The weights' own manifest decides that,
  so a wrong configuration cannot sell noise as a result.
- A canceled job stops at its next step.

Source: https://github.com/QwenLM/Qwen-Image (sizes, steps, guidance).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from deployments.models import diffusion, fields, loading, picture, tiny_qwen
from deployments.models.contract import (
    GenerateRequest,
    IsCanceled,
    Member,
    ModelRefused,
    OnProgress,
    Output,
    Placement,
    Weights,
    all_canceled,
    alone,
    progress_of_all,
)
from deployments.models.meter import Meter
from kit.errors import AppError

if TYPE_CHECKING:
    import numpy as np

SIZES: Final[Mapping[str, tuple[int, int]]] = {
    "1:1": (1328, 1328),
    "16:9": (1664, 928),
    "9:16": (928, 1664),
    "4:3": (1472, 1104),
    "3:4": (1104, 1472),
    "3:2": (1584, 1056),
    "2:3": (1056, 1584),
}
"""Width and height by aspect ratio, as the model was trained. Source: the model's README."""

TINY_SIZES: Final[Mapping[str, tuple[int, int]]] = {
    "1:1": (256, 256),
    "16:9": (256, 144),
    "9:16": (144, 256),
    "4:3": (256, 192),
    "3:4": (192, 256),
    "3:2": (288, 192),
    "2:3": (192, 288),
}
"""The same ratios, exact, in multiples of the 16 pixels of a latent patch: half a second on a laptop."""

STEPS: Final = 50
"""The model card's setting."""
TINY_STEPS: Final = 4
"""Enough to see progress; noise does not get better with more."""
MIN_STEPS: Final = 2
"""With one step the scheduler divides zero by zero and the picture is black."""
MAX_STEPS: Final = 50
"""A picture has one price, so it also has a most that it may cost us: the card's own setting."""

GUIDANCE: Final = 4.0
"""The model card's `true_cfg_scale`."""
NO_GUIDANCE: Final = 1.0
"""At 1 the pipeline leaves true guidance off, and a step takes half the time."""
MAX_GUIDANCE: Final = 10.0
"""Above it the colours burn out."""
BLANK_NEGATIVE_PROMPT: Final = " "
"""Without a negative prompt the pipeline leaves true guidance off and the picture suffers; the model's README
gives one space instead."""

MAX_PROMPT_CHARS: Final = 4000
"""About the 1,024 tokens that the pipeline reads at most; a longer text would be cut without effect."""

FIELDS: Final = frozenset(
    {"prompt", "negativePrompt", "aspectRatio", "seed", "steps", "guidance", "outputFormat", "outputQuality"}
)


@dataclass(frozen=True, slots=True)
class ImageOrder:
    """A checked `image.generate` input with every default filled in. `guidance` 1 means no guidance."""

    prompt: str
    negative_prompt: str | None
    aspect_ratio: str
    width: int
    height: int
    seed: int
    steps: int
    guidance: float
    output_format: str
    output_quality: int | None

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the picture beside the prompt."""
        return {
            "aspectRatio": self.aspect_ratio,
            "seed": self.seed,
            "steps": self.steps,
            "guidance": self.guidance,
        }

    @classmethod
    def read(
        cls,
        request: GenerateRequest,
        *,
        tiny: bool,
        known: frozenset[str] = FIELDS,
        ratio: str = "1:1",
        steps: int = STEPS,
    ) -> Self:
        """Check a request's input; `ratio` and `steps` are what it gets that does not say.

        Raises: ModelRefused, naming the field.
        """
        given = request.input
        fields.refuse_unknown(given, request.task, known)
        prompt = fields.text(given, "prompt", "", MAX_PROMPT_CHARS)
        if not prompt.strip():
            raise ModelRefused("prompt", "describe the picture in words")
        guidance = fields.number(given, "guidance", NO_GUIDANCE, MAX_GUIDANCE, GUIDANCE)
        negative_prompt = fields.text(given, "negativePrompt", "", MAX_PROMPT_CHARS).strip()
        if negative_prompt and guidance <= NO_GUIDANCE:
            raise ModelRefused("negativePrompt", "has no effect at guidance 1; leave one of them out")
        output_format, output_quality = picture.asked(given)
        sizes = TINY_SIZES if tiny else SIZES
        aspect_ratio = fields.choice(given, "aspectRatio", tuple(sizes), ratio)
        width, height = sizes[aspect_ratio]
        return cls(
            prompt=prompt,
            negative_prompt=None if guidance <= NO_GUIDANCE else negative_prompt or BLANK_NEGATIVE_PROMPT,
            aspect_ratio=aspect_ratio,
            width=width,
            height=height,
            seed=fields.seed(request),
            steps=fields.integer(given, "steps", MIN_STEPS, MAX_STEPS, TINY_STEPS if tiny else steps),
            guidance=guidance,
            output_format=output_format,
            output_quality=output_quality,
        )


class QwenImage:
    """The loaded pipeline. One call at a time: the pipeline keeps the state of its schedule."""

    def __init__(self, pipeline: Any, weights: Weights, placement: Placement, *, tiny: bool) -> None:
        self._pipeline = pipeline  # Any: diffusers' pipelines are untyped
        self._weights = weights
        self._placement = placement
        self._tiny = tiny

    @classmethod
    def load(cls, weights: Weights, placement: Placement) -> Self:
        """Load the pipeline from a directory or the hub, in float32 on a CPU and bfloat16 on a GPU.

        Raises: WeightsMissing, for the operator.
        """
        from diffusers import QwenImagePipeline

        pipeline = diffusion.load_pipeline(QwenImagePipeline, weights, placement)
        return cls(pipeline, weights, placement, tiny=loading.is_tiny(weights))

    def generate(self, request: GenerateRequest, on_progress: OnProgress, is_canceled: IsCanceled) -> Output:
        """Make one picture; blocks until it is done.

        Raises: ModelRefused before any computing; ModelCanceled at the step after the cancellation;
        ModelFailed if the picture is not one; ModelBroken if the GPU is lost to this process.
        """
        return alone(self, Member(request, on_progress, is_canceled))

    def batch_key(self, request: GenerateRequest) -> Hashable:
        """Return what the pipeline takes once for all pictures of a call. Raises: ModelRefused."""
        order = ImageOrder.read(request, tiny=self._tiny)
        return order.width, order.height, order.steps, order.guidance

    def generate_many(self, members: Sequence[Member]) -> list[Output | AppError]:
        """Make a picture for each member in one call of the pipeline; blocks until all are done.

        Raises: ModelCanceled at the step after the last cancellation; ModelBroken if the GPU is lost.
        """
        orders = [ImageOrder.read(member.request, tiny=self._tiny) for member in members]
        meter = Meter(self._placement.device)
        images = self._denoise(orders, progress_of_all(members), all_canceled(members))
        metrics = meter.read()
        outcomes: list[Output | AppError] = []
        for order, pixels in zip(orders, images, strict=True):
            facts = {**loading.origin(self._weights, tiny=self._tiny), **order.facts}
            if self._truncates(order.prompt):
                facts["promptTruncated"] = True
            try:
                made = picture.finished(pixels, order.output_format, facts, order.output_quality)
            except AppError as error:
                outcomes.append(error)
            else:
                outcomes.append(Output([made], metrics, self._weights.model))
        return outcomes

    @staticmethod
    def build_tiny(directory: Path, seed: int) -> None:
        """Save a pipeline of random weights: 3.5 MB, production's ratios of pixels, latents and patches."""
        import torch
        from diffusers import QwenImagePipeline

        diffusion.quiet_libraries()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pipeline: Any = QwenImagePipeline(**tiny_qwen.image_parts())
        pipeline.save_pretrained(directory, safe_serialization=True)

    def _denoise(
        self, orders: Sequence[ImageOrder], on_progress: OnProgress, is_canceled: IsCanceled
    ) -> Sequence[np.ndarray[Any, Any]]:
        """Run the pipeline for orders of one batch key, reporting and looking for cancellations after each step.

        Shapes: (height, width, 3) each, float32 in 0..1.
        """
        same = orders[0]
        result = diffusion.run_pipeline(
            self._pipeline,
            same.steps,
            on_progress,
            is_canceled,
            prompt=[order.prompt for order in orders],
            negative_prompt=None
            if same.negative_prompt is None
            else [order.negative_prompt for order in orders],
            true_cfg_scale=same.guidance,
            width=same.width,
            height=same.height,
            max_sequence_length=self._pipeline.tokenizer_max_length,
            generator=[diffusion.noise(order.seed) for order in orders],
            output_type="np",
        )
        images: Sequence[np.ndarray[Any, Any]] = result.images
        return images

    def _truncates(self, prompt: str) -> bool:
        """Tell whether the pipeline cut this prompt, which it does in silence."""
        pipeline = self._pipeline
        tokens = pipeline.tokenizer(pipeline.prompt_template_encode.format(prompt)).input_ids
        return bool(len(tokens) > pipeline.tokenizer_max_length + pipeline.prompt_template_encode_start_idx)
