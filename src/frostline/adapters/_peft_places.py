"""Where PEFT's own methods go in a model's blocks, which blocks share an adapter, and how many parameters they add."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as IA3_FEED_FORWARD
from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as IA3_DEFAULTS
from torch import nn
from transformers.pytorch_utils import Conv1D

from frostline.adapters._peft import NORMS, RESCALED, peft_config, quiet_peft, tuner_of
from frostline.adapters._targets import leading_out, matching, matrices
from frostline.anatomy import Anatomy, Block, Linear, Role, attentions, sides
from frostline.core.errors import FrostlineError, UserError, first_line
from frostline.plan import Peft, Plan


@dataclass(frozen=True)
class Group:
    """Blocks of one method and the same options: one adapter of PEFT's, and the modules that it adapts."""

    name: str
    config: PeftConfig
    modules: tuple[str, ...]


def peft_groups(plan: Plan, anatomy: Anatomy) -> list[Group]:
    """The adapters that PEFT's methods in `plan` make, each named for its method and first block.

    Those beside norms come last: PEFT can merge the others in passing while it merges them. Raises `UserError` when a
    method, an option or a target does not fit.
    """
    members: dict[tuple[str, str], list[tuple[Peft, Block]]] = {}
    for mode, block in zip(plan.blocks, anatomy.blocks, strict=True):
        if isinstance(mode, Peft):
            peft_parameters(mode, block, anatomy.model_type)
            same = mode.method, json.dumps(mode.options, sort_keys=True)
            members.setdefault(same, []).append((mode, block))
    groups = [_group(blocks, anatomy) for blocks in members.values()]
    return sorted(groups, key=lambda group: group.name.startswith(NORMS))


def peft_parameters(mode: Peft, block: Block, model_type: str) -> int:
    """The trainable parameters that a method adds to a block, counted on PEFT's own modules without their numbers.

    Raises `UserError` when the method, an option or a target does not fit.
    """
    modules = peft_modules(mode, block, model_type)
    if mode.method == NORMS:
        peft_config(mode, list(modules), [], False)
        return sum(tensor.numel for tensor in block.tensors if tensor.name.rpartition(".")[0] in modules)
    sizes = {linear.name: linear for linear in block.linears}
    biased = {tensor.name for tensor in block.tensors if tensor.is_bias}
    shapes = tuple(
        _Shape(
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
        raise UserError(f"block {block.index}: {mode.method}: {first_line(error)}") from None


def check_groups(model: nn.Module, groups: Sequence[Group]) -> None:
    """Check that PEFT adapted what it was asked to, no more and no less."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    for group in groups:
        adapted = {name for name, layer in layers.items() if group.name in layer._all_available_adapter_names()}
        if adapted != set(group.modules):
            raise FrostlineError(f"PEFT adapted {sorted(adapted)}, {len(group.modules)} modules were asked for")


def peft_modules(mode: Peft, block: Block, model_type: str) -> Mapping[str, bool]:
    """The paths of the modules that `mode` adapts in a block, in order; True for those whose input IA3 scales.

    Raises `UserError`, with what the block has, when its targets match nothing.
    """
    tuner = tuner_of(mode.method)
    if mode.method == NORMS:
        return dict.fromkeys(_norms(mode, block, tuner.target_module_mapping.get(model_type, ())), False)
    own = leading_out([linear for linear in block.linears if linear.role is Role.FEED_FORWARD])
    chosen: Sequence[Linear] = ()
    if mode.targets == "default":
        names = (IA3_DEFAULTS if mode.method == RESCALED else tuner.target_module_mapping).get(model_type, ())
        chosen = matching(names, matrices(mode.model_copy(update={"targets": "all"}), block, model_type))
        if chosen and mode.method == RESCALED:
            own = matching(IA3_FEED_FORWARD.get(model_type, ()), chosen)
        elif mode.method == RESCALED:
            chosen = [*_keys_and_values(block), *own]
    chosen = chosen or matrices(mode, block, model_type)
    return {linear.name: linear in own for linear in chosen}


def transposed(block: Block) -> bool:
    """Whether the block keeps its matrices as [in, out], as GPT-2 does."""
    shapes = {tensor.name: tensor.shape for tensor in block.tensors}
    return any(
        shapes.get(linear.weight) == (linear.in_features, linear.out_features)
        for linear in block.linears
        if linear.copies == 1 and linear.in_features != linear.out_features
    )


def _group(members: Sequence[tuple[Peft, Block]], anatomy: Anatomy) -> Group:
    mode, first = members[0]
    modules: dict[str, bool] = {}
    for member, block in members:
        modules |= peft_modules(member, block, anatomy.model_type)
    inputs = [name for name, scales_input in modules.items() if scales_input]
    config = peft_config(mode, list(modules), inputs, transposed(first))
    # PEFT's AdaLoRA takes for its own every parameter in whose path "lora_" and the adapter's name stand anywhere.
    return Group(f"{mode.method}-{first.index:03d}", config, tuple(modules))


def _keys_and_values(block: Block) -> list[Linear]:
    return [linear for found in attentions(block) for linear in found.inputs if sides(linear) != "q"]


def _norms(mode: Peft, block: Block, default: Sequence[str]) -> list[str]:
    norms = list(dict.fromkeys(t.name.rpartition(".")[0] for t in block.tensors if t.role is Role.NORM))
    there = f"the block has {', '.join(norm.removeprefix(f'{block.name}.') for norm in norms) or 'no norm that trains'}"
    where = f"block {block.index}: {mode.method} targets"
    if not norms:
        raise UserError(f"{where}: {there}")
    if isinstance(mode.targets, tuple):
        for name in mode.targets:
            if not _ending(name, norms):
                raise UserError(f"{where}: '{name}' matches no norm, {there}")
        if not mode.targets:
            raise UserError(f"{where}: the list is empty, {there}")
        default = mode.targets
    elif mode.targets == "all":
        return norms
    elif mode.targets != "default":
        raise UserError(f"{where}: {mode.targets}: it goes beside norms: give default, all, or names; {there}")
    return [norm for norm in norms if any(_ending(name, [norm]) for name in default)] or norms


def _ending(name: str, paths: Sequence[str]) -> list[str]:
    return [path for path in paths if f".{path}".endswith(f".{name}")]


@dataclass(frozen=True)
class _Shape:
    """A matrix of the block that PEFT adapts, by its path there."""

    name: str
    in_features: int
    out_features: int
    bias: bool
    scales_input: bool


@lru_cache(maxsize=512)
def _count(method: str, options: str, shapes: tuple[_Shape, ...], conv: bool) -> int:
    """What PEFT makes trainable beside matrices of these shapes."""
    mode = Peft(method=method, options=json.loads(options))
    paths = {f"block.{shape.name}": shape for shape in shapes}
    config = peft_config(mode, list(paths), [name for name, shape in paths.items() if shape.scales_input], conv)
    stand_in = nn.Module()
    device = "cpu" if method == "shira" else "meta"  # it draws which entries train, which takes numbers
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


def _matrix(shape: _Shape, conv: bool) -> nn.Module:
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
