"""Ed25519 signatures over documents as compact JWS, and the public keys that check them as a JWK Set.

A signature names its key by the key's RFC 7638 thumbprint. Verification takes one algorithm and three header fields:
`alg: none`, other algorithms, critical extensions and embedded keys are refused before any key is looked at.

Source: RFC 7515 (JWS), RFC 7517 (JWK), RFC 7638 (thumbprints), RFC 8037 (Ed25519 in both).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from jwt.algorithms import OKPAlgorithm
from jwt.api_jws import PyJWS
from jwt.exceptions import InvalidKeyError, PyJWTError

ALGORITHM: Final = "EdDSA"
"""RFC 8037's name. RFC 9864 has a newer one, `Ed25519`, that few libraries know yet."""
HEADER: Final = frozenset({"alg", "kid", "typ"})
MIN_SECRET_BYTES: Final = 16
"""A key made from less can be found by trying."""
SEED_BYTES: Final = 32

_jws: Final = PyJWS(algorithms=[ALGORITHM])


class BadKeys(ValueError):
    """Not keys that this module can use; the text says which file and why."""


class BadSignature(ValueError):
    """Not signed by any of the keys; the text says how that shows."""


class SigningKeys:
    """A private key that signs, and every public key that may have signed before it."""

    def __init__(self, private: Ed25519PrivateKey, older: Sequence[Ed25519PublicKey] = ()) -> None:
        self._private = private
        self._public = {thumbprint(key): key for key in (private.public_key(), *older)}
        self.kid: Final = thumbprint(private.public_key())

    @classmethod
    def derived(cls, secret: bytes, purpose: str) -> SigningKeys:
        """Return the keys of a secret: the same ones wherever the secret is the same, others for other purposes.

        Raises: BadKeys for a secret that is too short.
        """
        if len(secret) < MIN_SECRET_BYTES:
            raise BadKeys(f"the secret needs at least {MIN_SECRET_BYTES} bytes")
        seed = HKDF(SHA256(), SEED_BYTES, salt=None, info=purpose.encode()).derive(secret)
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def from_files(cls, paths: Sequence[Path]) -> SigningKeys:
        """Return the keys of PEM, JWK and JWK Set files. The first key signs; of the others the public half is used.

        Raises: BadKeys.
        """
        found = [key for path in paths for key in _read(path)]
        if not found or not isinstance(found[0], Ed25519PrivateKey):
            raise BadKeys(f"{paths[0] if paths else 'no file'}: the first key must be a private Ed25519 key")
        older = [key.public_key() if isinstance(key, Ed25519PrivateKey) else key for key in found[1:]]
        return cls(found[0], older)

    def sign(self, payload: bytes, typ: str) -> str:
        """Return the payload signed, as compact JWS; equal payloads give equal texts."""
        return _jws.encode(
            payload, self._private, ALGORITHM, {"kid": self.kid, "typ": typ}, sort_headers=True
        )

    @property
    def jwks(self) -> dict[str, Any]:
        """The public keys as a JWK Set, the signing one first."""
        return {
            "keys": [
                {**OKPAlgorithm.to_jwk(key, as_dict=True), "kid": kid, "use": "sig", "alg": ALGORITHM}
                for kid, key in self._public.items()
            ]
        }


def thumbprint(key: Ed25519PublicKey) -> str:
    """Return the key's RFC 7638 thumbprint: the SHA-256 of its required members, in their order, base64url."""
    members = {"crv": "Ed25519", "kty": "OKP", "x": _base64url(key.public_bytes_raw())}
    return _base64url(hashlib.sha256(json.dumps(members, separators=(",", ":")).encode()).digest())


