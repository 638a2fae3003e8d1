"""Talks to a running Ray head over the REST interface of its dashboard.

So the process that starts the platform needs no Ray of its own: importing it takes seconds and 150 MB, and it
reads its environment while it is imported.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

APPLICATIONS: Final = "/api/serve/applications/"
DEPLOY_TIMEOUT_S: Final = 60.0
"""The first deployment starts Serve's controller: 3 to 6 s on two busy cores."""
COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
"""Ray paints the names of its processes inside error texts."""
ASK_TIMEOUT_S: Final = 10.0
"""A status takes 20 ms; a head that is starting replicas on two cores may take seconds."""


class ServeRefused(RuntimeError):
    """The head understood and said no: the configuration is wrong; the text says where."""


class ServeSilent(RuntimeError):
    """The head does not answer, or not yet; asking again is right."""


@dataclass(frozen=True)
class ApplicationStatus:
    """How far one application is, in Serve's own words."""

    name: str
    status: str
    message: str
    """What Serve says about it, tracebacks included; empty while there is nothing to say."""
    deployments: dict[str, str]

    @property
    def is_running(self) -> bool:
        return self.status == "RUNNING"

    @property
    def has_failed(self) -> bool:
        """Serve gave up; only another deployment changes that."""
        return self.status == "DEPLOY_FAILED"

    @property
    def reason(self) -> str:
        """The last line of the message, which names the error of a traceback."""
        return next((line.strip() for line in reversed(self.message.splitlines()) if line.strip()), "")


class ServeApi:
    """Deploys applications to one head and tells how they are. Every call ends within its time."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        # Never through a proxy that the shell has configured: the head is on this machine.
        self._http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def deploy(self, config: Mapping[str, Any], *, timeout_s: float = DEPLOY_TIMEOUT_S) -> None:
        """Make `config` (a Serve config file, loaded) what the head runs; return once it has begun.

        Host and port are taken from its `http_options` by the first deployment and stay; applications that
        the config leaves out are deleted.

        Raises: ServeRefused, ServeSilent.
        """
        self._call("PUT", timeout_s, json=dict(config))

    def application_statuses(self, *, timeout_s: float = ASK_TIMEOUT_S) -> dict[str, ApplicationStatus]:
        """Return every application by name; none before the first deployment.

        Raises: ServeRefused, ServeSilent.
        """
        applications = self._call("GET", timeout_s).json()["applications"]
        return {name: _status(name, details) for name, details in applications.items()}

    def delete_applications(self, *, timeout_s: float) -> None:
        """End Serve: replicas finish what they have begun, callers before those whom they call.

        Raises: ServeRefused, ServeSilent.
        """
        self._call("DELETE", timeout_s)

    def _call(self, method: str, timeout_s: float, **request: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, APPLICATIONS, timeout=timeout_s, **request)
        except httpx.TransportError as error:
            raise ServeSilent(f"{self.url}: {type(error).__name__} {error}".rstrip()) from error
        if answer.is_server_error:
            raise ServeSilent(f"{self.url} answers {answer.status_code}: {answer.text[-500:]}")
        if not answer.is_success:
            raise ServeRefused(f"{self.url} answers {answer.status_code}: {answer.text[-2000:]}")
        return answer


def dashboard_hint(url: str, token_path: Path) -> str:
    """Say how a person gets into the dashboard, which asks for the token once in 30 days.

    It keeps the token in a cookie, and cookies know no ports: of two instances on one machine, the one that
    was opened last stays open.
    """
    return f"{url} (it asks for a token: paste the one that `cat {shlex.quote(str(token_path))}` prints)"


def _status(name: str, details: Mapping[str, Any]) -> ApplicationStatus:
    deployments = details["deployments"]
    reasons = [f"{each}: {state['message']}" for each, state in deployments.items() if state["message"]]
    return ApplicationStatus(
        name=name,
        status=details["status"],
        message=COLOUR.sub("", "\n".join(filter(None, [details["message"], *reasons]))),
        deployments={each: state["status"] for each, state in deployments.items()},
    )
