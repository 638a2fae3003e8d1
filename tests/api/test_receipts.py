"""Receipts by HTTP: of ended jobs alone, signed, the same each time, and refused once anything was changed."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typer.testing import CliRunner

from deployments import receipts as command
from deployments.cli import app as farebox
from gateway.account_answers import JwkSet, ReceiptShown
from gateway.app import create_app
from gateway.leases import Settlement
from gateway.ports import StoredFile
from gateway.receipts import read_receipt, verify_receipt
from kit.ids import new_id
from kit.settings import Settings, SettingsError, load_settings
from kit.signing import BadSignature, SigningKeys

JOBS, JWKS = "/api/v1/media/jobs", "/.well-known/jwks.json"
FOX: dict[str, Any] = {"task": "image.generate", "input": {"prompt": "cinematic fox astronaut"}}
PIXELS = b"\x89PNG\r\n\x1a\n" + b"pixels" * 100


async def submit(owner) -> str:
    return str((await owner.client.post(JOBS, json=FOX)).json()["jobId"])


async def finish(server, job_id: str) -> str:
    """Do the Runner's part for one job; returns its file."""
    claimed = {job.id: job for job in await server.claim_jobs("runner", {"image": 100}, 0.0)}[job_id]
    file = StoredFile(
        id=new_id("file"),
        name="0.png",
        storage_key=f"outputs/{job_id}/0.png",
        content_type="image/png",
        size_bytes=len(PIXELS),
        sha256=hashlib.sha256(PIXELS).hexdigest(),
        created_at=datetime.now(UTC),
        job_id=job_id,
    )
    await server.settle_job(Settlement(job_id, claimed.fence, [file], claimed.quoted_tokens, {}))
    return file.id


@pytest.fixture
async def paid(customer, server, client) -> tuple[dict[str, Any], dict[str, Any]]:
    """A receipt and the server's keys."""
    owner = await customer()
    job_id = await submit(owner)
    await finish(server, job_id)
    receipt = (await owner.client.get(f"{JOBS}/{job_id}/receipt")).json()
    return receipt, (await client.get(JWKS)).json()


async def test_200_a_receipt_states_what_was_made_and_charged_and_is_signed(customer, server, client):
    owner = await customer()
    job_id = await submit(owner)
    file_id = await finish(server, job_id)
    answer = await owner.client.get(f"{JOBS}/{job_id}/receipt")
    assert answer.status_code == 200, answer.text
    ReceiptShown.model_validate_json(answer.content)
    receipt = answer.json()
    fields = {
        "issuer": "http://farebox.test",
        "jobId": job_id,
        "task": "image.generate",
        "tool": "image",
        "status": "succeeded",
        "units": "1",
        "priceVersion": 1,
        "quotedTokens": 100,
        "quotedCredits": "1.00",
        "chargedTokens": 100,
        "chargedCredits": "1.00",
        "outputs": [
            {
                "id": file_id,
                "contentType": "image/png",
                "sizeBytes": len(PIXELS),
                "sha256": hashlib.sha256(PIXELS).hexdigest(),
            }
        ],
    }
    assert receipt.items() >= fields.items()
    charge = (await owner.client.get("/api/v1/statement")).json()["data"][0]
    assert (charge["kind"], charge["transferId"]) == ("capture", receipt["transferId"])
    signed = verify_receipt(receipt, (await client.get(JWKS)).json())
    assert {"ok": True, **signed, "jws": receipt["jws"]} == receipt


async def test_200_the_same_receipt_comes_again_by_both_paths_and_after_its_files_are_gone(customer, server):
    owner = await customer()
    job_id = await submit(owner)
    file_id = await finish(server, job_id)
    first = (await owner.client.get(f"{JOBS}/{job_id}/receipt")).json()
    assert (await owner.client.delete(f"/api/v1/files/{file_id}")).status_code == 200
    assert (await owner.client.get(f"/api/v1/jobs/{job_id}/receipt")).json() == first


async def test_200_a_job_that_ended_without_a_charge_has_a_receipt_that_says_so(customer, client):
    owner = await customer()
    job_id = await submit(owner)
    await owner.client.post(f"{JOBS}/{job_id}/cancel")
    answer = await owner.client.get(f"{JOBS}/{job_id}/receipt")
    ReceiptShown.model_validate_json(answer.content)
    receipt = verify_receipt(answer.json(), (await client.get(JWKS)).json())
    assert (receipt["status"], receipt["chargedTokens"], receipt["transferId"]) == ("canceled", 0, None)
    assert (receipt["outputs"], receipt["startedAt"]) == ([], None)


async def test_200_the_public_keys_are_cacheable_and_need_no_key(client, settings):
    answer = await client.get(JWKS)
    assert answer.status_code == 200
    JwkSet.model_validate_json(answer.content)
    assert "public" in answer.headers["cache-control"]
    assert answer.headers["access-control-allow-origin"] == "*"
    assert settings.secret.get_secret_value() not in answer.text


async def test_409_a_job_under_way_has_no_receipt_yet(customer, server):
    owner = await customer()
    job_id = await submit(owner)
    for state in ("queued", "running"):
        answer = await owner.client.get(f"{JOBS}/{job_id}/receipt")
        assert (answer.status_code, answer.json()["error"]) == (409, "job_not_finished")
        assert state in answer.json()["message"]
        await server.claim_jobs("runner", {"image": 1}, 0.0)


async def test_404_for_another_accounts_job_and_401_without_a_key(customer, server, client):
    owner, stranger = await customer(), await customer()
    job_id = await submit(owner)
    await finish(server, job_id)
    for path in (f"{JOBS}/{job_id}/receipt", f"/api/v1/jobs/{job_id}/receipt"):
        assert (await stranger.client.get(path)).json()["error"] == "not_found"
        assert (await client.get(path)).json()["error"] == "auth_required"
    assert (await owner.client.get(f"{JOBS}/job_x/receipt")).status_code == 404


