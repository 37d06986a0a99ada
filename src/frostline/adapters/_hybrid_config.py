"""The config of the PEFT method `HYBRID`: a mode for each block."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from peft import LoraConfig, PeftConfig
from pydantic import TypeAdapter, ValidationError

from frostline.adapters._folder import note_import
from frostline.adapters._kinds import kind_of
from frostline.core.errors import PlanError
from frostline.core.settings import first_error
from frostline.plan import BlockMode, Frozen, Plan, block_ranges, named_blocks

_MODES: TypeAdapter[BlockMode] = TypeAdapter(BlockMode)
_ENTRIES = 'use a list with a mode for each block or range, such as [{"index": "0-5", "mode": "lora"}]'


class HybridType(enum.StrEnum):
    """The method's name, in the form of `peft.PeftType`: a string that also has `.value`."""

    HYBRID = "HYBRID"

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self.name}"  # as PeftType: `get_model_status` takes what follows the point


@dataclass
class HybridConfig(PeftConfig):
    """A mode for every block, written as in a plan's `blocks`: `frozen`, `lora`, `prefix`, `adapter`.

    >>> HybridConfig(blocks=[{"index": "0-23", "mode": "lora", "targets": "down", "gate": True}, ...])

    Blocks are numbered from the input. A block that is not named stays frozen. `HybridConfig.of(plan)` makes the
    config of a plan.

    Attributes:
        blocks: the modes.
        modules_to_save: names of modules that train whole, such as a task head.
        init_weights: False draws every first value at random, so that the adapter changes the outputs at once. It is
            for tests, as in PEFT's configs.
        base: the model that the adapter was made for. It is written when an adapter is saved, and checked when it is
            loaded.
    """

    blocks: list[Any] = field(default_factory=list, metadata={"help": "A mode for each block, as in a plan."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules that train whole."})
    init_weights: bool = field(default=True, metadata={"help": "False: first values that change the outputs."})
    base: dict[str, Any] | None = field(default=None, metadata={"help": "The base model: type, depth, width, values."})

    target_modules: ClassVar[set[str] | None] = None
    """What PEFT's tools read. In use, the paths of the modules that carry the adapter; it cannot be given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = HybridType.HYBRID
        self._lora: LoraConfig | None = None
        if not isinstance(self.blocks, list | tuple) or not all(isinstance(entry, dict | str) for entry in self.blocks):
            raise PlanError(f"HybridConfig: blocks: {self.blocks!r:.60} is not a list of modes: {_ENTRIES}")
        names = self.modules_to_save
        if names is not None and not (
            isinstance(names, list | tuple | set) and all(isinstance(one, str) for one in names)
        ):
            raise PlanError(f"HybridConfig: modules_to_save: {names!r:.60}: use a list of names of modules")
        if not isinstance(self.init_weights, bool):
            raise PlanError(f"HybridConfig: init_weights: {self.init_weights!r:.60}: use true or false")

    def as_lora(self, config: LoraConfig | None) -> None:
        """Note PEFT's own config that does the same; None where there is none."""
        self._lora = config

    @property
    def is_lora(self) -> bool:
        """Whether PEFT's own LoRA does the same, so that folders are ordinary LoRA folders."""
        return self._lora is not None

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

    def in_use(self, base: dict[str, Any], modules: Sequence[str]) -> None:
        """Note the base model and the modules of the adapter that this config has made."""
        self._base = base
        self.target_modules = set(modules)  # type: ignore[misc]  # each config has its own

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = super().to_dict()
        return found | {"base": getattr(self, "_base", self.base)}

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
