"""Weights from a model hub, over the hub's own client: what it lists at one commit, and the files of that.

Invariants:
- A file counts as arrived by the digest that the hub lists: SHA-256 of a large one, git's own of any other.
- Whatever goes wrong is said with what to do about it; no answer of the hub and no token gets into the text.

Source: https://huggingface.co/docs/huggingface_hub
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from deployments.models.contract import WeightsMissing

PAGES: Final = "https://huggingface.co"
"""Where people accept licences and make tokens, whatever mirror the files come from."""
AGAIN: Final = "then pull again"
KEPT: Final = f"{AGAIN}; the files that arrived whole are kept"


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file as the hub lists it. `blob_id` is git's digest of what git keeps: of a large file, its pointer."""

    size_bytes: int | None
    sha256: str | None
    blob_id: str | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of a model at one commit, by their paths."""

    hub_id: str
    commit: str
    files: Mapping[str, HubFile]

    def damaged(self, directory: Path, found: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Return the files that are not in a directory as listed; `found` has the digests and sizes of those there."""
        return [
            name
            for name, listed in self.files.items()
            if name not in found or not _is_as_listed(listed, directory / name, found[name])
        ]


def look_up(hub_id: str, revision: str | None, endpoint: str | None) -> Snapshot:
    """Return what the hub lists at a commit, tag or branch; None for the newest. Raises: WeightsMissing."""
    from huggingface_hub import HfApi

    with _told(hub_id, revision):
        found = HfApi(endpoint=endpoint).model_info(hub_id, revision=revision, files_metadata=True)
        assert found.sha is not None, "the hub names the commit of what it lists"
        files = {
            each.rfilename: HubFile(each.size, each.lfs.sha256 if each.lfs else None, each.blob_id)
            for each in found.siblings or []
        }
    return Snapshot(hub_id, found.sha, files)


def fetch(snapshot: Snapshot, directory: Path, endpoint: str | None) -> None:
    """Download what a directory lacks of a snapshot. A cut connection is taken up where it broke.

    Raises: WeightsMissing; the files that are whole by then stay.
    """
    from huggingface_hub import HfApi

    with _told(snapshot.hub_id, snapshot.commit):
        HfApi(endpoint=endpoint).snapshot_download(
            snapshot.hub_id, revision=snapshot.commit, local_dir=directory
        )


def _is_as_listed(listed: HubFile, path: Path, found: Mapping[str, Any]) -> bool:
    if listed.size_bytes not in (None, found["size_bytes"]):
        return False
    if listed.sha256 is not None:
        return bool(listed.sha256 == found["sha256"])
    return listed.blob_id in (None, _blob_id(path.read_bytes()))


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@contextmanager
def _told(hub_id: str, revision: str | None) -> Generator[None]:
    try:
        yield
    except Exception as error:  # the hub client raises from three libraries' trees
        what, remedy = _refusal(hub_id, revision, error)
        raise WeightsMissing(what, remedy) from error


def _refusal(hub_id: str, revision: str | None, error: Exception) -> tuple[str, str]:  # noqa: PLR0911  # one a reason
    """Return what went wrong, and what to do."""
    from huggingface_hub import errors, get_token

    causes = list(_causes(error))

    def first(kind: type[Any]) -> Any:
        return next((cause for cause in causes if isinstance(cause, kind)), None)

    answer = getattr(first(errors.HfHubHTTPError), "response", None)
    status = 0 if answer is None else answer.status_code
    if first(errors.GatedRepoError):
        licence, tokens = f"{PAGES}/{hub_id}", f"{PAGES}/settings/tokens"
        if status == HTTPStatus.FORBIDDEN:
            return (
                f"{hub_id} is gated, and the account of HF_TOKEN has no access to it",
                f"accept its licence at {licence} with that account, wait if its owner must agree, {AGAIN}",
            )
        return (
            f"{hub_id} is gated",
            f"accept its licence at {licence}, set HF_TOKEN to a read token of that account ({tokens}), {AGAIN}",
        )
    if first(errors.RevisionNotFoundError):
        return (
            f"{hub_id} has no revision {revision!r}",
            f"name a commit, tag or branch of {PAGES}/{hub_id}/commits",
        )
    if status == HTTPStatus.UNAUTHORIZED and get_token():
        return "the hub does not take HF_TOKEN", f"make a new one at {PAGES}/settings/tokens, {AGAIN}"
    if first(errors.RepositoryNotFoundError) or status == HTTPStatus.UNAUTHORIZED:
        return (
            f"the hub has no {hub_id}, or only for those who may see it",
            f"check the name and, for a mirror, HF_ENDPOINT; for a private model set HF_TOKEN; {AGAIN}",
        )
    if first(errors.OfflineModeIsEnabled):
        return f"{hub_id} was not asked for: HF_HUB_OFFLINE is set", f"unset it, {AGAIN}"
    if status:
        return f"{hub_id} could not be downloaded: the hub answers {status}", f"wait a little, {KEPT}"
    return (
        f"{hub_id} could not be downloaded ({type(causes[-1]).__name__})",
        f"check the network, the proxy and, for a mirror, HF_ENDPOINT; {KEPT}",
    )


def _causes(error: BaseException | None) -> Generator[BaseException]:
    """Yield an error and what caused it, the first cause last."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__
