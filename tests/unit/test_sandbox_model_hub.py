"""The twin of the model hub answers the official client as the hub does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sandbox.model_hub import Hub, create_hub, create_store
from sandbox.testing import running

ID = "ada/engine"
SMALL, LARGE = b'{"a": 1}\n', b"\x07" * 1000
FILES = {"config.json": SMALL, "unet/model.safetensors": LARGE}


@pytest.fixture
def hub() -> Hub:
    hub = Hub(tokens={"hf_ada", "hf_bob"})
    hub.repository(ID).push(FILES)
    return hub


@pytest.fixture
def url(hub: Hub) -> Iterator[str]:
    with running(create_hub(hub)) as url, running(create_store(hub)) as hub.store_url:
        yield url


def api(url: str, token: str | bool = False) -> HfApi:
    return HfApi(endpoint=url, token=token)


def test_a_model_lists_its_files_at_the_commit_of_a_branch(hub: Hub, url: str) -> None:
    first = hub.repository(ID).branches["main"]
    second = hub.repository(ID).push({"config.json": b"{}"})
    found = api(url).model_info(ID, files_metadata=True)
    assert (found.sha, [each.rfilename for each in found.siblings or []]) == (second, ["config.json"])
    small, large = api(url).model_info(ID, revision=first, files_metadata=True).siblings or []
    assert (small.size, small.lfs) == (len(SMALL), None)
    assert small.blob_id == hashlib.sha1(b"blob 9\0" + SMALL, usedforsecurity=False).hexdigest()
    assert large.lfs is not None
    assert (large.size, large.lfs.sha256) == (len(LARGE), hashlib.sha256(LARGE).hexdigest())
    paths = {each.path for each in api(url).list_repo_tree(ID, revision=first, recursive=True)}
    assert paths == {"config.json", "unet", "unet/model.safetensors"}


def test_the_head_of_a_file_names_commit_digest_size_and_where_it_lies(hub: Hub, url: str) -> None:
    commit = hub.repository(ID).branches["main"]

    def head(path: str):
        return get_hf_file_metadata(hf_hub_url(ID, path, revision=commit, endpoint=url), token=False)

    small, large = head("config.json"), head("unet/model.safetensors")
    assert (small.commit_hash, small.size) == (commit, len(SMALL))
    assert small.location.startswith(url)
    assert (large.commit_hash, large.size) == (commit, len(LARGE))
    assert large.etag == hashlib.sha256(LARGE).hexdigest()
    assert large.location.startswith(hub.store_url)
    assert httpx.get(large.location).content == LARGE
    unsigned = large.location.partition("?")[0]
    assert httpx.get(unsigned).status_code == 403


def test_a_file_is_sent_from_the_byte_on_that_is_asked_for(hub: Hub, url: str) -> None:
    answer = httpx.get(f"{url}/{ID}/resolve/main/config.json", headers={"range": "bytes=3-"})
    assert (answer.status_code, answer.content) == (206, SMALL[3:])
    assert answer.headers["content-range"] == "bytes 3-8/9"
    [sent] = hub.sent
    assert (sent.path, sent.start, sent.size_bytes) == ("config.json", 3, 6)


def test_a_cut_breaks_one_answer(hub: Hub, url: str) -> None:
    hub.cuts["config.json"] = 4
    address = f"{url}/{ID}/resolve/main/config.json"
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(address)
    assert httpx.get(address).content == SMALL


def test_what_is_not_there_or_not_for_everybody_is_refused_as_the_hub_does(
    hub: Hub, url: str, tmp_path: Path
) -> None:
    def fetch(token: str | bool, path: str = "config.json", revision: str = "main") -> str:
        return api(url, token).hf_hub_download(ID, path, revision=revision, local_dir=tmp_path / str(token))

    with pytest.raises(RemoteEntryNotFoundError):
        fetch(False, "none.json")
    with pytest.raises(RevisionNotFoundError):
        fetch(False, revision="none")
    with pytest.raises(RepositoryNotFoundError):
        api(url, "hf_ada").model_info("ada/none")
    with pytest.raises(HfHubHTTPError, match="401"):
        api(url).model_info("ada/none")
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        api(url, "hf_wrong").model_info(ID)
    hub.repository(ID).gated, hub.repository(ID).admitted = True, {"hf_ada"}
    assert api(url).model_info(ID).gated == "auto"
    for token, status in ((False, 401), ("hf_bob", 403)):
        with pytest.raises(GatedRepoError) as raised:
            fetch(token)
        assert raised.value.response.status_code == status
    assert Path(fetch("hf_ada")).read_bytes() == SMALL
