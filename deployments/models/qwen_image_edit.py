"""Qwen-Image-Edit: a picture changed as a text says, through `diffusers.QwenImageEditPlusPipeline`.

Invariants:
- The same seed, settings, source and weights give the same picture.
- A picture from tiny weights says so on itself and in its metadata, as the manifest of the weights decides.
- A canceled job stops at its next step; a source that is no picture is refused before any computing.

Source: https://huggingface.co/Qwen/Qwen-Image-Edit-2509 (pipeline, steps, guidance).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from deployments.models import diffusion, fields, loading, picture, tiny_qwen
from deployments.models.contract import (
    GenerateRequest,
    IsCanceled,
    OnProgress,
    Output,
    Placement,
    Weights,
)
from deployments.models.meter import Meter
from deployments.models.qwen_image import FIELDS as IMAGE_FIELDS
from deployments.models.qwen_image import SIZES, ImageOrder

if TYPE_CHECKING:
    from PIL import Image

STEPS: Final = 40
"""The model card's setting."""

FIELDS: Final = IMAGE_FIELDS | {"sourceImageUrl", "sourceImageFileId"}


class QwenImageEdit:
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
        from diffusers import QwenImageEditPlusPipeline

        parts: dict[str, Any] = {}
        if importlib.util.find_spec("torchvision") is None:
            try:
                parts["processor"] = _processor_class().load(weights)
            except OSError as error:
                raise loading.weights_unusable(weights, error) from error
        pipeline = diffusion.load_pipeline(QwenImageEditPlusPipeline, weights, placement, **parts)
        return cls(pipeline, weights, placement, tiny=loading.is_tiny(weights))

    def generate(self, request: GenerateRequest, on_progress: OnProgress, is_canceled: IsCanceled) -> Output:
        """Change one picture; blocks until it is done. Without an aspect ratio it keeps the source's, or the nearest.

        Raises: ModelRefused before any computing; ModelCanceled at the step after the cancellation;
        ModelFailed if the picture is not one; ModelBroken if the GPU is lost to this process.
        """
        source = picture.decode(fields.file(request, "sourceImage"), "sourceImageUrl")
        order = ImageOrder.read(
            request, tiny=self._tiny, known=FIELDS, ratio=_nearest_ratio(source), steps=STEPS
        )
        meter = Meter(self._placement.device)
        result = diffusion.run_pipeline(
            self._pipeline,
            order.steps,
            on_progress,
            is_canceled,
            image=[source],
            prompt=order.prompt,
            negative_prompt=order.negative_prompt,
            true_cfg_scale=order.guidance,
            width=order.width,
            height=order.height,
            generator=diffusion.noise(order.seed),
            output_type="np",
        )
        metrics = meter.read()
        facts = {**loading.origin(self._weights, tiny=self._tiny), **order.facts}
        media = picture.finished(result.images[0], order.output_format, facts, order.output_quality)
        return Output([media], metrics, self._weights.model)

    @staticmethod
    def build_tiny(directory: Path, seed: int) -> None:
        """Save a pipeline of random weights: 3.5 MB, production's ratios of pixels, latents and patches."""
        import torch
        from diffusers import QwenImageEditPlusPipeline
        from transformers import Qwen2VLImageProcessorPil

        diffusion.quiet_libraries()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            parts = tiny_qwen.image_parts()
        # The encoder looks at 112 x 112 pixels at most: 16 tokens and a tenth of a second.
        looks = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=112 * 112)
        processor = _processor_class()(looks, parts["tokenizer"])
        pipeline: Any = QwenImageEditPlusPipeline(**parts, processor=processor)
        pipeline.save_pretrained(directory, safe_serialization=True)


def _nearest_ratio(source: Image.Image) -> str:
    """Return the ratio on sale that is nearest to the source's."""

    def distance(ratio: str) -> float:
        width, height = SIZES[ratio]
        wider = (width * source.height) / (height * source.width)
        return max(wider, 1 / wider)

    return min(SIZES, key=distance)


def _processor_class() -> Any:
    """Return `Qwen2VLProcessor` without its part for videos, which cannot be made where torchvision is absent.

    The pipeline only ever shows it pictures. All that it does with them is the original's own code.
    """
    from transformers import Qwen2Tokenizer, Qwen2VLImageProcessorPil
    from transformers.models.qwen2_vl import processing_qwen2_vl

    class Qwen2VLProcessor(processing_qwen2_vl.Qwen2VLProcessor):
        def check_argument_for_proper_class(self, name: str, part: Any) -> Any:
            return None if part is None else super().check_argument_for_proper_class(name, part)

        def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **_: Any) -> None:  # noqa: ARG002
            self.image_processor.save_pretrained(save_directory)
            self.tokenizer.save_pretrained(save_directory)

        @classmethod
        def load(cls, weights: Weights) -> Any:
            """Read the parts from a pipeline's weights."""
            where: dict[str, Any] = {
                "subfolder": "processor",
                "revision": weights.revision,
                "local_files_only": weights.directory is not None,
            }
            looks = Qwen2VLImageProcessorPil.from_pretrained(weights.source, **where)
            return cls(looks, Qwen2Tokenizer.from_pretrained(weights.source, **where))

    # A saved pipeline names its parts by module and class: it shall name the original.
    Qwen2VLProcessor.__module__ = processing_qwen2_vl.__name__
    return Qwen2VLProcessor
