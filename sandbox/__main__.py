"""Run the twins of the payment providers as one server: `python -m sandbox --port 8001 --state-file stripe.json`.

Stripe's is at the root; Coinbase's is under `/coinbase`, if its secrets are given, and keeps its state beside Stripe's.

Under `/x402` it also serves a twin of an x402 facilitator, which forgets everything at the end.

Once the port is bound, one JSON line on standard output says where: `{"ready": true, "url": ...}`. SIGTERM
and SIGINT end it with status 0; what it had not delivered yet is delivered by the next start.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import ipaddress
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from sandbox.crypto_twin import CryptoSettings, create_crypto_twin
from sandbox.stripe_instance import TwinSettings, random_token
from sandbox.stripe_twin import create_twin
from sandbox.x402_facilitator import Chain, create_facilitator

# The two secrets may come from here instead of the command line, which every user of the machine can read.
SECRET_KEY_VARIABLE = "FAREBOX_SANDBOX_SECRET_KEY"  # noqa: S105 - a name, not a secret
WEBHOOK_SECRET_VARIABLE = "FAREBOX_SANDBOX_WEBHOOK_SECRET"  # noqa: S105 - a name, not a secret
COINBASE_KEY_ID_VARIABLE = "FAREBOX_SANDBOX_COINBASE_KEY_ID"
COINBASE_KEY_VARIABLE = "FAREBOX_SANDBOX_COINBASE_KEY"
COINBASE_WEBHOOK_VARIABLE = "FAREBOX_SANDBOX_COINBASE_WEBHOOK_SECRET"

# Where Coinbase's twin answers.
COINBASE_PATH = "/coinbase"

# Long enough for an answer in progress, short enough for whoever waits for the sandbox to end.
SHUTDOWN_TIMEOUT_S = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal ends it; give the exit status."""
    options = _parse(arguments)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # One line for each delivery would drown what matters.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        settings = TwinSettings(
            secret_key=options.secret_key or os.environ.get(SECRET_KEY_VARIABLE, ""),
            webhook_secret=options.webhook_secret or os.environ.get(WEBHOOK_SECRET_VARIABLE, ""),
            webhook_url=options.webhook_url,
            public_url=options.public_url,
            state_file=options.state_file,
            instance=options.nonce or random_token(24),
        )
        app = create_twin(settings)
        app.mount("/x402", create_facilitator(Chain()))
        if key := os.environ.get(COINBASE_KEY_VARIABLE, ""):
            _add_coinbase(app, key, options)
    except ValueError as error:
        sys.stderr.write(f"sandbox: {error}\n")
        return 2
    with contextlib.ExitStack() as stack:
        try:
            if options.state_file is not None:
                stack.enter_context(_sole_owner(options.state_file))
            listener = stack.enter_context(_listen(options.host, options.port))
        except OSError as error:
            sys.stderr.write(f"sandbox: {error}\n")
            return 1
        if options.until_stdin_closes:
            threading.Thread(target=_end_with_starter, daemon=True).start()
        return _serve(app, listener, options.host)


def _add_coinbase(app: FastAPI, key: str, options: argparse.Namespace) -> None:
    """Put Coinbase's twin beside Stripe's. Raises: ValueError for a key or secret that it does not take."""
    state_file: Path | None = options.state_file
    base = options.public_url
    twin = create_crypto_twin(
        "coinbase",
        CryptoSettings(
            os.environ.get(COINBASE_KEY_ID_VARIABLE, ""),
            key,
            os.environ.get(COINBASE_WEBHOOK_VARIABLE, ""),
            webhook_url=options.crypto_webhook_url,
            public_url=base and f"{base.rstrip('/')}{COINBASE_PATH}",
            state_file=state_file and state_file.with_name("coinbase.json"),
        ),
    )
    app.mount(COINBASE_PATH, twin)
    alone = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def both(outer: FastAPI) -> AsyncIterator[None]:
        async with alone(outer), twin.router.lifespan_context(twin):
            yield

    app.router.lifespan_context = both


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sandbox", description="Twins of payment providers without real money."
    )
    parser.add_argument("--host", type=_loopback, default="127.0.0.1", help="a loopback address")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument(
        "--state-file", type=Path, help="where to remember everything; none forgets it at the end"
    )
    parser.add_argument("--secret-key", help=f"sk_test_...; or set {SECRET_KEY_VARIABLE}")
    parser.add_argument("--webhook-secret", help=f"whsec_...; or set {WEBHOOK_SECRET_VARIABLE}")
    parser.add_argument("--webhook-url", help="where Stripe's events are sent; none sends nothing")
    parser.add_argument("--crypto-webhook-url", help="where Coinbase's events are sent")
    parser.add_argument("--public-url", help="what page addresses begin with, if not the address called")
    parser.add_argument("--nonce", help="repeated by /healthz, so that a caller knows this very process")
    parser.add_argument(
        "--until-stdin-closes", action="store_true", help="end with the process that holds our standard input"
    )
    return parser.parse_args(arguments)


def _loopback(host: str) -> str:
    # The controls under /_twin/ have no password; nobody but this machine may reach them.
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        message = f"{host} is not a loopback address; the sandbox listens to this machine only"
        raise argparse.ArgumentTypeError(message)
    return host


@contextlib.contextmanager
def _sole_owner(state_file: Path) -> Iterator[None]:
    """Hold the state file alone: two twins would overwrite each other. A killed process lets go of it."""
    state_file.parent.mkdir(parents=True, exist_ok=True)
    with state_file.with_name(f"{state_file.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"another sandbox is using {state_file}"
            raise OSError(message) from error
        yield


def _end_with_starter() -> None:
    """End in good order once nobody holds the other end of our input, also after the starter's `kill -9`."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


def _serve(app: FastAPI, listener: socket.socket, host: str) -> int:
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
    )
    # The server raises a caught signal once more when it is done; these make that a plain end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    port = listener.getsockname()[1]
    shown_host = f"[{host}]" if ":" in host else host
    sys.stdout.write(json.dumps({"ready": True, "url": f"http://{shown_host}:{port}"}) + "\n")
    sys.stdout.flush()
    server = uvicorn.Server(config)
    server.run(sockets=[listener])
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
