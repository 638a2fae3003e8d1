"""A customer, from the price list to a downloaded picture, and an agent with a wallet, through the public HTTP API."""

from __future__ import annotations

import json
import time
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import urljoin

import httpx
from rich.console import Console
from rich.markup import escape

EMAIL: Final = "dev@company.com"
PACKAGE: Final = "builder_600"
TOPUP: Final = "starter_100"
FOX: Final = {
    "task": "image.generate",
    "input": {"prompt": "cinematic fox astronaut", "aspectRatio": "1:1"},
    "creditsToConsume": 1,
}
POLL_S: Final = 0.5
WEBHOOK_TIMEOUT_S: Final = 30.0
"""The sandbox sends it at once; a busy machine may answer the first try too late."""
JOB_TIMEOUT_S: Final = 90.0
"""A tiny picture takes a second; ninety allow for a model that is still loading on a busy machine."""


class DemoError(RuntimeError):
    """A step did not answer as it must; the text holds the step and the answer."""


def play(console: Console, base_url: str, keep: Path) -> None:
    """Play the customer against a running platform and keep the picture at `keep`. Raises: DemoError."""
    with httpx.Client(base_url=base_url, timeout=30, trust_env=False) as http:
        customer = _Customer(console, http)
        customer.call("1. What is on sale?", "GET", "/api/v1/packages")
        started = customer.call(
            "2. Open a checkout",
            "POST",
            "/api/v1/checkout/stripe",
            json={"email": EMAIL, "packageCode": PACKAGE},
        )
        customer.pay("3. Pay in the sandbox", started["checkoutUrl"])
        claimed = customer.call(
            "4. Claim the first API key (shown once)",
            "POST",
            "/api/v1/claim/stripe",
            json={"sessionId": started["sessionId"], "keyLabel": "Primary key"},
        )
        http.headers["Authorization"] = f"Bearer {claimed['apiKey']}"
        customer.call("5. Credits", "GET", "/api/v1/credits/balance")
        job = customer.call(
            "6. Submit a job: the price is held, not charged",
            "POST",
            "/api/v1/media/jobs",
            headers={"X-Idempotency-Key": "job-001"},
            json=FOX,
        )
        done = customer.wait("7. Poll until it is done", f"/api/v1/media/jobs/{job['jobId']}")
        customer.download("8. Download", done["output"][0]["url"], keep)
        left = customer.call("9. Credits after: charged once", "GET", "/api/v1/credits/balance")
        topup = customer.call(
            "10. Top the account up, in coins this time",
            "POST",
            "/api/v1/checkout/crypto",
            json={"email": EMAIL, "packageCode": TOPUP},
        )
        customer.pay("11. Send the coins in the sandbox", topup["checkoutUrl"])
        customer.wait_for_credits("12. Its webhook brings the credits", left["tokens"] + topup["tokens"])
    with httpx.Client(base_url=base_url, timeout=30, trust_env=False) as http:
        agent = _Customer(console, http)
        wallet = f"{urljoin(started['checkoutUrl'], '/')}x402/_twin/sign"
        payment = agent.sign(
            "13. An agent without an account is told the price", "/api/v1/media/jobs", FOX, wallet
        )
        job = agent.call(
            "14. It pays from its wallet, in play money, with the same request",
            "POST",
            "/api/v1/media/jobs",
            headers={"PAYMENT-SIGNATURE": payment},
            json=FOX,
        )
        http.headers["Authorization"] = f"Bearer {job['payment']['apiKey']}"
        agent.wait("15. The answer's key reads the job", f"/api/v1/media/jobs/{job['jobId']}")
        agent.call("16. The books balance", "GET", "/api/v1/ledger/trial-balance")


class _Customer:
    def __init__(self, console: Console, http: httpx.Client) -> None:
        self._console = console
        self._http = http

    def call(self, title: str, method: str, path: str, **request: Any) -> dict[str, Any]:
        """Send one request, print it with its answer, and return the answer."""
        response = self._http.request(method, path, **request)
        self._say(title, f"{method} {path}", request.get("json"), response)
        return _good(title, response)

    def pay(self, title: str, checkout_url: str) -> None:
        """Do what a person does on the hosted page: press Pay."""
        response = httpx.post(
            checkout_url,
            data={"outcome": "pay"},
            headers={"Accept": "application/json"},
            trust_env=False,
            timeout=30,
        )
        self._say(title, f"POST {checkout_url}", {"outcome": "pay"}, response)
        _good(title, response)

    def sign(self, title: str, path: str, body: dict[str, Any], wallet: str) -> str:
        """Meet a 402 and return the payment that the sandbox's wallet signs for it."""
        response = self._http.post(path, json=body)
        self._say(title, f"POST {path}", body, response)
        if response.status_code != HTTPStatus.PAYMENT_REQUIRED:
            raise DemoError(f"{title}: {response.status_code} {response.text}")
        offer = {"paymentRequired": response.headers["payment-required"]}
        signed = _good(title, httpx.post(wallet, json=offer, trust_env=False, timeout=30))
        return str(signed["paymentSignature"])

    def wait(self, title: str, path: str) -> dict[str, Any]:
        """Poll a job until it ended well."""
        deadline = time.monotonic() + JOB_TIMEOUT_S
        while time.monotonic() < deadline:
            response = self._http.get(path)
            job = _good(title, response)
            if job["status"] not in ("queued", "running"):
                self._say(title, f"GET {path}", None, response)
                if job["status"] != "succeeded":
                    raise DemoError(f"{title}: the job ended as {job['status']}")
                return job
            time.sleep(POLL_S)
        raise DemoError(f"{title}: not done within {JOB_TIMEOUT_S:.0f} s")

    def wait_for_credits(self, title: str, tokens: int) -> None:
        """Look at the balance until it holds so many tokens."""
        path = "/api/v1/credits/balance"
        deadline = time.monotonic() + WEBHOOK_TIMEOUT_S
        while time.monotonic() < deadline:
            response = self._http.get(path)
            if _good(title, response)["tokens"] == tokens:
                self._say(title, f"GET {path}", None, response)
                return
            time.sleep(POLL_S)
        raise DemoError(f"{title}: not there within {WEBHOOK_TIMEOUT_S:.0f} s")

    def download(self, title: str, url: str, keep: Path) -> None:
        """Fetch the signed URL, without the key, and keep the file."""
        response = httpx.get(url, trust_env=False, timeout=30)
        if not response.is_success:
            raise DemoError(f"{title}: {response.status_code} {response.text}")
        keep.write_bytes(response.content)
        self._console.print(
            f"\n[bold]{title}[/]\n  {len(response.content):,} bytes, kept at {keep}", soft_wrap=True
        )

    def _say(self, title: str, line: str, body: Any, response: httpx.Response) -> None:
        say = self._console.print
        say(f"\n[bold]{title}[/]\n  [cyan]{escape(line)}[/]", soft_wrap=True)
        if body is not None:
            say(f"  [dim]{escape(json.dumps(body))}[/]", soft_wrap=True)
        say(f"  {response.status_code} {escape(response.text)}", soft_wrap=True)


def _good(title: str, response: httpx.Response) -> dict[str, Any]:
    if not response.is_success:
        raise DemoError(f"{title}: {response.status_code} {response.text}")
    body: dict[str, Any] = response.json()
    return body
