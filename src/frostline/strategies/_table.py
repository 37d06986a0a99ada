"""The table of strategies, one line each, and the only place where their names are read."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from frostline.core.errors import ConfigError, UserError, unknown_name
from frostline.core.registry import Registry
from frostline.core.settings import first_error
from frostline.plan import load_plan
from frostline.strategies import _adapterdrop as bare
from frostline.strategies import _adt as adt
from frostline.strategies import _auto as automatic
from frostline.strategies import _autofreeze as settling
from frostline.strategies import _drawn as drawn
from frostline.strategies import _egeria as stopped
from frostline.strategies import _freezeout as ending
from frostline.strategies import _gradual as rising
from frostline.strategies import _hierarchical as tiers
from frostline.strategies import _hybrid as hybrid
from frostline.strategies import _layerdrop as skipping
from frostline.strategies import _presets as presets
from frostline.strategies import _rates as rates
from frostline.strategies import _semantic as meaning
from frostline.strategies import _smartfrz as learned
from frostline.strategies import _spectrum as spectra
from frostline.strategies import _split as parts
from frostline.strategies._adapted import ADDITIONS, adapted, everywhere
from frostline.strategies._budget import Budget
from frostline.strategies._selection import Selection, fixed
from frostline.strategies._situation import Situation
from frostline.strategies._strategy import Percent, Strategy
from frostline.strategies._within import within_budget

ANY_SHARE = range(1, 100)

STRATEGIES: Registry[Strategy] = Registry(
    "strategy",
    "frostline.strategies",
    {
        "auto": Strategy("the blocks above the semantic cut, within a budget", automatic.auto, automatic.AutoOptions),
        "all": Strategy("full fine-tuning", presets.all_layers),
        "head": Strategy("only the head trains", presets.head_only),
        "bot": Strategy("the lowest P% of the blocks are frozen", presets.bottom, Percent, ANY_SHARE),
        "top": Strategy("the highest P% of the blocks are frozen", presets.top, Percent, ANY_SHARE),
        "int": Strategy(
            "every n-th block is frozen (25, 33, 50%: n = 4, 3, 2)", presets.interval, Percent, (25, 33, 50)
        ),
        "random": Strategy("P% of the blocks, drawn at random, are frozen", presets.at_random, Percent, ANY_SHARE),
        "bitfit": Strategy("only biases and a task head train", presets.bitfit),
        "adt-l": Strategy(
            "after a few steps, the P% of the blocks that changed least freeze",
            adt.least_changed,
            adt.AdtOptions,
            ANY_SHARE,
        ),
        "adt-h": Strategy(
            "after a few steps, the P% of the blocks that changed most freeze",
            adt.most_changed,
            adt.AdtOptions,
            ANY_SHARE,
        ),
        "semantic": Strategy(
            "the blocks up to the one with the largest semantic gain are frozen",
            meaning.semantic,
            meaning.SemanticOptions,
        ),
        "semantic-threshold": Strategy(
            "the blocks with a semantic gain below a threshold are frozen",
            meaning.over_threshold,
            meaning.ThresholdOptions,
        ),
        "semantic-reversed": Strategy(
            "as many blocks as semantic freezes, but those with the highest deviation",
            meaning.most_deviating,
            meaning.SemanticOptions,
        ),
        "semantic-random": Strategy(
            "as many blocks as semantic freezes, but drawn at random",
            meaning.as_many_at_random,
            meaning.SemanticOptions,
        ),
        "hierarchical": Strategy(
            "low blocks are frozen, middle ones train in part, high ones in full",
            tiers.hierarchical,
            tiers.HierarchicalOptions,
        ),
        "surgical": Strategy(
            "each block's learning rate follows its relative gradient norm", rates.surgical, rates.SurgicalOptions
        ),
        "discriminative": Strategy(
            "the learning rate falls from each block to the one below",
            rates.discriminative,
            rates.DiscriminativeOptions,
        ),
        "spectrum": Strategy(
            "the matrices with the highest signal-to-noise ratio train", spectra.spectrum, spectra.SpectrumOptions
        ),
        "hlpt": Strategy(
            "gated LoRA in the low blocks, gated prefixes in the high ones",
            hybrid.hlpt,
            hybrid.HybridOptions,
            counts=("low", "high"),
        ),
        "h2lpt": Strategy("hlpt on half of each tier", hybrid.h2lpt, hybrid.HybridOptions, counts=("low", "high")),
        "lisa": Strategy(
            "embeddings, head and a few drawn blocks train, others every few steps", drawn.lisa, drawn.LisaOptions
        ),
        "badam": Strategy("one block at a time, from the last to the first", drawn.badam, drawn.BAdamOptions),
        "freezeout": Strategy(
            "each block freezes at a time of its own, the lowest first", ending.freezeout, ending.FreezeOutOptions
        ),
        "autofreeze": Strategy(
            "low blocks freeze when their gradients have settled", settling.autofreeze, settling.AutoFreezeOptions
        ),
        "egeria": Strategy(
            "low blocks freeze when their outputs have stopped moving", stopped.egeria, stopped.EgeriaOptions
        ),
        "smartfrz": Strategy(
            "low blocks freeze when a trained predictor holds them to be settled",
            learned.smartfrz,
            learned.SmartFrzOptions,
        ),
        "gradual": Strategy("the highest blocks train first, lower ones join", rising.gradual, rising.GradualOptions),
        "layerdrop": Strategy(
            "full fine-tuning in which each step skips some blocks", skipping.layerdrop, skipping.LayerDropOptions
        ),
        "adapterdrop": Strategy(
            "series adapters in all blocks but the lowest ones",
            bare.adapterdrop,
            bare.AdapterDropOptions,
            addition="series-adapter",
        ),
        "splitlora": Strategy(
            "LoRA on every block, trained by a server and clients", parts.splitlora, parts.SplitLoraOptions
        ),
        **{name: everywhere(name) for name in ADDITIONS},
    },
    Strategy,
)


def make_selection(name: str, situation: Situation, options: Mapping[str, Any] | None = None) -> Selection:
    """What a strategy selects in a situation.

    Args:
        name: a strategy's name (`all`, `bot50`, `bot50+lora`, ...), or the path of a plan file.
        situation: the model, and what is known of the training.
        options: the strategy's options. An addition's options are under its name (`lora`, ...).

    Raises `ConfigError` for an unknown name, number or option, and `PlanError` for a plan that is wrong.
    """
    given = dict(options or {})
    if name.endswith((".yaml", ".yml", ".json")):
        if given:
            raise ConfigError(f"strategy_options: {min(given)}: a plan file has no options: change the file instead")
        return within_budget(fixed(load_plan(Path(name))), situation, name)
    strategy, numbers = parse_name(name)
    addition = _addition(name) or strategy.addition
    if addition and strategy.options is automatic.AutoOptions:
        raise ConfigError(
            f"strategy '{name}': auto decides itself where to use LoRA: use strategy 'auto' with "
            "--budget and --set modes=[lora] for LoRA only"
        )
    mode = ADDITIONS[addition].read(given.pop(addition, {}), f"strategy_options.{addition}") if addition else None
    for key in given:
        if mode is not None and key not in strategy.options.model_fields and key in type(mode).model_fields:
            raise ConfigError(f"strategy_options of '{name}': {key} is an option of {addition}: use {addition}.{key}")
    # With an addition, a strategy that plans for a budget itself would plan for another training.
    asked = replace(situation, budget=Budget()) if addition else situation
    selection = strategy.choose(asked, _read_options(strategy, name, numbers, given))
    if mode is not None:
        selection = adapted(selection, situation, mode, addition, name)
    return within_budget(selection, situation, name)


def parse_name(name: str) -> tuple[Strategy, dict[str, int]]:
    """A strategy's entry, and option -> number for the numbers in its name. An addition (`+lora`) may end the name.

    Raises `ConfigError` for an unknown name or a wrong number.
    """
    addition = _addition(name)
    name = name.removesuffix(f"+{addition}") if addition else name
    if name.count("(") != name.count(")"):
        raise ConfigError(
            f"strategy '{name}': a bracket is missing: in a YAML list and in a shell, put the name in quotes"
        )
    if match := re.fullmatch(r"([^()]+)\((\d{1,9}(?:,\s*\d{1,9})*)\)", name):
        return _counted(name, match[1], [int(number) for number in match[2].split(",")])
    if name in STRATEGIES and not STRATEGIES.get(name).percents:
        return STRATEGIES.get(name), {}
    stem, digits = _split(name)
    if stem not in STRATEGIES:
        raise unknown_name("strategy", name, known_names())
    strategy = STRATEGIES.get(stem)
    if not strategy.percents:
        raise ConfigError(f"strategy '{name}': use '{stem}', which has no number after it")
    if not digits or int(digits) not in strategy.percents:
        allowed = strategy.percents
        shown = f"{allowed[0]} to {allowed[-1]}" if isinstance(allowed, range) else ", ".join(map(str, allowed))
        raise ConfigError(f"strategy '{name}': '{stem}' needs a percentage after it: {shown}")
    return strategy, {"percent": int(digits)}


def _counted(name: str, stem: str, numbers: list[int]) -> tuple[Strategy, dict[str, int]]:
    if stem not in STRATEGIES:
        raise unknown_name("strategy", stem, known_names())
    counts = STRATEGIES.get(stem).counts
    if len(counts) != len(numbers):
        right = f"{stem}({','.join(counts)})" if counts else f"'{stem}' without numbers in brackets"
        raise ConfigError(f"strategy '{name}': use {right}")
    return STRATEGIES.get(stem), dict(zip(counts, numbers, strict=True))


def _addition(name: str) -> str:
    """The addition at the end of a strategy's name, or "". Raises `ConfigError` for an unknown one."""
    _, plus, addition = name.partition("+")
    if plus and addition not in ADDITIONS:
        raise unknown_name("addition", addition, ADDITIONS)
    return addition


