"""The table of strategies, a line each, and the one place where their names are read."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from frostline.core.errors import ConfigError, UserError, unknown_name
from frostline.core.registry import Registry
from frostline.core.settings import first_error
from frostline.plan import load_plan
from frostline.strategies import _adt as adt
from frostline.strategies import _auto as automatic
from frostline.strategies import _hierarchical as tiers
from frostline.strategies import _hybrid as hybrid
from frostline.strategies import _presets as presets
from frostline.strategies import _rates as rates
from frostline.strategies import _semantic as meaning
from frostline.strategies import _spectrum as spectra
from frostline.strategies import _split as parts
from frostline.strategies._adapted import ADDITIONS, adapted, everywhere
from frostline.strategies._selection import Selection, fixed
from frostline.strategies._situation import Situation
from frostline.strategies._strategy import Percent, Strategy

ANY_SHARE = range(1, 100)

STRATEGIES: Registry[Strategy] = Registry(
    "strategy",
    "frostline.strategies",
    {
        "auto": Strategy("the semantic cut, planned for a budget", automatic.auto, automatic.AutoOptions, plans=True),
        "all": Strategy("full fine-tuning", presets.all_layers),
        "head": Strategy("only the head", presets.head_only),
        "bot": Strategy("the lowest P% of blocks frozen", presets.bottom, Percent, ANY_SHARE),
        "top": Strategy("the highest P% of blocks frozen", presets.top, Percent, ANY_SHARE),
        "int": Strategy("every n-th block frozen", presets.interval, Percent, (25, 33, 50)),
        "random": Strategy("P% of blocks, drawn at random, frozen", presets.at_random, Percent, ANY_SHARE),
        "bitfit": Strategy("biases and a task head", presets.bitfit),
        "adt-l": Strategy("the P% of blocks that changed least frozen", adt.least_changed, adt.AdtOptions, ANY_SHARE),
        "adt-h": Strategy("the P% of blocks that changed most frozen", adt.most_changed, adt.AdtOptions, ANY_SHARE),
        "semantic": Strategy(
            "the blocks up to the largest semantic gain frozen", meaning.semantic, meaning.SemanticOptions, plans=True
        ),
        "semantic-threshold": Strategy(
            "the blocks with a semantic gain below a threshold frozen", meaning.over_threshold, meaning.ThresholdOptions
        ),
        "semantic-reversed": Strategy(
            "as many as semantic, of highest deviation, frozen", meaning.most_deviating, meaning.SemanticOptions
        ),
        "semantic-random": Strategy(
            "as many as semantic, drawn at random, frozen", meaning.as_many_at_random, meaning.SemanticOptions
        ),
        "hierarchical": Strategy(
            "low blocks frozen, middle ones partly trained", tiers.hierarchical, tiers.HierarchicalOptions
        ),
        "surgical": Strategy("learning rates by relative gradient norm", rates.surgical, rates.SurgicalOptions),
        "discriminative": Strategy(
            "learning rates that fall from block to block", rates.discriminative, rates.DiscriminativeOptions
        ),
        "spectrum": Strategy(
            "matrices with a high signal-to-noise ratio train", spectra.spectrum, spectra.SpectrumOptions
        ),
        "hlpt": Strategy(
            "gated LoRA below, gated prefixes above", hybrid.hlpt, hybrid.HybridOptions, counts=("low", "high")
        ),
        "h2lpt": Strategy("hlpt on half of the blocks", hybrid.h2lpt, hybrid.HybridOptions, counts=("low", "high")),
        "splitlora": Strategy("LoRA, trained by a server and clients", parts.splitlora, parts.SplitLoraOptions),
        **{name: everywhere(name) for name in ADDITIONS},
    },
    Strategy,
)


def make_selection(name: str, situation: Situation, options: Mapping[str, Any] | None = None) -> Selection:
    """What a strategy selects in a situation.

    Args:
        name: the strategy's: `all`, `bot50`, `bot50+lora`, ...; or a plan file's path.
        situation: the model and what is known of the training.
        options: the strategy's own, and under an addition's name (`lora`, ...) those of it.

    Raises `UserError`, with the closest known name, when the name, its number or an option is not known.
    """
    given = dict(options or {})
    if name.endswith((".yaml", ".yml", ".json")):
        _check_budget(name, situation, plans=False)
        if given:
            raise ConfigError(f"strategy_options: {min(given)}: a plan file has none, edit the file")
        return fixed(load_plan(Path(name)))
    strategy, numbers = parse_name(name)
    addition = _addition(name)
    if addition and strategy.options is automatic.AutoOptions:
        raise ConfigError(
            f"strategy '{name}': auto chooses LoRA itself: strategy_options.modes=[lora] leaves it no other"
        )
    _check_budget(name, situation, plans=strategy.plans and not addition)
    mode = ADDITIONS[addition].read(given.pop(addition, {}), f"strategy_options.{addition}") if addition else None
    for key in given:
        if mode is not None and key not in strategy.options.model_fields and key in type(mode).model_fields:
            raise ConfigError(f"strategy_options of '{name}': {key} is one of {addition}'s: give {addition}.{key}")
    selection = strategy.choose(situation, _read_options(strategy, name, numbers, given))
    return selection if mode is None else adapted(selection, situation, mode, addition)


def _check_budget(name: str, situation: Situation, *, plans: bool) -> None:
    if situation.budget.limits and not plans:
        raise ConfigError(f"budget: strategy '{name}' plans for none: take auto, or semantic")


def parse_name(name: str) -> tuple[Strategy, dict[str, int]]:
    """A strategy's entry and the numbers in its name, by option; `+lora` or another addition at the end may follow."""
    addition = _addition(name)
    name = name.removesuffix(f"+{addition}") if addition else name
    if name.count("(") != name.count(")"):
        raise ConfigError(
            f"strategy '{name}': a bracket stays open: in a list in YAML, and in a shell, put it in quotes"
        )
    if match := re.fullmatch(r"([^()]+)\((\d+(?:,\s*\d+)*)\)", name):
        return _counted(name, match[1], [int(number) for number in match[2].split(",")])
    if name in STRATEGIES and not STRATEGIES.get(name).percents:
        return STRATEGIES.get(name), {}
    stem, digits = _split(name)
    if stem not in STRATEGIES:
        raise unknown_name("strategy", name, known_names())
    strategy = STRATEGIES.get(stem)
    if not strategy.percents:
        raise ConfigError(f"strategy '{stem}' takes no number (given: '{name}')")
    if not digits or int(digits) not in strategy.percents:
        allowed = strategy.percents
        shown = f"{allowed[0]} to {allowed[-1]}" if isinstance(allowed, range) else ", ".join(map(str, allowed))
        raise ConfigError(f"strategy '{name}': '{stem}' wants a percentage after it: {shown}")
    return strategy, {"percent": int(digits)}


