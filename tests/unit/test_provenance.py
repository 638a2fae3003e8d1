"""Content Credentials: read back by the library's own reader, refused where the certificate cannot sign."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import c2pa
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image

from deployments.models import film, picture, sound
from deployments.provenance import COMPOSITE, SIGNED, SYNTHETIC, Provenance, provenance_for
from kit.settings import Settings, SettingsError

NOW = datetime.now(UTC)
FACTS = {"model": "Qwen-Image", "revision": "abc123", "seed": 7}


def _certificate(name, key, issuer, issuer_key, *, ca, days=30):
    def named(text):
        return x509.Name([
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "A test"),
            x509.NameAttribute(x509.NameOID.COMMON_NAME, text),
        ])  # fmt: skip

    made = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=40))
        .not_valid_after(NOW + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if not ca:
        usage = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION])
        made = made.add_extension(usage, critical=True)
    by = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    made = made.add_extension(by, critical=False).sign(issuer_key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM)


def chain(days: int = 30) -> tuple[bytes, bytes]:
    """Return a chain of two certificates that a test signs itself, and the key of its end."""
    root, end = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    certificates = _certificate("end", end, "root", root, ca=False, days=days)
    certificates += _certificate("root", root, "root", root, ca=True)
    key = end.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificates, key


@pytest.fixture(scope="module")
def provenance() -> Provenance:
    return Provenance(*chain())


def outputs() -> dict[str, bytes]:
    wave = np.random.default_rng(0).normal(0, 0.1, (2, 16_000)).astype("float32")
    noise = Image.effect_noise((96, 64), 60).convert("RGB")
    made = {kind: picture.encode(noise, name, FACTS) for name, kind in picture.CONTENT_TYPES.items()}
    made |= {kind: sound.encode(wave, 16_000, name, FACTS) for name, kind in sound.CONTENT_TYPES.items()}
    frames = np.random.default_rng(0).random((12, 64, 64, 3))
    made["video/mp4"] = film.finished(frames, 24, wave[:, :8_000], 16_000, FACTS).data
    return made


@pytest.mark.parametrize("kind", sorted(SIGNED))
def test_a_signed_file_says_that_a_model_made_it_and_which(provenance: Provenance, kind: str) -> None:
    plain = outputs()[kind]
    signed = provenance.sign(plain, kind, {**FACTS, "notice": "not a real result"})
    assert len(signed) < len(plain) + 20_000, "without a preview inside"
    reader = c2pa.Reader(kind, io.BytesIO(signed))
    assert reader.get_validation_state() == "Valid"
    manifest = reader.get_active_manifest()
    assert manifest["claim_generator_info"][0]["name"] == "Farebox"
    [actions] = [each for each in manifest["assertions"] if each["label"].startswith("c2pa.actions")]
    [action] = actions["data"]["actions"]
    assert (action["action"], action["digitalSourceType"]) == ("c2pa.created", SYNTHETIC)
    assert action["softwareAgent"] == {"name": "Qwen-Image", "version": "abc123"}
    assert action["description"] == "not a real result"


def test_a_dub_says_that_its_film_was_there_before(provenance: Provenance) -> None:
    signed = provenance.sign(outputs()["video/mp4"], "video/mp4", {**FACTS, "pictures": "copied"})
    manifest = c2pa.Reader("video/mp4", io.BytesIO(signed)).get_active_manifest()
    [actions] = [each for each in manifest["assertions"] if each["label"].startswith("c2pa.actions")]
    assert [each["digitalSourceType"] for each in actions["data"]["actions"]] == [COMPOSITE]


def test_a_certificate_that_runs_out_leaves_files_unsigned_and_fails_no_job() -> None:
    provenance = Provenance(*chain())
    certificates, key = chain(days=-1)
    provenance._signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(b"es256", certificates, key, None))
    plain = outputs()["image/png"]
    assert provenance.sign(plain, "image/png", FACTS) == plain


@pytest.mark.parametrize("kind", sorted(SIGNED))
def test_a_changed_file_is_seen(provenance: Provenance, kind: str) -> None:
    plain = outputs()[kind]
    changed = bytearray(provenance.sign(plain, kind, FACTS))
    middle = len(plain) // 2
    changed[changed.index(plain[middle : middle + 16])] ^= 1  # in the media, wherever the manifest lies
    reader = c2pa.Reader(kind, io.BytesIO(bytes(changed)))
    assert reader.get_validation_state() == "Invalid"
    assert any("mismatch" in status["code"] for status in json.loads(reader.json())["validation_status"])


def test_a_format_without_a_place_for_it_stays_as_it_is(provenance: Provenance) -> None:
    for kind in ("audio/ogg", "application/json"):
        assert provenance.sign(b"as it is", kind, FACTS) == b"as it is"


def test_nothing_is_signed_unless_asked() -> None:
    assert provenance_for(Settings()) is None


@pytest.mark.parametrize(
    ("certificates", "key", "problem"),
    [
        (b"no chain", chain()[1], "not a chain"),
        (chain()[0], b"no key", "not one in PEM"),
        (chain()[0], chain()[1], "not that of the first certificate"),
        (*chain(days=-1), "valid until"),
    ],
)
def test_a_chain_that_cannot_sign_is_refused_at_the_start(
    tmp_path: Path, certificates: bytes, key: bytes, problem: str
) -> None:
    (tmp_path / "chain.pem").write_bytes(certificates)
    (tmp_path / "key.pem").write_bytes(key)
    settings = Settings(c2pa_certificates=tmp_path / "chain.pem", c2pa_key=tmp_path / "key.pem")
    with pytest.raises(SettingsError, match=f"FAREBOX_C2PA_CERTIFICATES.*{problem}"):
        provenance_for(settings)
    (tmp_path / "key.pem").unlink()
    with pytest.raises(SettingsError, match="No such file"):
        provenance_for(settings)


def test_half_of_the_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="together or not at all"):
        Settings(c2pa_key=Path("key.pem"))
