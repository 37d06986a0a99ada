"""A plan as what differs from another one, which is short where few blocks change."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from frostline.plan._plan import Plan, named_blocks
from frostline.plan._text import document


def difference(before: Plan, after: Plan) -> dict[str, Any]:
    """What differs in `after`, as plain data: fields of the plan, and under `blocks` the modes of other blocks.

    Both have the same number of blocks.
    """
    old, new = document(before), document(after)
    found = {key: new.get(key) for key in {**old, **new} if key != "blocks" and old.get(key) != new.get(key)}
    changed = [
        (index, {key: value for key, value in mode.items() if key != "index"})
        for index, (mode, earlier) in enumerate(zip(new["blocks"], old["blocks"], strict=True))
        if mode != earlier
    ]
    runs: list[dict[str, Any]] = []
    # Neighbouring blocks with equal modes are one entry.
    for _, members in groupby(enumerate(changed), lambda entry: (entry[1][0] - entry[0], entry[1][1])):
        run = [entry for _, entry in members]
        first, last = run[0][0], run[-1][0]
        runs.append({"index": first if first == last else f"{first}-{last}", **run[0][1]})
    return {**found, **({"blocks": runs} if runs else {})}


def with_difference(before: Plan, changes: Mapping[str, Any]) -> Plan:
    """The inverse of `difference`. Raises `PlanError` where the changes are not valid."""
    known = document(before)
    blocks = dict(enumerate(known.pop("blocks")))
    for index, mode in named_blocks(changes.get("blocks", ())).items():
        blocks[index] = {"index": index, **mode}
    fields = {**known, **{key: value for key, value in changes.items() if key != "blocks"}}
    return Plan.read({**{k: v for k, v in fields.items() if v is not None}, "blocks": list(blocks.values())})
