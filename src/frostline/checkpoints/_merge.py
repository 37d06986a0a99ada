"""From a run's folder back to a model: the trained one, or an ordinary checkpoint without frostline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from frostline.anatomy import find_anatomy, skeleton
from frostline.checkpoints._delta import CARD_FILE, load_delta, read_card
from frostline.checkpoints._models import (
    class_called,
    load_config,
    load_part,
    load_tokenizer,
    load_weights,
    quiet_libraries,
)
from frostline.checkpoints._parts import Shards, parts_of
from frostline.core.errors import CheckpointError, ConfigError, UserError
from frostline.core.files import atomic_folder
from frostline.core.memory import give_back_free_memory
from frostline.plan import Plan
from frostline.surgery import to_plain


def load(folder: str | Path, *, base: str | None = None) -> Any:
    """The trained model of a run (or checkpoint), in eval mode: its base, with the delta put in.

    `base` is where the base lies now, if it has moved. Raises `UserError` when `folder` holds no delta or the
    base is not the delta's own.
    """
    return _load(Path(folder), base).eval()


def merge(folder: str | Path, out: str | Path, *, base: str | None = None, dtype: str | None = None) -> Path:
    """Write the trained model of a run as an ordinary checkpoint that transformers alone loads.

    It is made part by part, and a large one written in several shards: no more than one part is in memory.
    LoRA is merged as PEFT merges it; every other tensor is bit-equal to the trained one. Where trained
    (float32) and frozen tensors differ in dtype all are written in float32, which rounds nothing; `dtype`
    ("bfloat16", "float16", "float32") rounds to another. The run's tokenizer goes along, or else the base's.
    Raises `UserError` when `out` exists and is not empty, when the plan's residual interaction is on, and as `load`
    does. A layered loss leaves no trace: it changes how a model trains, not what it computes.
    """
    out, chosen = Path(out), _dtype(dtype) if dtype else None
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} exists and is not empty: give a new folder")
    folder = Path(folder)
    card = read_card(folder)
    if Plan.read(card.plan, str(folder / CARD_FILE)).forward.interacts:
        raise CheckpointError(
            f"{folder}: its model adds earlier states to its blocks' (forward.residual), which no ordinary checkpoint "
            "can say: load it with frostline.load instead of merging it"
        )
    anatomy = find_anatomy(skeleton(load_config(str(folder)), class_called(card.model_class)))
    with atomic_folder(out) as staging, quiet_libraries():
        shards = Shards(staging)
        parts = list(parts_of(anatomy))
        for part in parts:
            if part is not parts[0]:
                give_back_free_memory()  # of the part before
            model = to_plain(_load(folder, base, part if len(parts) > 1 else None))
            shards.add(model.to(chosen or _common_dtype(model)))
            del model
        shards.finish()
        _copy_tokenizer(folder, str(base or card.base_name), staging)
    return out


def _load(folder: Path, base: str | None, part: frozenset[str] | None = None) -> Any:
    """The trained model, or with only the tensors of one `part` in memory, the others on the meta device."""
    card = read_card(folder)
    name = base or card.base_name
    if not name:
        raise CheckpointError(f"{folder} was trained on a model made in memory: give base=..., where it is saved")
    config, model_class = load_config(str(folder)), class_called(card.model_class)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(card.seed)  # a new head that the plan froze is drawn as for the run
        try:
            if part is None:
                model = load_weights(name, model_class, config, card.base_dtype)
            else:
                model = load_part(name, model_class, config, part, card.base_dtype)
        except UserError as error:
            if base is None:
                raise CheckpointError(
                    f"the base of {folder}: {error}; if it has moved, give its place as base"
                ) from None
            raise
    load_delta(model, folder)
    return model


def _common_dtype(model: Any) -> torch.dtype:
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def _dtype(name: str) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ConfigError(f"unknown dtype '{name}': give one of {', '.join(known)}")
    return known[name]


def _copy_tokenizer(run: Path, base: str, out: Path) -> None:
    for place in (str(run), base):
        try:
            load_tokenizer(place).save_pretrained(out)
        except UserError:
            continue
        return
