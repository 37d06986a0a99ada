"""From a run's folder back to a model: the trained one, or an ordinary checkpoint without frostline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from frostline.core.errors import UserError
from frostline.core.files import atomic_folder
from frostline.engine._apply import to_plain
from frostline.engine._delta import DeltaCard, load_delta, read_card
from frostline.engine._models import class_called, load_config, load_tokenizer, load_weights, quiet_libraries


def load(folder: str | Path, *, base: str | None = None) -> Any:
    """The trained model of a run (or checkpoint), in eval mode: its base, with the delta put in.

    `base` is where the base lies now, if it has moved. Raises `UserError` when `folder` holds no delta or the
    base is not the delta's own.
    """
    folder = Path(folder)
    card = read_card(folder)
    name = base or card.base_name
    if not name:
        raise UserError(f"{folder} was trained on a model made in memory: give base=..., where it is saved")
    config = load_config(str(folder))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(card.seed)  # a new head that the plan froze is drawn as for the run
        model = _load_base(name, card, config, folder, moved=base is None)
    load_delta(model, folder)
    return model.eval()


def merge(folder: str | Path, out: str | Path, *, base: str | None = None, dtype: str | None = None) -> Path:
    """Write the trained model of a run as an ordinary checkpoint that transformers alone loads.

    LoRA is merged as PEFT merges it; every other tensor is bit-equal to the trained one. Where trained
    (float32) and frozen tensors differ in dtype all are written in float32, which rounds nothing; `dtype`
    ("bfloat16", "float16", "float32") rounds to another. The run's tokenizer goes along, or else the base's.
    Raises `UserError` when `out` exists and is not empty, and as `load` does.
    """
    out, chosen = Path(out), _dtype(dtype) if dtype else None
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty: give a new folder")
    model = to_plain(load(folder, base=base))
    model = model.to(chosen or _common_dtype(model))
    with atomic_folder(out) as staging, quiet_libraries():
        model.save_pretrained(staging)
        _copy_tokenizer(Path(folder), str(base or read_card(Path(folder)).base_name), staging)
    return out


def _load_base(name: str, card: DeltaCard, config: Any, folder: Path, *, moved: bool) -> Any:
    try:
        return load_weights(name, class_called(card.model_class), config, dtype=card.base_dtype)
    except UserError as error:
        if moved:
            raise UserError(f"the base of {folder}: {error}; if it has moved, give its place as base") from None
        raise


def _common_dtype(model: Any) -> torch.dtype:
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def _dtype(name: str) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise UserError(f"unknown dtype '{name}': give one of {', '.join(known)}")
    return known[name]


def _copy_tokenizer(run: Path, base: str, out: Path) -> None:
    for place in (str(run), base):
        try:
            load_tokenizer(place).save_pretrained(out)
        except UserError:
            continue
        return
