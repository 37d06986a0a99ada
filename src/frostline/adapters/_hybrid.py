"""A PEFT method of its own kind in every block: LoRA here, a prefix there, adapters elsewhere.

PEFT's registering function takes only names of its own enumeration; entries in its public tables of methods do work:
create, save, load, switch off, several adapters, merge. `PeftMixedModel` does not take it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from accelerate import init_empty_weights
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import set_additional_trainable_modules
from pydantic import TypeAdapter, ValidationError
from torch import nn

from frostline.adapters._kinds import adapters_in, kind_of
from frostline.adapters._layer import PARTS, HybridLayer, Part, check_mergeable, submodule
from frostline.anatomy import Anatomy, find_anatomy
from frostline.core.errors import FrostlineError, UserError
from frostline.core.settings import first_error
from frostline.plan import BlockMode, Frozen, Plan, block_ranges, named_blocks

PEFT_TYPE = "HYBRID"
_MODES: TypeAdapter[BlockMode] = TypeAdapter(BlockMode)


@dataclass
class HybridConfig(PeftConfig):
    """A mode for every block, in the words of a plan's `blocks`: `frozen`, `lora`, `prefix`, `adapter`.

    >>> HybridConfig(blocks=[{"index": "0-23", "mode": "lora", "targets": "down", "gate": True}, ...])

    Blocks are numbered from the input, and those that are not named stay frozen. `HybridConfig.of(plan)` takes a
    plan's.
    """

    blocks: list[Any] = field(default_factory=list, metadata={"help": "A mode for each block, as in a plan."})
    target_modules: Any = field(default=None, metadata={"help": "Unused: the modes name what they go beside."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules that train whole."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE

    @classmethod
    def of(cls, plan: Plan, **others: Any) -> HybridConfig:
        """The adapters of a plan, with other fields of the config.

        Raises `UserError` when the plan trains tensors of the model itself, which no adapter holds: those of a block,
        or a head that neither `modules_to_save` nor `task_type` (by which PEFT finds a classifier) speaks of.
        """
        for part in ("embeddings", "final_norm", "head"):
            if getattr(plan, part).mode != "frozen" and not {"modules_to_save", "task_type"} & others.keys():
                raise UserError(
                    f"HybridConfig: {part}: {getattr(plan, part).mode} is no adapter: give task_type or "
                    "modules_to_save, which PEFT trains and saves beside it, or freeze it in the plan"
                )
        return cls.of_modes(plan.blocks, **others)

    @classmethod
    def of_modes(cls, modes: Sequence[BlockMode], **others: Any) -> HybridConfig:
        """One mode for each block. Raises `UserError` as `of` does."""
        for index, mode in enumerate(modes):
            _check_adds(index, mode)
        entries = [{"index": where, **mode.model_dump(mode="json")} for where, mode in block_ranges(modes)]
        return cls(blocks=entries, **others)

    def modes(self, depth: int) -> tuple[BlockMode, ...]:
        """A mode for each of `depth` blocks. Raises `UserError` for one that is none, or that is too many."""
        try:
            named = {index: _mode(index, options) for index, options in named_blocks(self.blocks).items()}
        except ValueError as error:
            raise UserError(f"HybridConfig: blocks: {error}") from None
        if not named or max(named) >= depth:
            raise UserError(f"HybridConfig: blocks: give modes for some of blocks 0-{depth - 1}")
        for index, mode in named.items():
            _check_adds(index, mode)
        if all(mode.mode == "frozen" for mode in named.values()):
            raise UserError("HybridConfig: blocks: all are frozen: give one a mode that adds something")
        return tuple(named.get(index, Frozen()) for index in range(depth))


def _mode(index: int, options: Any) -> BlockMode:
    try:
        return _MODES.validate_python(options)
    except ValidationError as error:
        raise UserError(f"HybridConfig: block {index}: {first_error(error)}") from None


def _check_adds(index: int, mode: BlockMode) -> None:
    if mode.own is not None:
        raise UserError(f"block {index}: {mode.mode} is no adapter: apply the plan with frostline.apply instead")
    kind = kind_of(mode)
    if kind is not None and kind.why_not_hybrid is not None:
        raise UserError(f"block {index}: {kind.why_not_hybrid}")


class HybridModel(BaseTuner):
    """The tuner of `HybridConfig`."""

    prefix = "hybrid_"
    tuner_layer_cls = HybridLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Put the adapter's parts around their modules, those of other adapters staying where they are.

        Raises `UserError` when the config does not fit the model; the model is then unchanged.
        """
        config: Any = self.peft_config[adapter_name]
        if getattr(self, "anatomy", None) is None:
            self.anatomy: Anatomy = find_anatomy(model)
        members = adapters_in(config.modes(len(self.anatomy.blocks)), self.anatomy)
        with init_empty_weights() if low_cpu_mem_usage else nullcontext():
            made = [found for kind, block in members for found in kind.parts(model, block, self.anatomy)]
        for path, part in made:
            _wrap(model, path, adapter_name, part)
            self.targeted_module_names.append(path)
        for kind in dict.fromkeys(type(kind) for kind, _ in members):
            kind.watch(model)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
        self._mark_only_adapters_as_trainable(model)
        set_additional_trainable_modules(
            model=model,
            peft_config=config,
            model_config=BaseTuner.get_model_config(self),
            adapter_name=adapter_name,
            activate_adapter=adapter_name in self.active_adapters,
        )

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("parts go around modules by place, not by matching names")

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """As PEFT's. Raises `UserError`, with nothing changed, when one of them is no change of weights."""
        check_mergeable(self.model, adapter_names)
        super().merge_adapter(adapter_names, safe_merge)

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> Any:
        if merge:
            check_mergeable(self.model, kwargs.get("adapter_names"))
        unloaded = super()._unload_and_optionally_merge(merge, *args, **kwargs)
        # PEFT does not look inside a module that carries an adapter, where an attention's or a feed-forward's lie.
        while any(isinstance(module, HybridLayer) for module in self.model.modules()):
            super()._unload_and_optionally_merge(merge, *args, **kwargs)
        return unloaded

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, HybridLayer):
            child.unload()
        setattr(parent, child_name, new_module)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # Whether a module lies within another one that carries an adapter depends on the other adapters.
        return key.replace(f".{PARTS}.{adapter_name}.", f".{PARTS}.").replace(".base_layer.", ".")


def _wrap(model: nn.Module, path: str, adapter_name: str, part: Part) -> None:
    above, _, name = path.rpartition(".")
    parent = submodule(model, above)
    layer = getattr(parent, name)
    if isinstance(layer, BaseTunerLayer) and not isinstance(layer, HybridLayer):
        raise FrostlineError(f"{path} carries an adapter of PEFT's already")
    if not isinstance(layer, HybridLayer):
        layer = HybridLayer(layer)
        layer.set_adapter(adapter_name)
        setattr(parent, name, layer)
    weight = next(layer.base_layer.parameters(), None)
    device = torch.device("cpu") if weight is None else weight.device
    meta = any(parameter.is_meta for parameter in part.parameters())
    layer.put(adapter_name, part if meta else part.to(device))


PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = HybridConfig
PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = HybridModel
PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = HybridModel.prefix