def _counted(name: str, stem: str, numbers: list[int]) -> tuple[Strategy, dict[str, int]]:
    if stem not in STRATEGIES:
        raise unknown_name("strategy", stem, known_names())
    counts = STRATEGIES.get(stem).counts
    if len(counts) != len(numbers):
        wanted = f"{len(counts)} numbers in brackets: {', '.join(counts)}" if counts else "no number in brackets"
        raise ConfigError(f"strategy '{stem}' takes {wanted} (given: '{name}')")
    return STRATEGIES.get(stem), dict(zip(counts, numbers, strict=True))


def _addition(name: str) -> str:
    """The addition at the end of a strategy's name, "" without one. Raises `UserError` for an unknown one."""
    _, plus, addition = name.partition("+")
    if plus and addition not in ADDITIONS:
        raise unknown_name("addition", addition, ADDITIONS)
    return addition


def known_names() -> list[str]:
    """Every name as it would be typed, with 50 standing for the percentage where it may be."""
    return [_as_typed(name) for name in STRATEGIES]


def _read_options(strategy: Strategy, name: str, numbers: dict[str, int], given: dict[str, Any]) -> Any:
    for option in numbers:
        if option in given:
            raise ConfigError(f"strategy_options: {option}: it is the number in '{name}'")
    where = f"strategy_options of '{name}'"
    if strategy.read is not None:
        return strategy.read(given, where)
    try:
        return strategy.options.model_validate({**numbers, **given})
    except ValidationError as error:
        raise ConfigError(f"{where}: {first_error(error)}") from None


def _split(name: str) -> tuple[str, str]:
    stem = name.rstrip(string.digits)
    return stem, name[len(stem) :]


def _as_typed(name: str) -> str:
    try:
        percents = STRATEGIES.get(name).percents
    except UserError:  # a package's own that cannot be loaded: its error is for who asks for it
        return name
    return f"{name}{50 if 50 in percents else percents[0]}" if percents else name
