"""Receipts of finished jobs: what was made, what it cost, signed so that anyone can check it without asking us.

A receipt's fields are texts, whole numbers, lists and null, never fractions, so that its canonical form (RFC 8785) is
plain: names sorted, no spaces. That form is what is signed; beside the signature the fields stand once more to be
read, and verification refuses them when they differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import orjson

from gateway.ports import FinishedJob, StoredFile
from gateway.responses import credits_text, dump, units_text
from kit.settings import Settings
from kit.signing import BadSignature, SigningKeys, unverified_payload, verify

TYPE: Final = "farebox-receipt"
"""Stands in the signature's header: no other document that these keys sign is taken for a receipt."""
PURPOSE: Final = "farebox receipts 1"
"""Another purpose of the same secret gets another key."""
JWKS_PATH: Final = "/.well-known/jwks.json"


def receipt_keys(settings: Settings) -> SigningKeys:
    """Return the keys that sign receipts: those of the configured files, else one made from the secret."""
    if settings.receipt_keys:
        return SigningKeys.from_files(settings.receipt_key_files)
    return SigningKeys.derived(settings.secret.get_secret_value().encode(), PURPOSE)


def receipt(job: FinishedJob, issuer: str, keys: SigningKeys) -> dict[str, Any]:
    """Return a job's receipt: its fields, and `jws`, their signed form. The same job gives the same receipt."""
    fields = {
        "issuer": issuer,
        "jobId": job.id,
        "task": job.task,
        "tool": job.tool,
        "status": job.status,
        "units": None if job.units_milli is None else units_text(job.units_milli),
        "priceVersion": job.price_version,
        "quotedTokens": job.quoted_tokens,
        "quotedCredits": credits_text(job.quoted_tokens),
        "chargedTokens": job.charged_tokens,
        "chargedCredits": credits_text(job.charged_tokens),
        "transferId": job.transfer_id,
        "outputs": [_output(file) for file in job.outputs],
        "createdAt": job.created_at,
        "startedAt": job.started_at,
        "finishedAt": job.finished_at,
    }
    written = orjson.loads(dump(fields))
    return {**written, "jws": keys.sign(_canonical(written), TYPE)}


def _output(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "contentType": file.content_type,
        "sizeBytes": file.size_bytes,
        "sha256": file.sha256,
    }


def read_receipt(text: str) -> dict[str, Any]:
    """Return a receipt as it was saved: the answer's JSON, or its `jws` alone. Raises: BadSignature."""
    text = text.strip()
    if not text.startswith("{"):
        return {"jws": text}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadSignature("is not JSON") from error
    return dict(found)


def signed_issuer(shown: Mapping[str, Any]) -> str:
    """Return who a receipt says it is from, before anything was verified. Raises: BadSignature."""
    try:
        issuer = json.loads(unverified_payload(str(shown.get("jws"))))["issuer"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadSignature("is not a receipt: it names no issuer") from error
    if not isinstance(issuer, str):
        raise BadSignature("is not a receipt: it names no issuer")
    return issuer


def verify_receipt(shown: Mapping[str, Any], jwks: Any) -> dict[str, Any]:
    """Return the fields that were signed, if one of the keys signed them and what is shown beside is the same.

    Raises: BadSignature, saying why not; BadKeys for a set that cannot be read.
    """
    jws = shown.get("jws")
    if not isinstance(jws, str):
        raise BadSignature("has no `jws`")
    payload = verify(jws, jwks, TYPE)
    fields: dict[str, Any] = orjson.loads(payload)
    beside = {name: value for name, value in shown.items() if name not in ("ok", "jws")}
    if beside and (wrong := sorted(name for name in {*fields, *beside} if not _same(name, fields, beside))):
        raise BadSignature(f"differs from what was signed: {', '.join(wrong)}")
    return {"issuer": fields["issuer"], **fields}  # whom it is from comes first where it is shown


def _same(name: str, signed: Mapping[str, Any], shown: Mapping[str, Any]) -> bool:
    """Compare texts of JSON, to which `true`, `1` and `1.0` are three things."""
    if name not in signed or name not in shown:
        return False
    return json.dumps(signed[name], sort_keys=True) == json.dumps(shown[name], sort_keys=True)


def _canonical(fields: Mapping[str, Any]) -> bytes:
    return orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)