def read_options(name: str, options: Mapping[str, Any]) -> Any:
    """A strategy's options, read from a user's. Raises `ConfigError` with the option that is wrong."""
    strategy, numbers = parse_name(name)
    return _read_options(strategy, name, numbers, dict(options))


def known_names() -> list[str]:
    """Every name as a user types it, with 50 as the percentage where 50 is allowed."""
    return [_as_typed(name) for name in STRATEGIES]


def _read_options(strategy: Strategy, name: str, numbers: dict[str, int], given: dict[str, Any]) -> Any:
    for option in numbers:
        if option in given:
            raise ConfigError(f"strategy_options: {option}: the name '{name}' already sets it: leave it out")
    where = f"strategy_options of '{name}'"
    if strategy.read is not None:
        return strategy.read(given, where)
    try:
        return strategy.options.model_validate({**numbers, **given})
    except ValidationError as error:
        raise ConfigError(f"{where}: {first_error(error)}") from None


def _split(name: str) -> tuple[str, str]:
    stem = name.rstrip(string.digits)
    digits = name[len(stem) :]
    return (stem, digits) if len(digits) < 10 else (name, "")


def _as_typed(name: str) -> str:
    try:
        percents = STRATEGIES.get(name).percents
    except UserError:  # a package's strategy that cannot be loaded: the error comes when it is used
        return name
    return f"{name}{50 if 50 in percents else percents[0]}" if percents else name
