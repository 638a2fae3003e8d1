"""Who signed a webhook: hex HMAC-SHA256 under any valid secret, a new one beside the old while it is rotated."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence


def is_signed(secrets: Sequence[str], signed: bytes, given: str) -> bool:
    """Tell whether one of the secrets made this digest. Without a secret nothing is: an empty one verifies anything."""
    assert all(secrets), "an empty secret verifies anything"
    digests = [hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest() for secret in secrets]
    return any(hmac.compare_digest(digest.encode(), given.encode()) for digest in digests)
