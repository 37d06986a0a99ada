"""`STRATEGY+lora`: the blocks that a strategy would train get low-rank updates instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from frostline.anatomy import Block
from frostline.core.errors import UserError
from frostline.core.settings import first_error
from frostline.plan import BlockMode, FixedSchedule, Forward, Frozen, Full, Lora, Observations, Partial, Plan, Schedule
from frostline.strategies._base import Situation, task_head


def with_lora(schedule: Schedule, situation: Situation, lora: Lora) -> Schedule:
    """`schedule` with `lora` on every block that it trains, at that block's learning-rate scale; final norm and a
    pretrained head stay frozen, a task head trains.

    Raises `UserError` when the schedule trains no block.
    """
    if isinstance(schedule, FixedSchedule):
        return FixedSchedule(_adapted(schedule.plan, situation, lora))
    return _Adapted(schedule, situation, lora)


def read_lora(options: Any) -> Lora:
    """The options of `lora` in a mapping. Raises `UserError` with the key at fault."""
    try:
        return Lora.model_validate({} if options is None else options)
    except ValidationError as error:
        raise UserError(f"strategy_options.lora: {first_error(error)}") from None


class _Adapted:
    """A schedule whose plans are adapted one by one."""

    def __init__(self, schedule: Schedule, situation: Situation, lora: Lora) -> None:
        self._schedule, self._situation, self._lora = schedule, situation, lora

    @property
    def observes(self) -> frozenset[str]:
        return self._schedule.observes

    @property
    def settled(self) -> bool:
        return self._schedule.settled

    def next(self, step: int, observations: Observations) -> Plan | None:
        plan = self._schedule.next(step, observations)
        return None if plan is None else _adapted(plan, self._situation, self._lora)

    def state_dict(self) -> dict[str, Any]:
        return self._schedule.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._schedule.load_state_dict(state)


def _adapted(plan: Plan, situation: Situation, lora: Lora) -> Plan:
    blocks: tuple[BlockMode, ...] = tuple(
        _mode(mode, block, lora) for mode, block in zip(plan.blocks, situation.anatomy.blocks, strict=True)
    )
    if not any(isinstance(mode, Full | Partial) for mode in plan.blocks):
        raise UserError(f"strategy '{plan.strategy}+lora': '{plan.strategy}' trains no block that LoRA could go beside")
    return Plan(
        strategy=f"{plan.strategy}+lora",
        blocks=blocks,
        final_norm=Frozen(),
        head=task_head(situation),
        forward=Forward(**plan.forward.model_dump()),
    )


def _mode(mode: BlockMode, block: Block, lora: Lora) -> BlockMode:
    """LoRA for what trains in a block, beside the matrices that a partial block names unless `lora` names others."""
    if not isinstance(mode, Full | Partial):
        return mode
    if isinstance(mode, Partial) and (mode.rows < 1 or mode.train == "norms_and_biases"):
        what = "some rows of its matrices" if mode.rows < 1 else "its norms and biases"
        raise UserError(f"+lora: LoRA goes beside whole matrices, and a middle block trains {what}: take another form")
    changes: dict[str, Any] = {"lr_scale": lora.lr_scale * mode.lr_scale}
    if isinstance(mode, Partial) and lora.targets == "default":
        named = _adaptable(mode.train, block) if isinstance(mode.train, tuple) else mode.train
        changes |= {"targets": named} if named and named not in ("all", "biases") else {}
    return lora.model_copy(update=changes)


def _adaptable(modules: tuple[str, ...], block: Block) -> tuple[str, ...]:
    """Those of the named modules that are one matrix: no experts that lie together, and no router to them."""
    experts = {linear.copies for linear in block.linears if linear.copies > 1}
    single = {linear.name for linear in block.linears if linear.copies == 1 and linear.out_features not in experts}
    return tuple(module for module in modules if f"{block.name}.{module}" in single)
