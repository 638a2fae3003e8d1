"""What every family does before and after its own part: setting the process up, the marks of tiny weights, the facts.

Imports no tensor library, and inside its functions torch alone: a family may live in an environment of its own.
The CUDA path (bfloat16, optional offload) follows the libraries' documentation and has not run on hardware.
"""

from __future__ import annotations

from typing import Any

from deployments.models.contract import TINY_NOTICE, Placement, Weights, WeightsMissing
from deployments.models.registry import read_manifest


def require_weights(weights: Weights, placement: Placement) -> None:
    """Set the process up for a model's device. Raises: WeightsMissing if weights or device cannot be had."""
    if weights.directory is None and weights.profile != "gpu":
        raise WeightsMissing(
            f"{weights.source} is not there", f"run 'farebox models build {weights.profile}'"
        )
    import torch

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


def dtype(placement: Placement) -> Any:
    """Return the numbers that a device computes with: float32 on a CPU, bfloat16 on a GPU."""
    import torch

    return torch.bfloat16 if placement.device == "cuda" else torch.float32


def origin(weights: Weights, *, tiny: bool) -> dict[str, Any]:
    """Return the facts that every output has: the model, its weights, and the notice of random ones."""
    facts: dict[str, Any] = {"model": weights.model, "profile": "tiny" if tiny else weights.profile}
    if weights.revision:
        facts["revision"] = weights.revision
    if tiny:
        facts["notice"] = TINY_NOTICE
    return facts
