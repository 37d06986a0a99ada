"""What can be added to blocks, by name: on every block as a strategy, and where another trains as `STRATEGY+NAME`."""

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
    FixedSchedule,
    Forward,
    Frozen,
    Lora,
    Mixture,
    Observations,
    OwnTensors,
    Peft,
    Plan,
    Prefix,
    Schedule,
)
from frostline.strategies._plans import task_head
from frostline.strategies._selection import Selection, fixed
from frostline.strategies._situation import Situation
from frostline.strategies._strategy import Strategy


@dataclass(frozen=True)
class Addition:
    """A mode that adds to a block: its options, `fixed` ones that its name stands for, and other defaults."""

    summary: str
    mode: type[AddingMode]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def read(self, options: Any, where: str) -> AddingMode:
        """The mode with a user's options. Raises `UserError` with the key at fault."""
        if not isinstance(options, dict):
            raise ConfigError(f"{where}: its options are a mapping")
        said = ("mode", *self.fixed)
        for key in (key for key in said if key in options):
            raise ConfigError(f"{where}: {key}: the name says it")
        known = [key for key in self.mode.model_fields if key not in said]
        for key in (key for key in options if key not in known):
            hint = "; those of PEFT's config go under options" if "options" in self.mode.model_fields else ""
            raise ConfigError(f"{where}: {unknown_name('key', str(key), known)}{hint}")
        try:
            return self.mode.model_validate({**self.defaults, **options, **self.fixed})
        except ValidationError as error:
            raise ConfigError(f"{where}: {first_error(error)}") from None


ADDITIONS: Mapping[str, Addition] = {
    "lora": Addition("LoRA", Lora),
    "prefix": Addition("learned keys and values", Prefix, defaults={"length": 30, "gate": "none"}),
    "parallel-adapter": Addition("adapters beside queries, keys and values", Bottleneck, {"kind": "parallel"}),
    "series-adapter": Addition("adapters after attention and feed-forward", Bottleneck, {"kind": "series"}),
    "mixlora": Addition("a mixture of LoRA experts", Mixture, {"kind": "mixture"}),
    "ia3": Addition("rescaled keys, values and feed-forward", Peft, {"kind": "peft", "method": "ia3"}),
    "dora": Addition("LoRA with magnitudes", Peft, {"kind": "peft", "method": "dora"}),
    "adalora": Addition("LoRA whose ranks adapt", Peft, {"kind": "peft", "method": "adalora"}),
    "ln-tuning": Addition("norms", Peft, {"kind": "peft", "method": "ln_tuning"}),
}
"""What PEFT calls the paper's baselines is here by name; its other methods are a mode of a plan file."""


def everywhere(name: str) -> Strategy:
    """The strategy that puts an addition on every block."""

    def choose(situation: Situation, mode: AddingMode) -> Selection:
        blocks = (mode,) * situation.blocks
        return fixed(Plan(strategy=name, blocks=blocks, final_norm=Frozen(), head=task_head(situation)))

    addition = ADDITIONS[name]
    return Strategy(f"{addition.summary} on every block", choose, read=addition.read)


def adapted(selection: Selection, situation: Situation, mode: AddingMode, name: str) -> Selection:
    """`selection` with `mode` on every block that its plans train (`adapted_plan`).

    Args:
        selection: of the strategy that the addition's name follows.
        situation: that it was made for.
        mode: what is added.
        name: the addition's.

    Raises `UserError` when a plan trains no block.
    """
    schedule = selection.schedule
    if schedule.settled:
        return replace(selection, schedule=FixedSchedule(adapted_plan(schedule.first, situation, mode, name)))
    kind = kind_of(mode)
    if kind is not None and kind.why_not_scheduled is not None:
        raise ConfigError(f"+{name}: {kind.why_not_scheduled}: take +lora")
    return replace(selection, schedule=_Adapted(schedule, situation, mode, name))


def adapted_plan(plan: Plan, situation: Situation, mode: AddingMode, name: str) -> Plan:
    """`plan` with `mode`, of the addition called `name`, on every block that it trains, at that block's learning-rate
    scale; final norm and a pretrained head stay frozen, a task head trains.

    Args:
        plan: what trains without the addition.
        situation: that the plan is for.
        mode: what is added.
        name: the addition's.

    Raises `UserError` when the plan trains no block.
    """
    if all(trained.own is None for trained in plan.blocks):
        raise ConfigError(f"strategy '{plan.strategy}+{name}': '{plan.strategy}' trains no block that it could go to")
    blocks = tuple(
        _mode(trained, block, mode, name) for trained, block in zip(plan.blocks, situation.anatomy.blocks, strict=True)
    )
    return Plan(
        strategy=f"{plan.strategy}+{name}",
        blocks=blocks,
        final_norm=Frozen(),
        head=task_head(situation),
        forward=Forward(**plan.forward.model_dump()),
    )


class _Adapted:
    """A schedule whose plans are adapted one by one."""

    def __init__(self, schedule: Schedule, situation: Situation, mode: AddingMode, name: str) -> None:
        self._schedule, self._situation, self._mode, self._name = schedule, situation, mode, name

    @property
    def first(self) -> Plan:
        return self._adapted(self._schedule.first)

    @property
    def observes(self) -> frozenset[str]:
        return self._schedule.observes

    @property
    def settled(self) -> bool:
        return self._schedule.settled

    def next(self, step: int, observations: Observations) -> Plan | None:
        plan = self._schedule.next(step, observations)
        return None if plan is None else self._adapted(plan)

    def state_dict(self) -> dict[str, Any]:
        return self._schedule.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._schedule.load_state_dict(state)

    def _adapted(self, plan: Plan) -> Plan:
        return adapted_plan(plan, self._situation, self._mode, self._name)


def _mode(mode: BlockMode, block: Block, added: AddingMode, name: str) -> BlockMode:
    """`added` for what trains in a block, beside the matrices that a partial block names unless `added` names
    others."""
    own = mode.own
    if own is None:
        return mode
    if not own.whole:
        if own.rows < 1 or own.train == "norms_and_biases":
            what = "some rows of its matrices" if own.rows < 1 else "its norms and biases"
            raise PlanError(
                f"+{name}: it goes beside whole matrices, and a middle block trains {what}: take another form"
            )
        narrowed = added.beside(_matrices(own, block))
        if narrowed is None:
            raise PlanError(f"+{name}: it goes with whole blocks, and a middle block trains in part: take +lora")
        added = narrowed
    return added.model_copy(update={"lr_scale": added.lr_scale * own.lr_scale})


def _matrices(own: OwnTensors, block: Block) -> Any:
    """The matrices among what trains of a block, as an adapter's targets."""
    named: Any = own.train
    if isinstance(named, tuple):
        single = {linear.name for linear in adaptable(block)}
        named = tuple(module for module in named if f"{block.name}.{module}" in single)
    return named if named and named not in ("all", "biases") else "default"
