"""Which of the model's own tensors a plan trains, and which rows of each."""

from __future__ import annotations

import math
from dataclasses import dataclass

from frostline.anatomy._drops import read_by_others
from frostline.anatomy._model import Anatomy, Block, Role, Tensor
from frostline.anatomy._untie import untied
from frostline.core.errors import PlanError
from frostline.plan import OwnTensors, Plan

_ROLES = {"attention": Role.ATTENTION, "feed_forward": Role.FEED_FORWARD}


@dataclass(frozen=True)
class Trained:
    """One trained tensor of the model, the factor of its learning rate, and the share of its rows that trains."""

    tensor: Tensor
    lr_scale: float = 1.0
    rows: float = 1.0
    rows_seed: int = 0

    @property
    def trained_rows(self) -> int:
        """How many rows (entries of the first dimension) train; at least one."""
        return max(1, math.floor(self.rows * self.tensor.shape[0] + 0.5))

    @property
    def parameters(self) -> int:
        return self.tensor.numel * self.trained_rows // self.tensor.shape[0] if self.tensor.shape else 1


def select(plan: Plan, anatomy: Anatomy) -> tuple[Trained, ...]:
    """The model's own tensors that train under `plan`, in the model's order. Adapters are not among them.

    `anatomy` is that of the model before the plan was applied. Raises `PlanError` when the plan has another number of
    blocks, when it trains one side of a tied tensor only, when a partial block names tensors that the block does not
    have, or when nothing of this model would train.
    """
    _check(plan, anatomy)
    if plan.untie:
        anatomy = untied(anatomy)
    trained: list[Trained] = []
    for part, tensors in (
        (plan.embeddings, anatomy.embeddings),
        (plan.final_norm, anatomy.final_norm),
        (plan.head, anatomy.head),
    ):
        if part.own is not None:
            trained += [Trained(tensor, part.own.lr_scale) for tensor in tensors]
    for mode, block in zip(plan.blocks, anatomy.blocks, strict=True):
        if mode.own is not None:
            trained += _of_block(mode.own, block)
    if not trained and not any(mode.adds for mode in plan.blocks):
        if any(mode.mode != "frozen" for mode in plan.blocks):
            raise PlanError(
                f"plan '{plan.strategy}': every prefix has length 0, so nothing trains: use a length above 0"
            )
        named = [part for part in ("embeddings", "final_norm", "head") if getattr(plan, part).mode != "frozen"]
        raise PlanError(
            f"plan '{plan.strategy}': only {' and '.join(named)} would train, but {anatomy.model_class} has no such "
            "tensors: use a mode other than frozen for a block"
        )
    order = {tensor.name: position for position, tensor in enumerate(anatomy.tensors)}
    return tuple(sorted(trained, key=lambda item: order[item.tensor.name]))


def notices(plan: Plan, anatomy: Anatomy) -> list[str]:
    """What the plan does to this model that a reader may not expect, one line for each."""
    lines = []
    if anatomy.tied and not plan.untie and plan.embeddings.mode == "frozen":
        lines.append(
            "tied embeddings: the head shares the frozen embedding's tensor, so it is frozen too "
            f"(use untie: true to train a copy of it, +{_copied(anatomy):,} parameters)"
        )
    if plan.forward.layerdrop.acts:
        lines += [
            f"layerdrop: block {index} is never skipped, because other blocks read what it makes (position bias)"
            for index in read_by_others(anatomy)
            if plan.blocks[index].mode != "frozen"
        ]
    return lines


def _check(plan: Plan, anatomy: Anatomy) -> None:
    if len(plan.blocks) != len(anatomy.blocks):
        raise PlanError(
            f"plan '{plan.strategy}' has {len(plan.blocks)} blocks, but {anatomy.model_class} has "
            f"{len(anatomy.blocks)}: give a mode for blocks 0-{len(anatomy.blocks) - 1}"
        )
    if anatomy.tied and not plan.untie and plan.embeddings.mode != plan.head.mode:
        raise PlanError(
            f"embeddings: {plan.embeddings.mode} and head: {plan.head.mode} differ, but in {anatomy.model_class} they "
            "are one tensor (tied): use the same mode for both, or untie: true for a head with its own tensor"
        )


def _copied(anatomy: Anatomy) -> int:
    return untied(anatomy).total_parameters - anatomy.total_parameters


def _of_block(own: OwnTensors, block: Block) -> list[Trained]:
    if isinstance(own.train, tuple):
        chosen = _of_modules(own.train, block)
    else:
        chosen = [tensor for tensor in block.tensors if _named(own.train, tensor)]
    if not chosen:
        there = sorted({str(tensor.role) for tensor in block.tensors})
        raise PlanError(
            f"block {block.index}: partial with train: {own.train} matches no tensor of {block.name}, "
            f"which has {', '.join(there)} and {'some' if any(t.is_bias for t in block.tensors) else 'no'} biases: "
            "use train for tensors that it has, or mode: frozen"
        )
    return [
        Trained(tensor, own.lr_scale, own.rows if len(tensor.shape) > 1 else 1.0, own.rows_seed) for tensor in chosen
    ]


def _of_modules(names: tuple[str, ...], block: Block) -> list[Tensor]:
    modules = {tensor.name: tensor.name.removeprefix(f"{block.name}.").rpartition(".")[0] for tensor in block.tensors}
    for name in names:
        if name not in modules.values():
            there = ", ".join(dict.fromkeys(module for module in modules.values() if module))
            raise PlanError(
                f"block {block.index}: partial with train: '{name}' matches no module, the block has {there}"
            )
    return [tensor for tensor in block.tensors if modules[tensor.name] in names]


def _named(train: str, tensor: Tensor) -> bool:
    if train == "all":
        return True
    if train == "biases":
        return tensor.is_bias
    if train == "norms_and_biases":
        return tensor.is_bias or tensor.role is Role.NORM
    return tensor.role is _ROLES[train]