def private_key(secret: str) -> Ed25519PrivateKey | EllipticCurvePrivateKey:
    r"""Return the key that a secret of the environment holds: PEM, or the base64 of an Ed25519 seed (and public half).

    A PEM's lines may be joined by a written-out `\n`, as environment files have them. Raises: BadKeys.
    """
    try:
        if "-----BEGIN" in secret:
            key = load_pem_private_key(secret.replace("\\n", "\n").encode(), None)
        else:
            raw = base64.b64decode(secret, validate=True)
            if len(raw) not in (SEED_BYTES, 2 * SEED_BYTES):
                raise BadKeys("is not the base64 of an Ed25519 key")
            key = Ed25519PrivateKey.from_private_bytes(raw[:SEED_BYTES])
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadKeys("is neither PEM without a password nor the base64 of an Ed25519 key") from error
    if isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP256R1):
        return key
    if not isinstance(key, Ed25519PrivateKey):
        raise BadKeys("is a key of another kind than Ed25519 and P-256")
    return key


def verify(jws: str, jwks: Any, typ: str) -> bytes:
    """Return the payload that one of the set's keys signed as a document of this type.

    Keys are known by their thumbprints, whatever `kid` the set gives them. Raises: BadSignature, BadKeys.
    """
    keys = {thumbprint(key): key for key in public_keys(jwks)}
    try:
        header = _jws.get_unverified_header(jws)
    except (PyJWTError, ValueError) as error:
        raise BadSignature("is not a signature in compact form (three parts with dots between)") from error
    if header.get("alg") != ALGORITHM:
        raise BadSignature(f"is not signed with {ALGORITHM}")
    if set(header) != HEADER or header["typ"] != typ:
        raise BadSignature(f"is not signed as a {typ}")
    if (key := keys.get(header["kid"])) is None:
        raise BadSignature("is signed by a key that is not among those")
    try:
        payload: bytes = _jws.decode_complete(jws, key, algorithms=[ALGORITHM])["payload"]
    except (PyJWTError, ValueError) as error:
        raise BadSignature(
            "does not match its signature: it was changed, or never signed by that key"
        ) from error
    return payload


def unverified_payload(jws: str) -> bytes:
    """Return what a signature claims to sign: good for finding keys, never to be believed. Raises: BadSignature."""
    try:
        payload: bytes = _jws.decode_complete(jws, options={"verify_signature": False})["payload"]
    except (PyJWTError, ValueError) as error:
        raise BadSignature("is not a signature in compact form (three parts with dots between)") from error
    return payload


def public_keys(jwks: Any) -> list[Ed25519PublicKey]:
    """Return the Ed25519 keys of a JWK Set; keys of other kinds are passed over. Raises: BadKeys."""
    keys = jwks.get("keys") if isinstance(jwks, Mapping) else None
    if not isinstance(keys, list):
        raise BadKeys("is not a JWK Set")
    found = []
    for jwk in keys:
        if isinstance(jwk, Mapping) and (jwk.get("kty"), jwk.get("crv")) == ("OKP", "Ed25519"):
            key = _of_jwk({"kty": "OKP", "crv": "Ed25519", "x": jwk.get("x")})
            assert isinstance(key, Ed25519PublicKey), "a JWK without `d` is public"
            found.append(key)
    return found


def _read(path: Path) -> list[Ed25519PrivateKey | Ed25519PublicKey]:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise BadKeys(f"{path}: {error.strerror}") from error
    try:
        if text.lstrip().startswith(b"{"):
            written = json.loads(text)
            return [_of_jwk(jwk) for jwk in written.get("keys", [written])]
        key = load_pem_private_key(text, None) if b"PRIVATE" in text else load_pem_public_key(text)
    except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
        raise BadKeys(f"{path}: neither PEM without a password nor a JWK nor a JWK Set") from error
    if not isinstance(key, Ed25519PrivateKey | Ed25519PublicKey):
        raise BadKeys(f"{path}: not an Ed25519 key")
    return [key]


def _of_jwk(jwk: Mapping[str, Any]) -> Ed25519PrivateKey | Ed25519PublicKey:
    try:
        key = OKPAlgorithm.from_jwk(dict(jwk))
    except (InvalidKeyError, TypeError, ValueError) as error:
        raise BadKeys("holds an Ed25519 key that is damaged") from error
    if not isinstance(key, Ed25519PrivateKey | Ed25519PublicKey):
        raise BadKeys("holds a key that is not Ed25519")
    return key


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
