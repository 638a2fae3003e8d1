"""What all diffusers pipelines have in common: loading, and a run that reports and can be canceled."""

from __future__ import annotations

import inspect
from typing import Any

from deployments.models import loading
from deployments.models.contract import (
    IsCanceled,
    ModelBroken,
    ModelCanceled,
    OnProgress,
    Placement,
    Progress,
    Weights,
)


def load_pipeline(pipeline_class: Any, weights: Weights, placement: Placement, **parts: Any) -> Any:
    """Return a pipeline from a directory or the hub, in float32 on a CPU and bfloat16 on a GPU.

    `parts` are ready components, which are then not read from the weights.

    Raises: WeightsMissing, for the operator.
    """
    loading.require_weights(weights, placement)
    quiet_libraries()
    on_gpu = placement.device == "cuda"
    try:
        pipeline = pipeline_class.from_pretrained(
            weights.source,
            revision=weights.revision,
            dtype=loading.dtype(placement),
            use_safetensors=True,  # the other format runs code while loading
            local_files_only=weights.directory is not None,
            **parts,
        )
    except OSError as error:
        raise loading.weights_unusable(weights, error) from error
    pipeline.set_progress_bar_config(disable=True)
    if on_gpu and placement.cpu_offload:
        pipeline.enable_model_cpu_offload(device="cuda")
    else:
        pipeline.to(placement.device)
    return pipeline


def run_pipeline(
    pipeline: Any, steps: int, on_progress: OnProgress, is_canceled: IsCanceled, **settings: Any
) -> Any:
    """Run a pipeline, reporting and looking for a cancellation after each step.

    Older pipelines call back in another way, and count a step once for each of their solver's halves.

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

    def after_old_step(index: int, _: Any, __: Any) -> None:
        report(min(index + 1, steps))

    callback: dict[str, Any] = {"callback_on_step_end": after_step}
    if "callback_on_step_end" not in inspect.signature(pipeline.__call__).parameters:
        callback = {"callback": after_old_step}
    report(0)
    try:
        with torch.inference_mode():
            return pipeline(num_inference_steps=steps, **callback, **settings)
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


def quiet_libraries() -> None:
    """Keep progress bars out of a replica's log."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
