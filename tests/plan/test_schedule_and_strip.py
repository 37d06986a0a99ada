"""The schedule that never changes, and the strip that shows a plan."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from plans import plans
from rich.text import Text

from frostline.plan import BlockMode, FixedSchedule, Frozen, Full, Lora, Observations, Partial, Plan, Schedule, strip

PLAN = Plan(blocks=(Frozen(), Partial(train="biases"), Lora(), Full()), head=Frozen())


def test_a_fixed_schedule_begins_with_its_plan_and_keeps_it() -> None:
    schedule = FixedSchedule(PLAN)
    assert schedule.first is PLAN
    assert [schedule.next(step, {"gradient": [1.0] * 4}) for step in (1, 2, 1000)] == [None] * 3
    assert schedule.observes == frozenset(), "nothing has to be measured for it"
    assert schedule.settled, "it stays as it is from the first step"


def test_the_state_goes_through_json() -> None:
    schedule, resumed = FixedSchedule(PLAN), FixedSchedule(PLAN)
    schedule.next(1, {})
    resumed.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
    assert resumed.state_dict() == schedule.state_dict()
    assert resumed.next(7, {}) is None
    with pytest.raises(ValueError, match="no state"):
        resumed.load_state_dict({"step": 7})


def test_what_is_a_schedule() -> None:
    class Alternating:
        first = PLAN
        observes = frozenset({"gradient"})
        settled = False

        def next(self, step: int, observations: Observations) -> Plan | None:
            return PLAN if step % 20 == 0 else None

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    assert isinstance(FixedSchedule(PLAN), Schedule)
    assert isinstance(Alternating(), Schedule)
    assert not isinstance(PLAN, Schedule)
    assert not isinstance(lambda step: PLAN, Schedule)


def colours(text: Text, symbol: str) -> set[str]:
    return {str(span.style) for span in text.spans if text.plain[span.start : span.end] == symbol}


def test_the_strip_is_this_one() -> None:
    text = strip(PLAN)
    assert text.plain == "emb ░ ░▒▞█ norm █ head ░   ░ frozen ▒ partial ▞ lora █ full"
    assert colours(text, "░") == {"bright_blue"}
    assert colours(text, "█") == {"red"}


@settings(deadline=None, max_examples=50)
@given(plans())
def test_one_cell_for_every_block(plan: Plan) -> None:
    text = strip(plan)
    cells = text.plain.split(" ")[2]
    symbols = {"frozen": "░", "partial": "▒", "lora": "▞", "prefix": "▚", "adapter": "▙", "full": "█"}
    assert cells == "".join(symbols[block.mode] for block in plan.blocks)
    assert text.cell_len == len(text.plain), "every cell is one column wide"
    assert "\n" not in text.plain


def test_every_mode_has_a_symbol_and_a_colour_of_its_own() -> None:
    from frostline.plan._strip import CELLS

    assert set(CELLS) == {member.model_fields["mode"].default for member in _classes(BlockMode)}
    assert len({symbol for symbol, _ in CELLS.values()}) == len({colour for _, colour in CELLS.values()}) == len(CELLS)


def _classes(union: Any) -> list[Any]:
    """The classes of a union, those of the unions within it too."""
    members = get_args(union)
    return [found for member in members for found in _classes(member)] if members else [union] * isinstance(union, type)
