"""The table of strategies, a line each, and the one place where their names are read."""

from __future__ import annotations

import string
from pathlib import Path

from torch import nn

from frostline.core.errors import UserError, unknown_name
from frostline.core.registry import Registry
from frostline.plan import FixedSchedule, Plan, Schedule, load_plan
from frostline.strategies import _presets as presets
from frostline.strategies._base import Situation, Strategy

STRATEGIES: Registry[Strategy] = Registry(
    "strategy",
    "frostline.strategies",
    {
        "all": Strategy("full fine-tuning", presets.all_layers),
        "head": Strategy("only the head", presets.head_only),
        "bot": Strategy("the lowest P% of blocks frozen", presets.bottom, range(1, 100)),
        "top": Strategy("the highest P% of blocks frozen", presets.top, range(1, 100)),
        "int": Strategy("every n-th block frozen", presets.interval, (25, 33, 50)),
        "random": Strategy("P% of blocks, drawn at random, frozen", presets.at_random, range(1, 100)),
        "bitfit": Strategy("biases and a task head", presets.bitfit),
        "lora": Strategy("LoRA on every block", presets.lora),
    },
    Strategy,
)


def choose_schedule(name: str, situation: Situation) -> Schedule:
    """The schedule that the strategy called `name` chooses: `all`, `bot50`, ..., or the path of a plan file.

    Raises `UserError`, with the closest known name, when the name or its number is not known.
    """
    if name.endswith((".yaml", ".yml", ".json")):
        return FixedSchedule(load_plan(Path(name)))
    strategy, percent = parse_name(name)
    return strategy.choose(situation, percent)


def parse_name(name: str) -> tuple[Strategy, int]:
    """A strategy's entry and the number after its name (0 where it takes none)."""
    if name in STRATEGIES and not STRATEGIES.get(name).percents:
        return STRATEGIES.get(name), 0
    stem, digits = _split(name)
    if stem not in STRATEGIES:
        raise unknown_name("strategy", name, known_names())
    strategy = STRATEGIES.get(stem)
    if not strategy.percents:
        raise UserError(f"strategy '{stem}' takes no number (given: '{name}')")
    if not digits or int(digits) not in strategy.percents:
        allowed = strategy.percents
        shown = f"{allowed[0]} to {allowed[-1]}" if isinstance(allowed, range) else ", ".join(map(str, allowed))
        raise UserError(f"strategy '{name}': '{stem}' wants a percentage after it: {shown}")
    return strategy, int(digits)


def known_names() -> list[str]:
    """Every name as it would be typed, with 50 standing for the percentage where it may be."""
    return [_as_typed(name) for name in STRATEGIES]


def make_plan(model: nn.Module, strategy: str = "bot50", *, seed: int = 0) -> Plan:
    """The plan with which the strategy called `strategy` starts on `model`.

    Raises `UserError` for an unknown strategy or a model without blocks.
    """
    plan = choose_schedule(strategy, Situation.of(model, seed)).next(0, {})
    if plan is None:
        raise UserError(f"strategy '{strategy}' gave no plan for step 0")
    return plan


def _split(name: str) -> tuple[str, str]:
    stem = name.rstrip(string.digits)
    return stem, name[len(stem) :]


def _as_typed(name: str) -> str:
    try:
        percents = STRATEGIES.get(name).percents
    except UserError:  # a package's own that cannot be loaded: its error is for who asks for it
        return name
    return f"{name}{50 if 50 in percents else percents[0]}" if percents else name
