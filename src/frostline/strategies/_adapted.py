"""Additions: adapters by name. `NAME` puts one on every block, `STRATEGY+NAME` on the blocks that a strategy trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from frostline.adapters import adaptable, kind_of
from frostline.anatomy import Block
from frostline.core.errors import ConfigError, PlanError, unknown_name
from frostline.core.settings import first_error
from frostline.plan import (
    AddingMode,
    BlockMode,
    Bottleneck,
    ChangedPlans,
    FixedSchedule,
    Forward,
    Frozen,
    Full,
    Lora,
    Mixture,
    OwnTensors,
    Peft,
    Plan,
    Prefix,
    Schedule,
    Timetable,
    Unipelt,
    phases,
)
from frostline.strategies._plans import task_head
from frostline.strategies._selection import Selection, fixed
from frostline.strategies._situation import Situation
from frostline.strategies._strategy import Strategy


@dataclass(frozen=True)
class Addition:
    """A mode that adds an adapter to a block.

    Attributes:
        summary: what it adds, in a few words.
        mode: the mode and its options.
        fixed: options whose values the name implies.
        defaults: defaults that differ from the mode's.
    """

    summary: str
    mode: type[AddingMode]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def read(self, options: Any, where: str) -> AddingMode:
        """The mode with a user's options. Raises `ConfigError` that names the wrong option."""
        if not isinstance(options, dict):
            raise ConfigError(f"{where}: options have to be a mapping, such as {{lr_scale: 0.5}}")
        implied = ("mode", *self.fixed)
        for key in (key for key in implied if key in options):
            raise ConfigError(f"{where}: {key}: the strategy's name already sets it: leave it out")
        known = [key for key in self.mode.model_fields if key not in implied]
        for key in (key for key in options if key not in known):
            hint = "; options of PEFT's config go under options" if "options" in self.mode.model_fields else ""
            raise ConfigError(f"{where}: {unknown_name('key', str(key), known)}{hint}")
        try:
            return self.mode.model_validate({**self.defaults, **options, **self.fixed})
        except ValidationError as error:
            raise ConfigError(f"{where}: {first_error(error)}") from None


ADDITIONS: Mapping[str, Addition] = {
    "lora": Addition("LoRA", Lora),
    "prefix": Addition("learned keys and values (prefix tuning)", Prefix, defaults={"length": 30, "gate": "none"}),
    "parallel-adapter": Addition("adapters beside queries, keys and values", Bottleneck, {"kind": "parallel"}),
    "series-adapter": Addition("adapters after attention and feed-forward", Bottleneck, {"kind": "series"}),
    "mixlora": Addition("a mixture of LoRA experts", Mixture, {"kind": "mixture"}),
    "unipelt": Addition("gated LoRA, a gated prefix and a gated adapter", Unipelt, {"kind": "unipelt"}),
    "ia3": Addition("learned factors for keys, values and feed-forward", Peft, {"kind": "peft", "method": "ia3"}),
    "dora": Addition("LoRA with learned magnitudes", Peft, {"kind": "peft", "method": "dora"}),
    "adalora": Addition("LoRA whose ranks adapt during training", Peft, {"kind": "peft", "method": "adalora"}),
    "ln-tuning": Addition("trained norms", Peft, {"kind": "peft", "method": "ln_tuning"}),
}
"""The papers' baselines. PEFT's other methods can be used in a plan file (`mode: adapter`, `kind: peft`)."""


def everywhere(name: str) -> Strategy:
    """The strategy that puts an addition on every block."""

    def choose(situation: Situation, mode: AddingMode) -> Selection:
        blocks = (mode,) * situation.blocks
        return fixed(Plan(strategy=name, blocks=blocks, final_norm=Frozen(), head=task_head(situation)))

    addition = ADDITIONS[name]
    return Strategy(f"{addition.summary} on every block", choose, read=addition.read)


