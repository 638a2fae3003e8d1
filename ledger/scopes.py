"""Scopes: what a key may be used for. A key without any may be used for everything.

    read             what is the account's: balance, statements, usage, jobs, files, keys
    tools:<tool>     check and spend for that tool; `tools:*` for every tool, and for `consume` too
    tasks:<task>     submit and cancel jobs of that task, look at jobs, read and upload files; `tasks:*` for every task
    files            read, upload and delete files
    keys             list, make, rotate and revoke keys
    checkout         top the account up, by a payment or a voucher
    billing          open the payment provider's portal: invoices, receipts, saved cards

A use needs one scope by name, or one of several kinds (`GRANTED_BY`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

ANY: Final = "any"
"""Every key may: the use tells whose key it is and no more."""
READ: Final = "read"
KEYS: Final = "keys"
CHECKOUT: Final = "checkout"
BILLING: Final = "billing"
SEE_KEYS: Final = "keys.see"
SEE_JOBS: Final = "jobs.see"
SUBMIT: Final = "jobs.submit"
"""A job of a task that is named later."""
SEE_FILES: Final = "files.see"
ADD_FILES: Final = "files.add"
DROP_FILES: Final = "files"

GRANTED_BY: Final[Mapping[str, frozenset[str]]] = {
    SEE_KEYS: frozenset({"read", "keys"}),
    SEE_JOBS: frozenset({"read", "tasks"}),
    SUBMIT: frozenset({"tasks"}),
    SEE_FILES: frozenset({"read", "files", "tasks"}),
    ADD_FILES: frozenset({"files", "tasks"}),
}
"""Kinds of scope, each of which allows the use: who may make a picture may also fetch it."""


def tool(name: str) -> str:
    """Return the scope that a tool needs."""
    return f"tools:{name}"


def task(name: str) -> str:
    """Return the scope that a task needs."""
    return f"tasks:{name}"


def allow(scopes: Collection[str] | None, need: str) -> bool:
    """Tell whether a key with these scopes may be used so."""
    if scopes is None or need == ANY:
        return True
    kinds = GRANTED_BY.get(need, frozenset())
    return covers(scopes, need) or any(scope.partition(":")[0] in kinds for scope in scopes)


def covers(scopes: Collection[str], scope: str) -> bool:
    """Tell whether a key with these scopes may hand this one on."""
    return scope in scopes or f"{scope.partition(':')[0]}:*" in scopes


def named(need: str) -> str:
    """Say in a caller's words which scope would do."""
    kinds = sorted(GRANTED_BY.get(need, [need]))
    return " or ".join(f"`{kind}:*`" if kind in ("tasks", "tools") else f"`{kind}`" for kind in kinds)
