"""PEFT's own methods in a plan: their modules, the blocks that share an adapter, and their parameter counts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as IA3_FEED_FORWARD
from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as IA3_DEFAULTS
from torch import nn
from transformers.pytorch_utils import Conv1D

from frostline.adapters._added import Added, Branch
from frostline.adapters._kind import AdapterKind, LossTerm, PeftAdapter
from frostline.adapters._peft_methods import NORMS, RANKED, RESCALED, peft_config, quiet_peft, regularises, tuner_of
from frostline.adapters._ranks import watch_ranks
from frostline.adapters._targets import leading_out, matching, matrices, transposed
from frostline.anatomy import Anatomy, Block, Linear, Role, attentions, sides
from frostline.core.errors import PlanError, first_line
from frostline.plan import Peft


class PeftKind(AdapterKind[Peft]):
    """Any other method of PEFT. PEFT's own code makes it."""

    def added(self, block: Block, anatomy: Anatomy) -> Added:
        """Parameters are counted on PEFT's own modules, on the meta device. For the cost, each matrix is treated as if
        it had LoRA of the rank that has as many parameters."""
        mode, modules = self.mode, _modules(self.mode, block, anatomy.model_type)
        if mode.method == NORMS:
            peft_config(mode, list(modules), [], False)
            copied = tuple(tensor for tensor in block.tensors if tensor.name.rpartition(".")[0] in modules)
            return Added(((sum(tensor.numel for tensor in copied),),), copied=copied)
        count = _parameters(mode, modules, block)
        targets = [linear for linear in block.linears if linear.name in modules]
        rank = count / max(1, sum(linear.in_features + linear.out_features for linear in targets))
        branches = {m.name: Branch(m.in_features, rank, m.out_features, rank) for m in targets}
        return Added(((count,),), branches)

    @property
    def of_peft(self) -> bool:
        return True

    @property
    def merges(self) -> bool:
        return True

    @classmethod
    def peft_adapters(cls, members: Sequence[tuple[Self, Block]], anatomy: Anatomy) -> list[PeftAdapter]:
        """One adapter for all blocks with the same method and options, named by its method and first block.

        Adapters on norms come last, because while PEFT merges one of them it may merge the other adapters too.
        """
        alike: dict[tuple[str, str], list[tuple[Peft, Block]]] = {}
        for kind, block in members:
            kind.added(block, anatomy)  # raises where the method does not fit
            same = kind.mode.method, json.dumps(kind.mode.options, sort_keys=True)
            alike.setdefault(same, []).append((kind.mode, block))
        made = [_adapter(blocks, anatomy) for blocks in alike.values()]
        return sorted(made, key=lambda adapter: adapter.name.startswith(NORMS))

    @property
    def loss_term(self) -> LossTerm | None:
        return LossTerm("its regularisation", "use orth_reg_weight: 0") if regularises(self.mode) else None

    @property
    def why_not_hybrid(self) -> str | None:
        method = self.mode.method
        tuner_of(method)  # raises a more helpful error for an unknown method
        return f"{method} is a method of PEFT: use PEFT's own config for it, or frostline.apply(plan, model)"

    @property
    def why_not_scheduled(self) -> str | None:
        if self.mode.method != RANKED:
            return None
        return "AdaLoRA divides its ranks among all blocks, so no block may freeze during training"


def _parameters(mode: Peft, modules: Mapping[str, bool], block: Block) -> int:
    """How many parameters a method adds to a block. Raises `PlanError` when an option does not fit its matrices."""
    sizes = {linear.name: linear for linear in block.linears}
    biased = {tensor.name for tensor in block.tensors if tensor.is_bias}
    shapes = tuple(
        _Adapted(
            name.removeprefix(f"{block.name}."),
            sizes[name].in_features,
            sizes[name].out_features,
            f"{name}.bias" in biased,
            scales_input,
        )
        for name, scales_input in modules.items()
    )
    try:
        return _count(mode.method, json.dumps(mode.options, sort_keys=True), shapes, transposed(block))
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        raise PlanError(f"block {block.index}: {mode.method}: {first_line(error)}") from None


