"""How Stripe's API shows objects: lists in pages, filters, and references expanded in place."""

from __future__ import annotations

import copy
from typing import Any

from sandbox.stripe_errors import invalid, no_such
from sandbox.stripe_params import Params, names
from sandbox.stripe_shapes import Json
from sandbox.stripe_state import KINDS, Collection, TwinState

# Stripe's own page sizes.
PAGE_DEFAULT = 10
PAGE_MOST = 100
# Stripe's own bound of how deep `expand` may reach.
EXPAND_DEPTH = 4

_PAGING = names("created ending_before expand limit starting_after")
# Which fields hold the id of another object, and which collection that object is in.
_REFERENCES: dict[str, dict[str, Collection]] = {
    "checkout.session": {
        "customer": "customers",
        "payment_intent": "payment_intents",
        "setup_intent": "setup_intents",
    },
    "payment_intent": {
        "customer": "customers",
        "latest_charge": "charges",
        "payment_method": "payment_methods",
    },
    "payment_method": {"customer": "customers"},
    "setup_intent": {"customer": "customers", "payment_method": "payment_methods"},
    "charge": {"customer": "customers", "payment_intent": "payment_intents"},
    "refund": {"charge": "charges", "payment_intent": "payment_intents"},
    "dispute": {"charge": "charges", "payment_intent": "payment_intents"},
    "radar.early_fraud_warning": {"charge": "charges", "payment_intent": "payment_intents"},
}


def page(rows: list[Json], params: Params, path: str, filters: tuple[str, ...] = ()) -> Json:
    """Cut one page out of `rows`, which are newest first, as Stripe's cursors and filters say.

    Raises: ApiError for an unknown parameter, a bad limit, or a cursor that names nothing here.
    """
    params.only(_PAGING | frozenset(filters))
    for name in filters:
        wanted = params.text(name)
        if wanted is not None:
            rows = [row for row in rows if row[name] == wanted]
    rows = _created_within(rows, params)
    limit = params.integer("limit", least=1, most=PAGE_MOST) or PAGE_DEFAULT
    after, before = params.text("starting_after"), params.text("ending_before")
    if after is not None and before is not None:
        raise invalid("ending_before", "Send `starting_after` or `ending_before`, not both.")
    if before is not None:
        newer = rows[: _position(rows, before, "ending_before")]
        return _envelope(newer[-limit:], path, has_more=len(newer) > limit)
    older = rows if after is None else rows[_position(rows, after, "starting_after") + 1 :]
    return _envelope(older[:limit], path, has_more=len(older) > limit)


def _position(rows: list[Json], object_id: str, param: str) -> int:
    for index, row in enumerate(rows):
        if row["id"] == object_id:
            return index
    raise no_such("object", object_id, param)


def _created_within(rows: list[Json], params: Params) -> list[Json]:
    bounds = params.child("created")
    if bounds is None:
        return rows
    bounds.only(frozenset({"gt", "gte", "lt", "lte"}))
    latest = 2**53
    above, least = (bounds.integer(name, least=0, most=latest) for name in ("gt", "gte"))
    below, most = (bounds.integer(name, least=0, most=latest) for name in ("lt", "lte"))
    return [
        row
        for row in rows
        if (above is None or row.get("created", 0) > above)
        and (least is None or row.get("created", 0) >= least)
        and (below is None or row.get("created", 0) < below)
        and (most is None or row.get("created", 0) <= most)
    ]


def _envelope(rows: list[Json], path: str, *, has_more: bool) -> Json:
    return {"object": "list", "data": rows, "has_more": has_more, "url": path}


def check_expand(params: Params, kind: str) -> None:
    """Refuse an `expand` that leads nowhere, before anything is done; `kind` is what will be answered.

    Raises: ApiError that names the path.
    """
    for path in params.words("expand"):
        steps = path.split(".")
        if len(steps) > EXPAND_DEPTH:
            raise invalid(
                "expand", f"You cannot expand more than {EXPAND_DEPTH} levels of a property: {path}"
            )
        here = kind
        for step in steps:
            reference = _REFERENCES.get(here, {}).get(step)
            if reference is not None:
                here = KINDS[reference]
            elif here == "checkout.session" and step == "line_items":
                here = "list of item"
            elif here.startswith("list of ") and step == "data":
                here = here.removeprefix("list of ")
            else:
                raise invalid("expand", f"This property cannot be expanded ({path}).")


def expanded(state: TwinState, answer: Json, params: Params) -> Json:
    """Give a copy of `answer` in which every path of a checked `expand` holds the object, not its id."""
    shown = copy.deepcopy(answer)
    for path in params.words("expand"):
        _expand(state, shown, path.split("."))
    return shown


def _expand(state: TwinState, node: Any, steps: list[str]) -> None:
    if isinstance(node, list):
        for row in node:
            _expand(state, row, steps)
    if not steps or not isinstance(node, dict):
        return
    name = steps[0]
    reference = _REFERENCES.get(node["object"], {}).get(name)
    if reference is not None and isinstance(node[name], str):
        node[name] = copy.deepcopy(state.find(reference, node[name]))
    elif name == "line_items":
        node[name] = line_items_of(state, node["id"])
    _expand(state, node[name], steps[1:])


def line_items_of(state: TwinState, session_id: str) -> Json:
    """Give a session's line items as Stripe's list object."""
    rows = copy.deepcopy(state.order_of(session_id)["line_items"])
    return _envelope(rows, f"/v1/checkout/sessions/{session_id}/line_items", has_more=False)
