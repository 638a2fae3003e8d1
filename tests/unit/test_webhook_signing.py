"""Signatures are those of Standard Webhooks, by its own vector and its own library."""

from __future__ import annotations

import base64
import time

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from kit.webhook_signing import derive_key, new_salt, signed_headers, spelled

BODY = b'{"test": 2432232314}'


def test_the_signature_is_that_of_the_published_example():
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = signed_headers([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, BODY)
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_each_key_verifies_and_no_other():
    keys = [derive_key(b"server", new_salt()) for _ in range(2)]
    headers = signed_headers(keys, "msg_1", int(time.time()), BODY)
    for key in keys:
        assert Webhook(spelled(key)).verify(BODY, headers) == {"test": 2432232314}
    with pytest.raises(WebhookVerificationError):
        Webhook(spelled(derive_key(b"server", new_salt()))).verify(BODY, headers)
    for changed in ({"webhook-id": "msg_2"}, {"webhook-timestamp": str(int(time.time()) - 9)}):
        with pytest.raises(WebhookVerificationError):
            Webhook(spelled(keys[0])).verify(BODY, headers | changed)


def test_a_key_is_that_of_its_salt_and_its_server():
    salt = new_salt()
    assert derive_key(b"server", salt) == derive_key(b"server", salt)
    assert derive_key(b"server", salt) != derive_key(b"other", salt)
    assert derive_key(b"server", salt) != derive_key(b"server", new_salt())
    assert len(derive_key(b"server", salt)) == 32
