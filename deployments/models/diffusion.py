"""What all diffusers pipelines have in common: loading, a run that reports and can be canceled, the facts of an output.

The CUDA path (bfloat16, optional offload) follows the pipelines' documentation and has not run on hardware.
"""

from __future__ import annotations

from typing import Any

from deployments.models.contract import (
    TINY_NOTICE,
    IsCanceled,
    ModelBroken,
    ModelCanceled,
    OnProgress,
    Placement,
    Progress,
    Weights,
    WeightsMissing,
)
from deployments.models.registry import read_manifest


def require_weights(weights: Weights, placement: Placement) -> None:
    """Set the process up for a model's device. Raises: WeightsMissing if weights or device cannot be had."""
    if weights.directory is None and weights.profile == "tiny":
        raise WeightsMissing(f"{weights.source} is not there", "run 'farebox models build tiny'")
    import torch

    quiet_libraries()
    if placement.device == "cuda" and not torch.cuda.is_available():
        raise WeightsMissing(f"{weights.model} has no GPU", "its weights need CUDA; check num_gpus")
    torch.set_num_threads(placement.cpu_threads)


def is_tiny(weights: Weights) -> bool:
    """Tell whether weights are random ones. Their own manifest decides, whatever the configuration says."""
    manifest = read_manifest(weights.directory) if weights.directory is not None else None
    return weights.profile == "tiny" or (manifest or {}).get("profile") == "tiny"


def weights_unusable(weights: Weights, error: OSError) -> WeightsMissing:
    """Return what an operator is told when a library could not read the weights."""
    return WeightsMissing(
        f"{weights.source} could not be loaded ({type(error).__name__})",
        "pull the weights with 'farebox models pull', or check the directory",
    )


def load_pipeline(pipeline_class: Any, weights: Weights, placement: Placement, **parts: Any) -> Any:
    """Return a pipeline from a directory or the hub, in float32 on a CPU and bfloat16 on a GPU.

    `parts` are ready components, which are then not read from the weights.

    Raises: WeightsMissing, for the operator.
    """
    require_weights(weights, placement)
    import torch

    on_gpu = placement.device == "cuda"
    try:
        pipeline = pipeline_class.from_pretrained(
            weights.source,
            revision=weights.revision,
            dtype=torch.bfloat16 if on_gpu else torch.float32,
            use_safetensors=True,  # the other format runs code while loading
            local_files_only=weights.directory is not None,
            **parts,
        )
    except OSError as error:
        raise weights_unusable(weights, error) from error
    pipeline.set_progress_bar_config(disable=True)
    if on_gpu and placement.cpu_offload:
        pipeline.enable_model_cpu_offload(device="cuda")
    else:
        pipeline.to(placement.device)
    return pipeline


def run_pipeline(
    pipeline: Any, steps: int, on_progress: OnProgress, is_canceled: IsCanceled, **settings: Any
) -> Any:
    """Run a pipeline that calls back, reporting and looking for a cancellation after each step.

    Raises: ModelCanceled at the step after the cancellation; ModelBroken if the GPU is lost to this process.
    """
    import torch

    def report(step: int) -> None:
        if is_canceled():
            raise ModelCanceled
        on_progress(Progress(step / steps, step, steps))

    def after_step(_: Any, index: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        report(index + 1)
        return tensors

    report(0)
    try:
        with torch.inference_mode():
            return pipeline(num_inference_steps=steps, callback_on_step_end=after_step, **settings)
    except torch.AcceleratorError as error:
        raise ModelBroken("The GPU failed in the middle of the work.") from error
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()  # what this job held must not fail the next one
        raise
    finally:
        # Offloaded parts leave the GPU; the pipeline's own call at its end is skipped by a cancellation.
        pipeline.maybe_free_model_hooks()


def noise(seed: int) -> Any:
    """Return the source of a job's noise: on the CPU on every device, so that a seed means the same everywhere."""
    import torch

    return torch.Generator("cpu").manual_seed(seed)


def origin(weights: Weights, *, tiny: bool) -> dict[str, Any]:
    """Return the facts that every output has: the model, its weights, and the notice of random ones."""
    facts: dict[str, Any] = {"model": weights.model, "profile": "tiny" if tiny else weights.profile}
    if weights.revision:
        facts["revision"] = weights.revision
    if tiny:
        facts["notice"] = TINY_NOTICE
    return facts


def quiet_libraries() -> None:
    """Keep progress bars out of a replica's log."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