# -- verification --------------------------------------------------------------------------------------------------


async def test_any_changed_missing_or_added_field_is_refused_by_name(paid):
    receipt, jwks = paid
    for name in receipt.keys() - {"ok", "jws"}:
        with pytest.raises(BadSignature, match=name):
            verify_receipt({**receipt, name: "other"}, jwks)
        with pytest.raises(BadSignature, match=name):
            verify_receipt({other: value for other, value in receipt.items() if other != name}, jwks)
    for name, value in [("tip", 1), ("priceVersion", True), ("chargedTokens", 100.0)]:
        with pytest.raises(BadSignature, match=name):
            verify_receipt({**receipt, name: value}, jwks)
    changed = {**receipt, "outputs": [{**receipt["outputs"][0], "sha256": "0" * 64}]}
    with pytest.raises(BadSignature, match="outputs"):
        verify_receipt(changed, jwks)


async def test_the_signed_form_alone_is_a_receipt_too(paid):
    receipt, jwks = paid
    assert verify_receipt(read_receipt(f" {receipt['jws']}\n"), jwks)["jobId"] == receipt["jobId"]


async def test_a_receipt_of_another_server_is_refused(paid):
    receipt, _ = paid
    with pytest.raises(BadSignature, match="not among"):
        verify_receipt(receipt, SigningKeys.derived(b"another server's secret", "farebox receipts 1").jwks)


@pytest.mark.parametrize("text", ["", "{", "{}", '{"jws": 7}', '{"jws": null}', "[]", "a.b.c", "{" * 100_000])
def test_what_is_no_receipt_is_refused(text):
    with pytest.raises(BadSignature):
        verify_receipt(read_receipt(text), {"keys": []})


async def test_keys_of_files_sign_and_the_old_one_goes_on_to_verify(  # noqa: PLR0917
    paid, settings, stub_ledger, models, objects, tmp_path
):
    receipt, old = paid
    key = Ed25519PrivateKey.generate()
    (tmp_path / "new.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "old.json").write_text(json.dumps(old))
    told = Settings(**{**settings.model_dump(), "receipt_keys": f"{tmp_path}/new.pem, {tmp_path}/old.json"})
    app = create_app(told, stub_ledger, models, None, objects)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as web:
        jwks = (await web.get(JWKS)).json()
    assert [each["kid"] for each in jwks["keys"]] == [SigningKeys(key).kid, old["keys"][0]["kid"]]
    assert verify_receipt(receipt, jwks)["jobId"] == receipt["jobId"]


def test_a_key_file_that_is_none_is_refused_by_the_settings(monkeypatch, tmp_path):
    monkeypatch.setenv("FAREBOX_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("FAREBOX_RECEIPT_KEYS", str(tmp_path / "missing.pem"))
    with pytest.raises(SettingsError, match=r"FAREBOX_RECEIPT_KEYS.*missing\.pem"):
        load_settings()


# -- the command ---------------------------------------------------------------------------------------------------


def run(*arguments: str, stdin: str = ""):
    return CliRunner().invoke(farebox, ["receipt", "verify", *arguments], input=stdin)


async def test_the_command_prints_what_was_signed_and_leaves_with_0(paid, tmp_path):
    receipt, jwks = paid
    (tmp_path / "receipt.json").write_text(json.dumps(receipt))
    (tmp_path / "jwks.json").write_text(json.dumps(jwks))
    done = run(str(tmp_path / "receipt.json"), "--jwks", str(tmp_path / "jwks.json"))
    assert done.exit_code == 0, done.output
    lines = dict(line.split("\t") for line in done.output.splitlines()[1:])
    assert done.output.startswith("valid\n")
    assert (lines["jobId"], lines["chargedTokens"]) == (receipt["jobId"], "100")
    assert receipt["outputs"][0]["sha256"] in lines["output"]
    piped = run("-", "--jwks", str(tmp_path / "jwks.json"), stdin=receipt["jws"])
    assert piped.output == done.output


async def test_the_command_leaves_with_1_for_a_changed_receipt_and_prints_none_of_it(paid, tmp_path):
    receipt, jwks = paid
    (tmp_path / "jwks.json").write_text(json.dumps(jwks))
    changed = json.dumps({**receipt, "chargedTokens": 1})
    done = run("-", "--jwks", str(tmp_path / "jwks.json"), stdin=changed)
    assert done.exit_code == 1
    assert "chargedTokens" in done.stderr
    assert done.stdout == ""


async def test_the_command_takes_the_keys_of_the_issuer_over_https_alone(paid, monkeypatch):
    receipt, _ = paid
    done = run("-", stdin=json.dumps(receipt))
    assert done.exit_code == 1
    assert "--jwks" in done.stderr
    asked = []
    monkeypatch.setattr(command, "_keys", lambda source: asked.append(source) or {"keys": []})
    keys = SigningKeys.derived(b"another server's secret", "x")
    for issuer in ("https://api.example.com", "http://127.0.0.1:8000/", "http://localhost:8000"):
        run("-", stdin=keys.sign(json.dumps({"issuer": issuer}).encode(), "farebox-receipt"))
    assert asked == [
        "https://api.example.com/.well-known/jwks.json",
        "http://127.0.0.1:8000/.well-known/jwks.json",
        "http://localhost:8000/.well-known/jwks.json",
    ]


@pytest.mark.parametrize("text", ["", "nonsense", "\x00", '{"jws": "a.b.c"}'])
def test_the_command_leaves_with_1_for_what_is_no_receipt(text):
    done = run("-", stdin=text)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "not valid" in done.stderr