def adapted(selection: Selection, situation: Situation, mode: AddingMode, name: str, called: str) -> Selection:
    """`selection` with `mode` on every block that its plans train (`adapted_plan`).

    Args:
        selection: what the strategy before the plus sign selects.
        situation: the situation that it was made for.
        mode: what is added.
        name: the addition's name.
        called: the strategy's name, as it was typed.

    Raises `ConfigError` when a plan trains no block, or the addition cannot be used with a schedule.
    """
    schedule = selection.schedule
    if schedule.settled:
        return replace(selection, schedule=FixedSchedule(adapted_plan(schedule.first, situation, mode, name, called)))
    kind = kind_of(mode)
    if kind is not None and kind.why_not_scheduled is not None:
        raise ConfigError(f"strategy '{called}': {kind.why_not_scheduled}: use +lora")

    def change(plan: Plan) -> Plan:
        return adapted_plan(plan, situation, mode, name, called)

    return replace(selection, schedule=ChangedPlans(schedule, change, change(_trained_ever(schedule, situation))))


def _trained_ever(schedule: Schedule, situation: Situation) -> Plan:
    """The first plan, with every block in training that a later plan may train."""
    plan, steps = schedule.first, situation.steps
    known = phases(schedule, steps) if isinstance(schedule, Timetable) and steps is not None else None
    later = None if known is None else [each.blocks for _, each in known]
    blocks = (
        Full() if own.own is None and (later is None or any(modes[index].own for modes in later)) else own
        for index, own in enumerate(plan.blocks)
    )
    return plan.model_copy(update={"blocks": tuple(blocks)})


def adapted_plan(plan: Plan, situation: Situation, mode: AddingMode, name: str, called: str) -> Plan:
    """`plan` with `mode` on every block that it trains.

    A block's learning-rate factor stays. The final norm and a pretrained head are frozen, a task head trains. LoRA is
    on all matrices of a block, where its options do not name some; the strategy `lora` has it on queries and values.

    Args:
        plan: what trains without the addition.
        situation: the situation that the plan is for.
        mode: what is added.
        name: the addition's name.
        called: the name of the new plan.

    Raises `ConfigError` when the plan trains no block, and `PlanError` when the addition does not fit a block.
    """
    if all(trained.own is None for trained in plan.blocks):
        raise ConfigError(
            f"strategy '{called}': '{plan.strategy}' trains no block that {name} could be added to: use "
            f"{name}, or a strategy that trains blocks"
        )
    blocks = tuple(
        _mode(trained, block, mode, name) for trained, block in zip(plan.blocks, situation.anatomy.blocks, strict=True)
    )
    return Plan(
        strategy=called,
        blocks=blocks,
        final_norm=Frozen(),
        head=task_head(situation),
        forward=Forward(**plan.forward.model_dump()),
    )


def _mode(mode: BlockMode, block: Block, added: AddingMode, name: str) -> BlockMode:
    """What replaces a block's mode: `added`, on the matrices that a partial block names unless `added` names others.

    LoRA beside a whole block is on all its matrices, unless it names some.
    """
    own = mode.own
    if own is None:
        return mode
    if not own.whole:
        if own.rows < 1 or own.train == "norms_and_biases":
            what = "some rows of its matrices" if own.rows < 1 else "its norms and biases"
            raise PlanError(
                f"+{name}: block {block.index} trains {what}, but {name} needs whole matrices: use "
                "partly: attention or partly: feed_forward"
            )
        narrowed = added.beside(_matrices(own, block))
        if narrowed is None:
            raise PlanError(f"+{name}: block {block.index} trains in part, but {name} needs a whole block: use +lora")
        added = narrowed
    else:
        added = added.beside_block()
    return added.model_copy(update={"lr_scale": added.lr_scale * own.lr_scale})


def _matrices(own: OwnTensors, block: Block) -> Any:
    """The matrices among the trained tensors of a block, as an adapter's targets."""
    named: Any = own.train
    if isinstance(named, tuple):
        single = {linear.name for linear in adaptable(block)}
        named = tuple(module for module in named if f"{block.name}.{module}" in single)
    return named if named and named not in ("all", "biases") else "default"
