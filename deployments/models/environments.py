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
from typing import Final, Literal, cast

import structlog

from deployments.models.contract import SmallFamily
from kit.errors import AppError
from kit.settings import environment as variables

log = structlog.get_logger(__name__)

BUILD_TIMEOUT_S: Final = 600
"""Weights take seconds to make; the first import of their libraries on a busy laptop takes a minute."""
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


def build(environment: str, family: str, kind: Literal["tiny", "small"], *arguments: str) -> None:
    """Have a family's `build_tiny` or `build_small` run in its environment. Raises: EnvironmentMissing."""
    command = [str(python_of(environment)), "-m", __name__, family, kind, *arguments]
    try:
        # Our own interpreter and module.
        subprocess.run(  # noqa: S603
            command, check=True, timeout=BUILD_TIMEOUT_S, capture_output=True, env=variables()
        )
    except subprocess.CalledProcessError as error:
        log.warning(
            "weights not built", family=family, kind=kind, said=error.stderr.decode(errors="replace")[-2000:]
        )
        raise EnvironmentMissing(environment, "does not work (its log says why)") from error
    except subprocess.TimeoutExpired as error:
        raise EnvironmentMissing(environment, f"took longer than {BUILD_TIMEOUT_S} s") from error


def _prefix(environment: str) -> Path:
    """Environments are neighbours, also seen from one of them."""
    return Path(sys.prefix).with_name(f".venv-{environment}")


def _main(family: str, kind: str, first: str, second: str) -> None:
    from deployments.models.registry import load_family

    if kind == "tiny":
        load_family(family).build_tiny(Path(first), int(second))
    else:
        cast("type[SmallFamily]", load_family(family)).build_small(Path(first), Path(second))


if __name__ == "__main__":
    _main(*sys.argv[1:])
