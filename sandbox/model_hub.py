"""A twin of the Hugging Face hub, as far as weights are fetched from it: what a repository has, and its files.

Git's small files come from the hub, large ones (LFS) from a store at an address of its own, which a token must never
reach. A test holds the repositories in its hand: what it pushes, gates, cuts or spoils, the next request meets.
Source: https://huggingface.co/docs/hub/api, and the requests that `huggingface_hub` makes.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

# What a repository's .gitattributes usually names.
LFS_SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".gguf", ".onnx")


@dataclass
class Repository:
    """A model. `gated`: its licence must be accepted, as the owners of the `admitted` tokens have done."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    admitted: set[str] = field(default_factory=set)

    def push(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Put files on a branch as its next commit; give the commit's id."""
        content = "".join(f"{path}:{_sha256(files[path])}\n" for path in sorted(files))
        commit = hashlib.sha1(f"{branch}:{len(self.commits)}\n{content}".encode()).hexdigest()  # noqa: S324  # as git's
        self.commits[commit] = dict(files)
        self.branches[branch] = commit
        return commit

    def commit_of(self, revision: str) -> str | None:
        """Give the commit that a branch or a commit's id names, if there is one."""
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None


@dataclass(frozen=True)
class Sent:
    """A file whose bytes were asked for, from which byte on, and how many of them went out."""

    path: str
    start: int
    size_bytes: int


@dataclass
class Hub:
    """The repositories and what happened to them.

    `cuts`: after how many bytes the connection of the next answer with a file breaks; `stalls`: after how many it is
    silent, having `stalled`, until `released`. `spoiled`: files that are sent
    with other bytes than they have, `cropped` ones that end too soon, though the answer looks whole. `store_url`: where
    large files are fetched; without one the hub sends them itself, as a mirror does.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    store_url: str = ""
    cuts: dict[str, int] = field(default_factory=dict)
    stalls: dict[str, int] = field(default_factory=dict)
    stalled: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    spoiled: set[str] = field(default_factory=set)
    cropped: set[str] = field(default_factory=set)
    down: bool = False
    sent: list[Sent] = field(default_factory=list)
    tokens_at_store: list[str] = field(default_factory=list)

    def repository(self, hub_id: str) -> Repository:
        """Give a repository, made at the first look."""
        return self.repositories.setdefault(hub_id, Repository())


def create_hub(hub: Hub) -> FastAPI:
    """Build the hub's own server."""
    app = FastAPI(openapi_url=None)

    @app.get("/api/models/{owner}/{name}")
    @app.get("/api/models/{owner}/{name}/revision/{revision}")
    async def facts(request: Request, owner: str, name: str, revision: str = "main") -> Response:
        commit = _look_up(hub, request, f"{owner}/{name}", revision)
        if isinstance(commit, Response):
            return commit
        repository = hub.repositories[f"{owner}/{name}"]
        siblings = [
            _sibling(path, data) if request.query_params.get("blobs") else {"rfilename": path}
            for path, data in repository.commits[commit].items()
        ]
        gated = "auto" if repository.gated else False
        return JSONResponse({"id": f"{owner}/{name}", "sha": commit, "gated": gated, "siblings": siblings})

    @app.get("/api/models/{owner}/{name}/tree/{revision}")
    async def tree(request: Request, owner: str, name: str, revision: str) -> Response:
        commit = _look_up(hub, request, f"{owner}/{name}", revision)
        if isinstance(commit, Response):
            return commit
        files = hub.repositories[f"{owner}/{name}"].commits[commit]
        folders = sorted({path.rpartition("/")[0] for path in files} - {""})
        return JSONResponse(
            [{"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in folders]
            + [_leaf(path, data) for path, data in files.items()]
        )

    @app.api_route("/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    async def resolve(request: Request, owner: str, name: str, revision: str, path: str) -> Response:
        commit = _look_up(hub, request, f"{owner}/{name}", revision, whole=True)
        if isinstance(commit, Response):
            return commit
        data = hub.repositories[f"{owner}/{name}"].commits[commit].get(path)
        if data is None:
            return _refusal(404, "EntryNotFound", "Entry not found")
        named = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not _is_large(path):
            return _file(hub, request, path, data, named | {"ETag": f'"{_blob_id(data)}"'})
        named |= {"X-Linked-Etag": f'"{_sha256(data)}"', "X-Linked-Size": str(len(data))}
        if not hub.store_url:
            return _file(hub, request, path, data, named)
        signed = f"{hub.store_url}/{_sha256(data)}?Expires=1795600000&Signature=twin"
        return Response(status_code=302, headers=named | {"Location": signed})

    return app


def create_store(hub: Hub) -> FastAPI:
    """Build the server of the large files, which are asked for by their digest."""
    app = FastAPI(openapi_url=None)

    @app.api_route("/{digest}", methods=["GET", "HEAD"])
    async def large(request: Request, digest: str) -> Response:
        if "authorization" in request.headers:
            hub.tokens_at_store.append(request.headers["authorization"])
        for repository in hub.repositories.values():
            for files in repository.commits.values():
                for path, data in files.items():
                    if _sha256(data) == digest and request.query_params.get("Signature") == "twin":
                        return _file(hub, request, path, data, {"ETag": f'"{digest}"'})
        return Response(status_code=403)

    return app


def _look_up(
    hub: Hub, request: Request, hub_id: str, revision: str, *, whole: bool = False
) -> str | Response:
    """Give the commit that is asked for, or the refusal. Facts are public; the files of a gated model are not."""
    if hub.down:
        return Response(status_code=503)
    token = request.headers.get("authorization", "").removeprefix("Bearer ")
    if token and token not in hub.tokens:
        return _refusal(401, "", "Invalid credentials in Authorization header")
    repository = hub.repositories.get(hub_id)
    if repository is None and not token:  # whether it is private is not told to strangers
        return _refusal(401, "", "Invalid username or password.")
    if repository is None:
        return _refusal(404, "RepoNotFound", "Repository not found")
    if whole and repository.gated and token not in repository.admitted:
        asked = "and you are not in the authorized list" if token else "You must have access to it"
        return _refusal(
            403 if token else 401, "GatedRepo", f"Access to model {hub_id} is restricted. {asked}"
        )
    commit = repository.commit_of(revision)
    return commit or _refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")


def _refusal(status: int, code: str, message: str) -> Response:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return JSONResponse({"error": message}, status, headers=headers)


def _file(hub: Hub, request: Request, path: str, data: bytes, headers: dict[str, str]) -> Response:
    """Send a file from the byte on that is asked for, with what was arranged to go wrong."""
    if request.method == "HEAD":
        return Response(headers=headers | {"Content-Length": str(len(data))})
    if path in hub.spoiled:
        data = bytes(byte ^ 0xFF for byte in data)
    if path in hub.cropped:
        data = data[:-1]
    asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
    start = int(asked[1]) if asked else 0
    rest = data[start:]
    headers |= {"Content-Length": str(len(rest))}
    if asked:
        headers |= {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
    cut, stall = hub.cuts.pop(path, None), hub.stalls.pop(path, None)
    sent_bytes = min(each for each in (cut, stall, len(rest)) if each is not None)

    async def body() -> AsyncIterator[bytes]:
        yield rest[:sent_bytes]
        hub.sent.append(Sent(path, start, sent_bytes))
        if stall is not None:
            hub.stalled.set()
            await asyncio.to_thread(hub.released.wait)
            yield rest[stall:]
        if cut is not None:
            message = f"the connection breaks after {cut} bytes of {path}"
            raise ConnectionAbortedError(message)

    return StreamingResponse(body(), 206 if asked else 200, headers, "application/octet-stream")


def _sibling(path: str, data: bytes) -> dict[str, Any]:
    facts: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": _blob_id(_in_git(path, data))}
    if _is_large(path):
        facts["lfs"] = {
            "sha256": _sha256(data),
            "size": len(data),
            "pointerSize": len(_in_git(path, data)),
        }
    return facts


def _leaf(path: str, data: bytes) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "type": "file",
        "path": path,
        "size": len(data),
        "oid": _blob_id(_in_git(path, data)),
    }
    if _is_large(path):
        facts["lfs"] = {"oid": _sha256(data), "size": len(data), "pointerSize": len(_in_git(path, data))}
    return facts


def _is_large(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


def _in_git(path: str, data: bytes) -> bytes:
    """Give what git keeps of a file: of a large one, its pointer."""
    if not _is_large(path):
        return data
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{_sha256(data)}\nsize {len(data)}\n"
    return pointer.encode()


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: S324  # git's


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
