"""Environments of their own, for models whose packages pin other versions than the rest of the platform.

Each is a virtual environment beside the platform's, made by `make`: `.venv` has the neighbour `.venv-speech`. What it
lacks, Ray and our own packages above all, it finds in the platform's through a `.pth` line.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deployments.models.contract import WeightsMissing
from kit.errors import AppError
from kit.settings import environment as variables

BUILD_TIMEOUT_S: Final = 600
"""Tiny weights take seconds; the first import of their libraries on a busy laptop takes a minute."""
_REQUIREMENTS: Final = Path(__file__).parent.parent / "environments"


@dataclass
class EnvironmentMissing(AppError):
    """A model's own environment is not there, or does not work. The text is public."""

    environment: str
    problem: str
    code = "environment_missing"
    status = 503

    @property
    def message(self) -> str:
        made = f"the operator makes it with 'make {self.environment}'"
        return f"The {self.environment} environment {self.problem}; {made}."


def python_of(environment: str) -> Path:
    """Return the interpreter of an environment. Raises: EnvironmentMissing."""
    python = _prefix(environment) / "bin" / "python"
    if not python.is_file():
        raise EnvironmentMissing(environment, "is not installed")
    return python


def is_here(environment: str) -> bool:
    """Tell whether this process runs in an environment."""
    return Path(sys.prefix) == _prefix(environment)


def pins(environment: str) -> str:
    """Return a digest of an environment's versions, the same for whoever asks."""
    return hashlib.sha256((_REQUIREMENTS / f"{environment}.txt").read_bytes()).hexdigest()


def build_tiny(environment: str, family: str, directory: Path, seed: int) -> None:
    """Have a family's tiny weights built in its environment. Raises: EnvironmentMissing, WeightsMissing."""
    command = [str(python_of(environment)), "-m", __name__, family, str(directory), str(seed)]
    try:
        # Our own interpreter and module.
        subprocess.run(  # noqa: S603
            command, check=True, timeout=BUILD_TIMEOUT_S, capture_output=True, env=variables()
        )
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode(errors="replace").strip().rpartition("\n")[2][:300]
        raise WeightsMissing(
            f"{family} could not build its tiny weights ({last})", f"run 'make {environment}'"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise WeightsMissing(f"{family} took too long to build its tiny weights", "try again") from error


def _prefix(environment: str) -> Path:
    """Environments are neighbours, also seen from one of them."""
    return Path(sys.prefix).with_name(f".venv-{environment}")


if __name__ == "__main__":
    from deployments.models.registry import load_family

    load_family(sys.argv[1]).build_tiny(Path(sys.argv[2]), int(sys.argv[3]))
