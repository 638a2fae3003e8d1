"""Qwen-Image: pictures from text, through `diffusers.QwenImagePipeline`, on production weights or tiny ones.

Invariants:
- The same seed, settings and weights give the same picture: noise comes from a CPU generator on every device.
- A picture from tiny weights says so on itself and in its metadata. The weights' own manifest decides that,
  so a wrong configuration cannot sell noise as a result.
- A canceled job stops at its next step.

The CUDA path (bfloat16, optional offload) follows the pipeline's documentation and has not run on hardware.

Source: https://github.com/QwenLM/Qwen-Image (sizes, steps, guidance).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from deployments.models import fields, picture
from deployments.models.contract import (
    TINY_NOTICE,
    GenerateRequest,
    IsCanceled,
    Media,
    Metrics,
    ModelBroken,
    ModelCanceled,
    ModelFailed,
    ModelRefused,
    OnProgress,
    Output,
    Placement,
    Progress,
    Weights,
    WeightsMissing,
)
from deployments.models.meter import Meter
from deployments.models.registry import read_manifest

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
MAX_SEED: Final = 2**32 - 1
"""Every client's JSON numbers hold it exactly."""

FIELDS: Final = frozenset(
    {"prompt", "negativePrompt", "aspectRatio", "seed", "steps", "guidance", "outputFormat"}
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

    @classmethod
    def read(cls, request: GenerateRequest, *, tiny: bool) -> Self:
        """Check a request's input.

        Without a `seed`, one is derived from the job's id: jobs differ from each other, and a second attempt
        at one job makes the picture that the first would have made.

        Raises: ModelRefused, naming the field.
        """
        given = request.input
        fields.refuse_unknown(given, request.task, FIELDS)
        prompt = fields.text(given, "prompt", "", MAX_PROMPT_CHARS)
        if not prompt.strip():
            raise ModelRefused("prompt", "describe the picture in words")
        guidance = fields.number(given, "guidance", NO_GUIDANCE, MAX_GUIDANCE, GUIDANCE)
        negative_prompt = fields.text(given, "negativePrompt", "", MAX_PROMPT_CHARS).strip()
        if negative_prompt and guidance <= NO_GUIDANCE:
            raise ModelRefused("negativePrompt", "has no effect at guidance 1; leave one of them out")
        sizes = TINY_SIZES if tiny else SIZES
        aspect_ratio = fields.choice(given, "aspectRatio", tuple(sizes), "1:1")
        drawn_seed = int.from_bytes(hashlib.sha256(request.job_id.encode()).digest()[:4])
        width, height = sizes[aspect_ratio]
        return cls(
            prompt=prompt,
            negative_prompt=None if guidance <= NO_GUIDANCE else negative_prompt or BLANK_NEGATIVE_PROMPT,
            aspect_ratio=aspect_ratio,
            width=width,
            height=height,
            seed=fields.integer(given, "seed", 0, MAX_SEED, drawn_seed),
            steps=fields.integer(given, "steps", MIN_STEPS, MAX_STEPS, TINY_STEPS if tiny else STEPS),
            guidance=guidance,
            output_format=fields.choice(given, "outputFormat", tuple(picture.CONTENT_TYPES), "png"),
        )


class QwenImage:
    """The loaded pipeline. One job at a time: the pipeline keeps the state of its schedule."""

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
        directory = weights.directory
        if directory is None and weights.profile == "tiny":
            raise WeightsMissing(f"{weights.source} is not there", "run 'farebox models build tiny'")
        import torch
        from diffusers import QwenImagePipeline

        _quiet_libraries()
        on_gpu = placement.device == "cuda"
        if on_gpu and not torch.cuda.is_available():
            raise WeightsMissing(f"{weights.model} has no GPU", "its weights need CUDA; check num_gpus")
        torch.set_num_threads(placement.cpu_threads)
        try:
            pipeline: Any = QwenImagePipeline.from_pretrained(
                weights.source,
                revision=weights.revision,
                dtype=torch.bfloat16 if on_gpu else torch.float32,
                use_safetensors=True,  # the other format runs code while loading
                local_files_only=directory is not None,
            )
        except OSError as error:
            raise WeightsMissing(
                f"{weights.source} could not be loaded ({type(error).__name__})",
                "run 'farebox models pull image', or check the directory",
            ) from error
        pipeline.set_progress_bar_config(disable=True)
        if on_gpu and placement.cpu_offload:
            pipeline.enable_model_cpu_offload(device="cuda")
        else:
            pipeline.to(placement.device)
        manifest = read_manifest(directory) if directory is not None else None
        tiny = weights.profile == "tiny" or (manifest or {}).get("profile") == "tiny"
        return cls(pipeline, weights, placement, tiny=tiny)

    def generate(self, request: GenerateRequest, on_progress: OnProgress, is_canceled: IsCanceled) -> Output:
        """Make one picture; blocks until it is done.

        Raises: ModelRefused before any computing; ModelCanceled at the step after the cancellation;
        ModelFailed if the picture is not one; ModelBroken if the GPU is lost to this process.
        """
        order = ImageOrder.read(request, tiny=self._tiny)
        meter = Meter(self._placement.device)
        pixels = self._denoise(order, on_progress, is_canceled)
        return self._finish(order, pixels, meter.read())

    @staticmethod
    def build_tiny(directory: Path, seed: int) -> None:
        """Save a pipeline of random weights: 3.5 MB, production's ratios of pixels, latents and patches."""
        _tiny_pipeline(seed).save_pretrained(directory, safe_serialization=True)

    def _denoise(
        self, order: ImageOrder, on_progress: OnProgress, is_canceled: IsCanceled
    ) -> np.ndarray[Any, Any]:
        """Run the pipeline, reporting and looking for a cancellation after each step.

        Shapes: (height, width, 3), float32 in 0..1.
        """
        import torch

        def report(step: int) -> None:
            if is_canceled():
                raise ModelCanceled
            on_progress(Progress(step / order.steps, step, order.steps))

        def after_step(_: Any, index: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            report(index + 1)
            return tensors

        report(0)
        try:
            with torch.inference_mode():
                result = self._pipeline(
                    prompt=order.prompt,
                    negative_prompt=order.negative_prompt,
                    true_cfg_scale=order.guidance,
                    width=order.width,
                    height=order.height,
                    num_inference_steps=order.steps,
                    max_sequence_length=self._pipeline.tokenizer_max_length,
                    generator=torch.Generator("cpu").manual_seed(order.seed),
                    callback_on_step_end=after_step,
                    output_type="np",
                )
        except torch.AcceleratorError as error:
            raise ModelBroken("The GPU failed while making the picture.") from error
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()  # what this job held must not fail the next one
            raise
        finally:
            # Offloaded parts leave the GPU; the pipeline's own call at its end is skipped by a cancellation.
            self._pipeline.maybe_free_model_hooks()
        pixels: np.ndarray[Any, Any] = result.images[0]
        return pixels

    def _finish(self, order: ImageOrder, pixels: np.ndarray[Any, Any], metrics: Metrics) -> Output:
        """Turn pixels into a file that says how it was made."""
        import numpy as np
        from PIL import Image

        if not np.isfinite(pixels).all():
            raise ModelFailed("The model's picture was empty.")
        image = Image.fromarray((pixels * 255).round().astype("uint8"))
        facts: dict[str, Any] = {
            "model": self._weights.model,
            "profile": "tiny" if self._tiny else self._weights.profile,
            "size": f"{image.width}x{image.height}",
            "aspectRatio": order.aspect_ratio,
            "seed": order.seed,
            "steps": order.steps,
            "guidance": order.guidance,
        }
        if self._weights.revision:
            facts["revision"] = self._weights.revision
        if self._truncates(order.prompt):
            facts["promptTruncated"] = True
        if self._tiny:
            facts["notice"] = TINY_NOTICE
            image = picture.draw_notice(image, TINY_NOTICE)
        media = Media(
            content_type=picture.CONTENT_TYPES[order.output_format],
            data=picture.encode(image, order.output_format, facts),
            width=image.width,
            height=image.height,
            facts=facts,
        )
        return Output([media], metrics, self._weights.model)

    def _truncates(self, prompt: str) -> bool:
        """Tell whether the pipeline cut this prompt, which it does in silence."""
        pipeline = self._pipeline
        tokens = pipeline.tokenizer(pipeline.prompt_template_encode.format(prompt)).input_ids
        return bool(len(tokens) > pipeline.tokenizer_max_length + pipeline.prompt_template_encode_start_idx)


def _quiet_libraries() -> None:
    """Keep progress bars out of a replica's log."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


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


def _tiny_pipeline(seed: int) -> Any:
    """Return a `QwenImagePipeline` of seeded random weights; the process's random state stays as it was."""
    import torch
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )

    _quiet_libraries()
    latent_channels, hidden = 4, 16
    tokenizer = _tiny_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = _tiny_text_encoder(tokenizer.get_vocab(), hidden)
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
    return QwenImagePipeline(
        scheduler=scheduler, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer
    )


def _tiny_tokenizer() -> Any:
    """Return Qwen's tokenizer class with one token for each byte and no merges."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    tokens = (*sorted(ByteLevel.alphabet()), *_SPECIAL_TOKENS)
    end_of_text, _, end_of_turn, *_ = _SPECIAL_TOKENS
    return Qwen2Tokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[],
        extra_special_tokens=list(_SPECIAL_TOKENS[1:]),
        unk_token=end_of_text,
        eos_token=end_of_turn,
        pad_token=end_of_text,
    )


def _tiny_text_encoder(vocabulary: Mapping[str, int], hidden: int) -> Any:
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