def _modules(mode: Peft, block: Block, model_type: str) -> Mapping[str, bool]:
    """Path -> whether IA3 scales the module's input, for the modules that `mode` adapts in a block, in order.

    Raises `PlanError`, which names what the block has, when the targets match nothing.
    """
    tuner = tuner_of(mode.method)
    if mode.method == NORMS:
        return dict.fromkeys(_norms(mode, block, tuner.target_module_mapping.get(model_type, ())), False)
    own = leading_out([linear for linear in block.linears if linear.role is Role.FEED_FORWARD])
    chosen: Sequence[Linear] = ()
    if mode.targets == "default":
        names = (IA3_DEFAULTS if mode.method == RESCALED else tuner.target_module_mapping).get(model_type, ())
        chosen = matching(names, matrices("all", block, model_type, mode.label))
        if chosen and mode.method == RESCALED:
            own = matching(IA3_FEED_FORWARD.get(model_type, ()), chosen)
        elif mode.method == RESCALED:
            chosen = [*_keys_and_values(block), *own]
    chosen = chosen or matrices(mode.targets, block, model_type, mode.label)
    return {linear.name: linear in own for linear in chosen}


def _adapter(members: Sequence[tuple[Peft, Block]], anatomy: Anatomy) -> PeftAdapter:
    mode, first = members[0]
    modules: dict[str, bool] = {}
    for member, block in members:
        modules |= _modules(member, block, anatomy.model_type)
    inputs = [name for name, scales_input in modules.items() if scales_input]
    config = peft_config(mode, list(modules), inputs, transposed(first))
    # PEFT's AdaLoRA treats each parameter whose path holds "lora_" and the adapter's name as its own. The number keeps
    # the name of one adapter from being a part of another's.
    name = f"{mode.method}-{first.index:03d}"
    return PeftAdapter(config, tuple(modules), name, name, watch_ranks if mode.method == RANKED else None)


def _keys_and_values(block: Block) -> list[Linear]:
    return [linear for found in attentions(block) for linear in found.inputs if sides(linear) != "q"]


def _norms(mode: Peft, block: Block, default: Sequence[str]) -> list[str]:
    norms = list(dict.fromkeys(t.name.rpartition(".")[0] for t in block.tensors if t.role is Role.NORM))
    there = (
        f"the block has {', '.join(norm.removeprefix(f'{block.name}.') for norm in norms) or 'no norm with parameters'}"
    )
    where = f"block {block.index}: {mode.method} targets"
    if not norms:
        raise PlanError(f"{where}: {there}: use mode: frozen for it")
    if isinstance(mode.targets, tuple):
        for name in mode.targets:
            if not _ending(name, norms):
                raise PlanError(f"{where}: '{name}' matches no norm, {there}")
        if not mode.targets:
            raise PlanError(f"{where}: the list is empty, {there}")
        default = mode.targets
    elif mode.targets == "all":
        return norms
    elif mode.targets != "default":
        raise PlanError(f"{where}: {mode.targets}: this method trains norms: use default, all, or names; {there}")
    return [norm for norm in norms if any(_ending(name, [norm]) for name in default)] or norms


def _ending(name: str, paths: Sequence[str]) -> list[str]:
    return [path for path in paths if f".{path}".endswith(f".{name}")]


@dataclass(frozen=True)
class _Adapted:
    """A matrix that PEFT adapts. `name` is its path within the block."""

    name: str
    in_features: int
    out_features: int
    bias: bool
    scales_input: bool


@lru_cache(maxsize=512)
def _count(method: str, options: str, shapes: tuple[_Adapted, ...], conv: bool) -> int:
    """How many parameters PEFT makes trainable for matrices of these shapes."""
    mode = Peft(method=method, options=json.loads(options))
    paths = {f"block.{shape.name}": shape for shape in shapes}
    config = peft_config(mode, list(paths), [name for name, shape in paths.items() if shape.scales_input], conv)
    stand_in = nn.Module()
    device = "cpu" if method == "shira" else "meta"  # it draws which entries train, and the meta device cannot
    for path, shape in paths.items():
        with torch.device(device):
            matrix = _matrix(shape, conv)
        _put(stand_in, path, matrix)
    with torch.random.fork_rng(devices=[]), quiet_peft():
        tuner_of(method)(stand_in, config, "default", low_cpu_mem_usage=device == "meta")
    added = {
        parameter
        for layer in stand_in.modules()
        if isinstance(layer, BaseTunerLayer)
        for attribute in layer.adapter_layer_names
        for parameter in getattr(layer, attribute).parameters()
        if parameter.requires_grad
    }
    return sum(parameter.numel() for parameter in added)


def _matrix(shape: _Adapted, conv: bool) -> nn.Module:
    if not conv:
        return nn.Linear(shape.in_features, shape.out_features, bias=shape.bias)
    matrix: nn.Module = Conv1D(shape.out_features, shape.in_features)
    return matrix


def _put(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, last = path.split(".")
    for name in parents:
        if not hasattr(root, name):
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    root.add_module(last, module)
