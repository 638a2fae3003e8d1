"""Content Credentials (C2PA): a signed statement inside a file that a model made it, which model, and where.

Off unless an operator has a certificate and its key. Both are tried when the process starts; should they fail later, as
when the certificate has run out, files stay unsigned and no job fails of it. A signature has a time and a number of its
own: signed files of one seed differ in it.

Source: C2PA Technical Specification 2.2; https://opensource.contentauthenticity.org/docs/c2pa-python.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Final

import structlog

from kit.settings import Settings, SettingsError
from kit.telemetry import errors_total

log = structlog.get_logger(__name__)

SIGNED: Final = frozenset(
    {"image/png", "image/webp", "image/jpeg", "video/mp4", "audio/mpeg", "audio/wav", "audio/flac"}
)
"""What the library signs of what we make: neither Ogg nor a text has a place for a manifest."""
SYNTHETIC: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""Made by a model from learned data. Source: IPTC NewsCodes, digital source type."""
COMPOSITE: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
"""A caller's own, with something in it that a model made: a dub has its film's pictures."""
_CURVES: Final = {"secp256r1": b"es256", "secp384r1": b"es384", "secp521r1": b"es512"}
_OFFLINE: Final = {
    # A preview of its own in PNG would make a small WebP ninety times as large.
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
}


class Provenance:
    """Signs files. One at a time: the signer is the library's own object, behind a lock."""

    def __init__(self, certificates: bytes, key: bytes) -> None:
        """Keep a chain, its end first, and the end's private key, both in PEM.

        Raises: ValueError, saying what is wrong with them.
        """
        algorithm = _algorithm(certificates, key)
        import c2pa

        self._library = c2pa
        self._context = c2pa.Context(c2pa.Settings.from_dict(_OFFLINE))
        try:
            # No time stamp of an authority: that would be a call over the network in every job.
            self._signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(algorithm, certificates, key, None))
            self._lock = threading.Lock()
            self._signed(_pixel(), "image/png", {})
        except c2pa.C2paError as error:
            raise ValueError(f"a trial signature failed ({error})") from error

    def sign(self, data: bytes, content_type: str, facts: Mapping[str, Any]) -> bytes:
        """Return the file with its credentials, or as it is where its format has no place for them or signing fails."""
        if content_type not in SIGNED:
            return data
        try:
            return self._signed(data, content_type, facts)
        except self._library.C2paError:
            errors_total.labels("provenance").inc()
            log.exception("a file stays unsigned", content_type=content_type)
            return data

    def _signed(self, data: bytes, content_type: str, facts: Mapping[str, Any]) -> bytes:
        signed = io.BytesIO()
        with self._lock, self._library.Builder(_manifest(facts), context=self._context) as builder:
            builder.sign(self._signer, content_type, io.BytesIO(data), signed)
        return signed.getvalue()


def provenance_for(settings: Settings) -> Provenance | None:
    """Return what signs outputs; None where no certificate is set. Raises: SettingsError."""
    if settings.c2pa_certificates is None or settings.c2pa_key is None:
        return None
    try:
        return Provenance(settings.c2pa_certificates.read_bytes(), settings.c2pa_key.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(f"FAREBOX_C2PA_CERTIFICATES and FAREBOX_C2PA_KEY cannot sign: {error}") from error


def _manifest(facts: Mapping[str, Any]) -> dict[str, Any]:
    agent = {"name": str(facts.get("model", "Farebox"))}
    if revision := facts.get("revision"):
        agent["version"] = str(revision)
    source = COMPOSITE if "pictures" in facts else SYNTHETIC
    action = {"action": "c2pa.created", "digitalSourceType": source, "softwareAgent": agent}
    if notice := facts.get("notice"):
        action["description"] = str(notice)
    return {
        "claim_generator_info": [{"name": "Farebox", "version": version("farebox")}],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
    }


def _algorithm(certificates: bytes, key: bytes) -> bytes:
    """Return the name of what a key signs with. Raises: ValueError if it is not the certificate's, or that ran out."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        end = x509.load_pem_x509_certificates(certificates)[0]
    except ValueError as error:
        raise ValueError("the certificates are not a chain in PEM") from error
    try:
        private = load_pem_private_key(key, None)
    except (ValueError, TypeError) as error:
        raise ValueError("the key is not one in PEM, without a password") from error
    if private.public_key() != end.public_key():
        raise ValueError("the key is not that of the first certificate")
    if not end.not_valid_before_utc <= datetime.now(UTC) < end.not_valid_after_utc:
        raise ValueError(f"the first certificate is valid until {end.not_valid_after_utc:%Y-%m-%d}, not now")
    if isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name in _CURVES:
        return _CURVES[private.curve.name]
    if isinstance(private, rsa.RSAPrivateKey):
        return b"ps256"
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return b"ed25519"
    raise ValueError("the key must be of P-256, P-384, P-521, Ed25519 or RSA")


def _pixel() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    return file.getvalue()
