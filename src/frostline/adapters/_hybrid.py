"""A PEFT method that gives each block an adapter kind of its own: LoRA, a prefix, or a bottleneck adapter.

PEFT's registering function accepts only names of its own enumeration. Entries in PEFT's public tables of methods work:
an adapter can be created, saved, loaded, switched off and merged, and a model can have several. `PeftMixedModel` does
not accept the method.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import init_empty_weights
from peft import LoraConfig, PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import set_additional_trainable_modules
from pydantic import TypeAdapter, ValidationError
from torch import nn

from frostline.adapters._folder import note_import, ordinary_lora
from frostline.adapters._kinds import adapters_in, kind_of
from frostline.adapters._layer import PARTS, AdapterPart, HybridLayer, check_mergeable, submodule
from frostline.anatomy import Anatomy, find_anatomy
from frostline.core.errors import FrostlineError, PlanError
from frostline.core.settings import first_error
from frostline.plan import BlockMode, Frozen, Plan, block_ranges, named_blocks

PEFT_TYPE = "HYBRID"
_MODES: TypeAdapter[BlockMode] = TypeAdapter(BlockMode)


@dataclass
class HybridConfig(PeftConfig):
    """A mode for every block, written as in a plan's `blocks`: `frozen`, `lora`, `prefix`, `adapter`.

    >>> HybridConfig(blocks=[{"index": "0-23", "mode": "lora", "targets": "down", "gate": True}, ...])

    Blocks are numbered from the input. A block that is not named stays frozen. `HybridConfig.of(plan)` makes the
    config of a plan.
    """

    blocks: list[Any] = field(default_factory=list, metadata={"help": "A mode for each block, as in a plan."})
    target_modules: Any = field(default=None, metadata={"help": "Not used: each mode has targets of its own."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules that train whole."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        self._lora: LoraConfig | None = None

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write the config, and in README.md what loading the folder needs.

        Where every block that is not frozen has LoRA without a gate, and of one dropout, this is PEFT's own
        `LoraConfig`: the folder is then an ordinary LoRA folder. It may give each matrix its own rank and alpha, which
        vLLM and llama.cpp do not read; `frostline.export_lora` writes one for them.
        """
        if self._lora is not None:
            for name in ("base_model_name_or_path", "revision", "task_type", "inference_mode", "modules_to_save"):
                setattr(self._lora, name, getattr(self, name))
            self._lora.save_pretrained(save_directory, **kwargs)
        else:
            super().save_pretrained(save_directory, **kwargs)
        note_import(Path(save_directory), needed=self._lora is None)

    @classmethod
    def of(cls, plan: Plan, **others: Any) -> HybridConfig:
        """The config for the adapters of a plan. `others` are other fields of the config.

        Raises `PlanError` when the plan trains the model's own tensors, which an adapter cannot hold: tensors of a
        block, or the head where neither `modules_to_save` nor `task_type` is given (PEFT finds a classifier by it).
        """
        if not isinstance(plan, Plan):
            raise PlanError(f"HybridConfig.of: give a plan, not {type(plan).__name__}: use frostline.make_plan")
        for part in ("embeddings", "final_norm", "head"):
            if getattr(plan, part).mode != "frozen" and not {"modules_to_save", "task_type"} & others.keys():
                raise PlanError(
                    f"HybridConfig: {part}: mode {getattr(plan, part).mode} is not an adapter: give modules_to_save or "
                    f"task_type, so that PEFT trains and saves it too, or use {part}: frozen in the plan"
                )
        return cls.of_modes(plan.blocks, **others)

    @classmethod
    def of_modes(cls, modes: Sequence[BlockMode], **others: Any) -> HybridConfig:
        """The config for one mode per block. Raises `PlanError` for a mode that is not an adapter."""
        for index, mode in enumerate(modes):
            _check_adds(index, mode)
        entries = [{"index": where, **mode.model_dump(mode="json")} for where, mode in block_ranges(modes)]
        return cls(blocks=entries, **others)

    def modes(self, depth: int) -> tuple[BlockMode, ...]:
        """A mode for each of `depth` blocks. Raises `PlanError` for a wrong mode, or a block that is not there."""
        try:
            named = {index: _mode(index, options) for index, options in named_blocks(self.blocks).items()}
        except ValueError as error:
            raise PlanError(f"HybridConfig: blocks: {error}") from None
        if not named or max(named) >= depth:
            raise PlanError(
                f"HybridConfig: blocks: give a mode for at least one block, and only for blocks 0-{depth - 1}"
            )
        for index, mode in named.items():
            _check_adds(index, mode)
        if all(mode.mode == "frozen" for mode in named.values()):
            raise PlanError("HybridConfig: blocks: every block is frozen: use lora, prefix or adapter in at least one")
        return tuple(named.get(index, Frozen()) for index in range(depth))


def _mode(index: int, options: Any) -> BlockMode:
    try:
        return _MODES.validate_python(options)
    except ValidationError as error:
        raise PlanError(f"HybridConfig: block {index}: {first_error(error)}") from None


def _check_adds(index: int, mode: BlockMode) -> None:
    if mode.own is not None:
        raise PlanError(
            f"HybridConfig: block {index}: mode {mode.mode} is not an adapter: use frostline.apply(plan, model) instead"
        )
    kind = kind_of(mode)
    if kind is not None and kind.why_not_hybrid is not None:
        raise PlanError(f"HybridConfig: block {index}: {kind.why_not_hybrid}")


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
        """Put the adapter's parts around their modules. Parts of other adapters stay where they are.

        Raises `PlanError` or `UnsupportedModel` when the config does not fit the model. The model is unchanged then.
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
        config._lora = ordinary_lora(members, self.anatomy)
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
        raise NotImplementedError("each part has its own module; PEFT's matching of names is not used")

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """As PEFT's. Raises `PlanError`, before anything changes, for an adapter that is not a change of weights."""
        check_mergeable(self.model, adapter_names)
        super().merge_adapter(adapter_names, safe_merge)

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> Any:
        if merge:
            check_mergeable(self.model, kwargs.get("adapter_names"))
        unloaded = super()._unload_and_optionally_merge(merge, *args, **kwargs)
        # PEFT does not look inside a module that carries an adapter. An attention or a feed-forward with an adapter
        # can hold matrices with adapters, so go on until none is left.
        while any(isinstance(module, HybridLayer) for module in self.model.modules()):
            super()._unload_and_optionally_merge(merge, *args, **kwargs)
        return unloaded

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, HybridLayer):
            child.unload()
        setattr(parent, child_name, new_module)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # Leave ".base_layer" out: it is in the path only where another adapter is around an outer module.
        key = key.replace(f".{PARTS}.{adapter_name}.", f".{PARTS}.").replace(".base_layer.", ".")
        return re.sub(rf"\.{PARTS}\.(A|B)$", r".lora_\1.weight", key)  # LoRA has the names that PEFT gives it


def _wrap(model: nn.Module, path: str, adapter_name: str, part: AdapterPart) -> None:
    above, _, name = path.rpartition(".")
    parent = submodule(model, above)
    layer = getattr(parent, name)
    if isinstance(layer, BaseTunerLayer) and not isinstance(layer, HybridLayer):
        raise FrostlineError(f"{path} already carries one of PEFT's own adapters")
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
