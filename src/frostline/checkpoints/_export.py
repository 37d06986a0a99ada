"""From a run, or a model in memory, to an ordinary LoRA folder: PEFT, vLLM and llama.cpp read it without frostline."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from peft import LoraConfig, PeftModel, TaskType, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from frostline.adapters import (
    HybridConfig,
    HybridModel,
    OneRank,
    as_pefts,
    lora_updates,
    of_one_rank,
    transposed,
)
from frostline.anatomy import Anatomy, find_anatomy, skeleton
from frostline.checkpoints._delta import CARD_FILE, TENSORS_FILE, read_card, trained_tensors
from frostline.checkpoints._lora_only import ONLY, check_lora_blocks, check_lora_only
from frostline.checkpoints._model_cards import card_of_lora
from frostline.checkpoints._models import class_called, load_config, load_tokenizer, quiet_libraries
from frostline.checkpoints._tensors import read_tensors
from frostline.core.errors import PlanError, UserError
from frostline.core.locks import new_folder
from frostline.core.shown import one_line
from frostline.model_card import card_text, write_readme
from frostline.plan import BlockMode, Plan
from frostline.surgery import applied_to

_PEFT_PREFIX = "base_model.model."
_NAMED = ".default.weight"
"""How the name of a parameter of PEFT's ends in a model; its file leaves the adapter's name out."""


@dataclass(frozen=True)
class Exported:
    """What `export_lora` wrote.

    Attributes:
        folder: where it is.
        r: the rank, of all matrices.
        alpha: of all matrices.
        modules: the paths of the matrices that have LoRA.
    """

    folder: Path
    r: int
    alpha: float
    modules: tuple[str, ...]


@dataclass(frozen=True)
class _Learned:
    """What LoRA has learned on a base.

    Attributes:
        where: it comes from, for messages.
        modes: one for each block.
        anatomy: of the base.
        tensors: `PATH.lora_A.weight` and `PATH.lora_B.weight` of each matrix.
        base: its name; empty for a model that was made in memory.
        dtype: of the base.
        merge: the command or method that gives an ordinary model.
        tokenizer: a folder that may have one.
    """

    where: str
    modes: tuple[BlockMode, ...]
    anatomy: Anatomy
    tensors: Mapping[str, Tensor]
    base: str
    dtype: str
    merge: str = "frostline merge"
    tokenizer: Path | None = None


def export_lora(source: Any, out: str | Path) -> Exported:
    """Write LoRA that was trained on any blocks of a model as an ordinary LoRA folder of PEFT.

    Every matrix gets the same rank and scale, because vLLM and llama.cpp read only one: ranks are padded with zeros,
    and where scales differ they go into B. So the folder computes what the model computes, up to rounding. The weights
    of the base are not needed.

    Args:
        source: the folder of a run or checkpoint; or a model that has a plan; or a PEFT model whose active adapter is
            a `HybridConfig`.
        out: a new or empty folder.

    Raises `PlanError` when anything but LoRA without a gate trains, and says what to use; `CheckpointError` when `out`
    is not empty, or the run is damaged.
    """
    out = Path(out)
    if isinstance(source, str | Path):
        learned = _of_run(Path(source))
    else:
        learned = _of_peft(source) if isinstance(source, PeftModel) else _of_model(source)
    found = lora_updates(learned.modes, learned.anatomy, learned.tensors, learned.where)
    if odd := sorted(learned.tensors.keys() - {f"{path}.lora_{side}.weight" for path in found for side in "AB"}):
        raise PlanError(f"{learned.where}: {odd[0]} has trained too, {ONLY}: use {learned.merge}")
    if not found:
        raise PlanError(f"{learned.where}: no LoRA has trained yet, so there is nothing to export: train it first")
    lora = of_one_rank(found)
    with new_folder(out) as staging, quiet_libraries():
        tensors = {f"{_PEFT_PREFIX}{name}": tensor for name, tensor in lora.tensors.items()}
        save_file(tensors, staging / "adapter_model.safetensors", metadata={"format": "pt"})
        _config(learned, lora, sorted(found)).save_pretrained(
            staging, auto_mapping_dict=_mapping(learned.anatomy.model_class)
        )
        if learned.tokenizer is not None:
            with suppress(UserError):
                load_tokenizer(str(learned.tokenizer)).save_pretrained(staging)
        model_class, more = learned.anatomy.model_class, _more(learned, lora, out)
        card = card_of_lora(learned.tokenizer, out, staging, learned.base, model_class, learned.dtype, more)
        write_readme(staging, card_text(card))
    return Exported(out, lora.r, lora.alpha, tuple(sorted(found)))


def _of_run(folder: Path) -> _Learned:
    card = read_card(folder)
    plans = [Plan.read(plan, str(folder / CARD_FILE)) for plan in (card.plan, card.first_plan) if plan is not None]
    for plan in plans:
        check_lora_only(plan, str(folder))
    anatomy = find_anatomy(skeleton(load_config(str(folder)), class_called(card.model_class)))
    tensors = _by_path(read_tensors(folder / TENSORS_FILE, "delta file"))
    return _Learned(str(folder), plans[-1].blocks, anatomy, tensors, card.base_name, card.base_dtype, tokenizer=folder)


def _of_model(model: Any) -> _Learned:
    applied = applied_to(model)
    if applied is None or not applied.peft_models:
        raise PlanError(
            "the model has no LoRA of a plan: use a run's folder, a model after frostline.apply, or for an adapter of "
            "PEFT's own its save_pretrained"
        )
    for plan in (applied.plan, applied.first):
        check_lora_only(plan, "the model")
    base = str(getattr(applied.config, "_name_or_path", "") or "")
    tensors = _by_path(trained_tensors(model))
    return _Learned("the model", applied.first.blocks, applied.anatomy, tensors, base, applied.base_dtype)


def _of_peft(model: PeftModel) -> _Learned:
    config, tuner = model.peft_config[model.active_adapter], model.base_model
    if not isinstance(config, HybridConfig) or not isinstance(tuner, HybridModel):
        raise PlanError(
            f"the active adapter '{model.active_adapter}' is one of PEFT's own ({type(config).__name__}): use its "
            "save_pretrained, which writes an ordinary folder"
        )
    modes, merge = config.modes(len(tuner.anatomy.blocks)), "merge_and_unload"
    check_lora_blocks(modes, "the model", merge, "save_pretrained and frostline")
    state = get_peft_model_state_dict(model, adapter_name=model.active_adapter, save_embedding_layers=False)
    tensors = {as_pefts(name.removeprefix(_PEFT_PREFIX)): tensor for name, tensor in state.items()}
    base, dtype = str(getattr(model.config, "_name_or_path", "") or ""), str(tuner.model.dtype).removeprefix("torch.")
    return _Learned("the model", modes, tuner.anatomy, tensors, base, dtype, merge)


def _by_path(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace(_NAMED, ".weight"): tensor for name, tensor in tensors.items()}


def _config(learned: _Learned, lora: OneRank, modules: list[str]) -> LoraConfig:
    config = LoraConfig(
        r=lora.r,
        lora_alpha=int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        lora_dropout=max(getattr(mode, "dropout", 0.0) for mode in learned.modes),  # acts where it is trained on
        target_modules=modules,
        base_model_name_or_path=learned.base or None,
        task_type=_task(learned.anatomy.model_class),
        fan_in_fan_out=transposed(learned.anatomy.blocks[0]),
        inference_mode=True,
    )
    config.target_modules = modules  # PEFT makes a set of them, whose order differs from run to run
    return config


def _task(model_class: str) -> TaskType | None:
    """PEFT's name for what a model does; None where PEFT needs none."""
    if model_class in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return TaskType.CAUSAL_LM
    return TaskType.SEQ_2_SEQ_LM if model_class in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values() else None


def _mapping(model_class: str) -> dict[str, str] | None:
    """What PEFT writes where a config has no task, so that `AutoPeftModel` finds the class."""
    if _task(model_class) is not None:
        return None
    return {"base_model_class": model_class, "parent_library": class_called(model_class).__module__}


def _more(learned: _Learned, lora: OneRank, folder: Path) -> str:
    """How other programs load it."""
    model_class, text = learned.anatomy.model_class, f"Every matrix has rank {lora.r} and alpha {lora.alpha:g}."
    if _task(model_class) is TaskType.CAUSAL_LM and not transposed(learned.anatomy.blocks[0]):
        rank = max(8, 1 << (lora.r - 1).bit_length())  # vLLM takes 8, 16, 32, 64, ...
        base, place = quote(one_line(learned.base or "BASE", 4000)), quote(one_line(str(folder), 4000))
        text += _SERVERS.format(base=base, folder=place, rank=rank)
    return text


_SERVERS = """

With vLLM, where it supports the architecture:
```
vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules tuned={folder}
```
With llama.cpp (its converter needs the folder of the base):
```
python convert_lora_to_gguf.py {folder} --base {base} --outfile lora.gguf
llama-cli -m base.gguf --lora lora.gguf
```"""
