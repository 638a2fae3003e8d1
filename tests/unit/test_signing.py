"""Signatures: made by one key, checked by its public half, and by nothing else."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from jwt.algorithms import OKPAlgorithm
from jwt.api_jws import PyJWS

from kit.signing import BadKeys, BadSignature, SigningKeys, public_keys, thumbprint, verify

SECRET = b"a secret of this test run alone"
TYP = "farebox-receipt"


def encoded(value) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@pytest.fixture
def keys() -> SigningKeys:
    return SigningKeys.derived(SECRET, "test")


def test_the_thumbprint_is_that_of_the_standards_example():
    """RFC 8037, appendix A.3."""
    x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    (key,) = public_keys({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x}]})
    assert thumbprint(key) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_what_was_signed_is_verified_and_equal_payloads_sign_alike(keys):
    signed = keys.sign(b'{"a":1}', TYP)
    assert verify(signed, keys.jwks, TYP) == b'{"a":1}'
    assert keys.sign(b'{"a":1}', TYP) == signed


def test_a_derived_key_follows_from_its_secret_and_purpose_alone(keys):
    assert SigningKeys.derived(SECRET, "test").kid == keys.kid
    assert SigningKeys.derived(SECRET, "other").kid != keys.kid
    assert SigningKeys.derived(SECRET + b"!", "test").kid != keys.kid
    with pytest.raises(BadKeys):
        SigningKeys.derived(b"", "test")


def test_published_keys_are_public_alone(keys):
    (jwk,) = keys.jwks["keys"]
    assert set(jwk) == {"kty", "crv", "x", "kid", "use", "alg"}


def test_a_changed_payload_is_refused(keys):
    header, _, signature = keys.sign(b'{"a":1}', TYP).split(".")
    with pytest.raises(BadSignature, match="changed"):
        verify(f"{header}.{encoded(b'{}')}.{signature}", keys.jwks, TYP)


def test_a_changed_signature_is_refused(keys):
    signed = keys.sign(b"{}", TYP)
    other = SigningKeys.derived(SECRET, "other").sign(b"{}", TYP).rpartition(".")[2]
    with pytest.raises(BadSignature, match="changed"):
        verify(f"{signed.rpartition('.')[0]}.{other}", keys.jwks, TYP)


def test_another_servers_key_is_refused(keys):
    with pytest.raises(BadSignature, match="not among"):
        verify(keys.sign(b"{}", TYP), SigningKeys.derived(SECRET, "other").jwks, TYP)


def test_a_set_that_gives_the_signers_name_to_another_key_is_refused(keys):
    (jwk,) = SigningKeys.derived(SECRET, "other").jwks["keys"]
    with pytest.raises(BadSignature, match="not among"):
        verify(keys.sign(b"{}", TYP), {"keys": [{**jwk, "kid": keys.kid}]}, TYP)


@pytest.mark.parametrize("alg", ["none", "None", "HS256", "Ed25519", "", None, 7])
def test_another_algorithm_is_refused_before_any_key_is_used(keys, alg):
    _, payload, signature = keys.sign(b"{}", TYP).split(".")
    header = encoded({"alg": alg, "kid": keys.kid, "typ": TYP})
    for forged in (f"{header}.{payload}.", f"{header}.{payload}.{signature}"):
        with pytest.raises(BadSignature):
            verify(forged, keys.jwks, TYP)


def test_the_public_key_as_an_hmac_secret_is_refused(keys):
    (jwk,) = keys.jwks["keys"]
    forged = PyJWS().encode(b"{}", jwk["x"].encode(), "HS256", {"kid": keys.kid, "typ": TYP})
    with pytest.raises(BadSignature, match="EdDSA"):
        verify(forged, keys.jwks, TYP)


@pytest.mark.parametrize(
    "extra",
    [
        {"kid": "nobody"},
        {"typ": "JWT"},
        {"crit": ["x"], "x": 1},
        {"b64": False, "crit": ["b64"]},
        {"jwk": {}},
    ],
)
def test_another_header_is_refused_although_the_key_signed_it(extra):
    private = Ed25519PrivateKey.generate()
    keys = SigningKeys(private)
    header = {"alg": "EdDSA", "kid": keys.kid, "typ": TYP, **extra}
    signing_input = f"{encoded(header)}.{encoded(b'{}')}"
    with pytest.raises(BadSignature):
        verify(f"{signing_input}.{encoded(private.sign(signing_input.encode()))}", keys.jwks, TYP)


def test_a_signature_for_another_kind_of_document_is_refused(keys):
    with pytest.raises(BadSignature, match="farebox-receipt"):
        verify(keys.sign(b"{}", "something-else"), keys.jwks, TYP)


@pytest.mark.parametrize("text", ["", ".", "..", "a.b.c", "....", "é.é.é", "null", "e30.e30.e30", "\x00"])
def test_what_is_no_signature_is_refused(keys, text):
    with pytest.raises(BadSignature):
        verify(text, keys.jwks, TYP)


@pytest.mark.parametrize("jwks", [None, [], {}, {"keys": {}}, "keys", 1])
def test_what_is_no_key_set_is_refused(keys, jwks):
    with pytest.raises(BadKeys):
        verify(keys.sign(b"{}", TYP), jwks, TYP)


@pytest.mark.parametrize("x", [None, 1, "", "AAAA", "!"])
def test_a_damaged_key_is_refused(x):
    with pytest.raises(BadKeys):
        public_keys({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x}]})


def test_keys_of_other_kinds_are_passed_over(keys):
    others = [None, 7, {}, {"kty": "RSA", "n": "x"}, {"kty": "OKP", "crv": "X25519", "x": "AA"}]
    assert verify(keys.sign(b"{}", TYP), {"keys": [*others, *keys.jwks["keys"]]}, TYP) == b"{}"


def pem(key) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_the_first_file_signs_and_older_keys_are_published_public(tmp_path):
    new, old, oldest = (Ed25519PrivateKey.generate() for _ in range(3))
    (tmp_path / "new.pem").write_bytes(pem(new))
    (tmp_path / "old.json").write_text(json.dumps(OKPAlgorithm.to_jwk(old, as_dict=True)))
    (tmp_path / "oldest.json").write_text(json.dumps(SigningKeys(oldest).jwks))
    keys = SigningKeys.from_files([tmp_path / name for name in ("new.pem", "old.json", "oldest.json")])
    assert keys.kid == SigningKeys(new).kid
    assert [key["kid"] for key in keys.jwks["keys"]] == [SigningKeys(key).kid for key in (new, old, oldest)]
    assert all("d" not in key for key in keys.jwks["keys"])
    for signer in (new, old, oldest):
        assert verify(SigningKeys(signer).sign(b"{}", TYP), keys.jwks, TYP) == b"{}"


def test_files_without_a_key_of_ours_are_refused_by_name(tmp_path):
    ours = Ed25519PrivateKey.generate()
    contents = {
        "empty": b"",
        "text": b"hello",
        "json": b"{",
        "set": b'{"keys": 7}',
        "odd": b'{"kty": "oct", "k": "AA"}',
        "rsa": pem(generate_private_key(65537, 2048)),
        "public": ours.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "nokeys": b'{"keys": []}',
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in (*contents, "missing"):
        with pytest.raises(BadKeys, match=name):
            SigningKeys.from_files([tmp_path / name])
