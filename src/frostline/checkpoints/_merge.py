"""From the folder of a run to the trained model, or to an ordinary checkpoint that needs no frostline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from frostline.anatomy import find_anatomy, skeleton
from frostline.checkpoints._delta import CARD_FILE, DeltaCard, load_delta, read_card
from frostline.checkpoints._models import (
    class_called,
    load_config,
    load_part,
    load_tokenizer,
    load_weights,
    quiet_libraries,
)
from frostline.checkpoints._parts import Shards, parts_of
from frostline.checkpoints._resize import resize_embeddings, with_vocabulary
from frostline.core.errors import CheckpointError, ConfigError, UserError
from frostline.core.files import atomic_folder
from frostline.core.memory import give_back_free_memory
from frostline.core.places import found_places
from frostline.plan import Plan
from frostline.surgery import to_plain


def load(folder: str | Path, *, base: str | None = None) -> Any:
    """Load the trained model of a run or a checkpoint, in eval mode: its base with the delta.

    `base` is where the base is now, if it has moved. Raises `CheckpointError` when `folder` holds no delta or the base
    is not that of the delta.
    """
    return _load(Path(folder), base).eval()


def merge(folder: str | Path, out: str | Path, *, base: str | None = None, dtype: str | None = None) -> Path:
    """Write the trained model of a run as an ordinary checkpoint, which transformers loads without frostline.

    The model is made part by part, so that only one part is in memory, and a large one is written in several shards.
    LoRA is merged by PEFT; every other tensor is bit for bit the trained one. Where trained tensors (float32) and
    frozen ones differ in dtype, all are written in float32, so nothing is rounded. The tokenizer of the run, or of the
    base, is written too. A layered loss changes nothing here: it changes how a model trains, not what it computes.

    Args:
        folder: of the run or checkpoint.
        out: a new or empty folder.
        base: where the base is now, if it has moved.
        dtype: "float32", "bfloat16" or "float16", to which all tensors are rounded.

    Raises `CheckpointError` when `out` is not empty, when the plan has a residual interaction, and as `load` does;
    `ConfigError` for an unknown dtype.
    """
    out, chosen = Path(out), _dtype(dtype) if dtype else None
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} exists and is not empty: use a new folder")
    folder = Path(folder)
    card = read_card(folder)
    if Plan.read(card.plan, str(folder / CARD_FILE)).forward.interacts:
        raise CheckpointError(
            f"{folder}: its blocks add earlier states (forward.residual), which an ordinary model cannot do: use "
            "frostline.load, which loads it without merging"
        )
    anatomy = find_anatomy(skeleton(load_config(str(folder)), class_called(card.model_class)))
    with atomic_folder(out) as staging, quiet_libraries():
        shards = Shards(staging)
        whole = card.base_rows is not None  # new rows of embeddings are made in a whole model
        parts = [frozenset[str]()] if whole else list(parts_of(anatomy))
        for part in parts:
            if part is not parts[0]:
                give_back_free_memory()  # of the part before
            model = to_plain(_load(folder, base, part if len(parts) > 1 else None))
            shards.add(model.to(chosen or _common_dtype(model)))
            del model
        shards.finish()
        _copy_tokenizer([str(folder), *([base] if base else _bases(card, folder))], staging)
    return out


def _load(folder: Path, base: str | None, part: frozenset[str] | None = None) -> Any:
    """The trained model. With `part`, only these tensors are in memory, and the others on the meta device.

    The base is looked for where it was, from anywhere, and then where it was as seen from the delta. The first that has
    the tensors of the delta's base counts.
    """
    card = read_card(folder)
    names = [base] if base else _bases(card, folder)
    if not names:
        raise CheckpointError(f"{folder} was trained on a model made in memory: save that model and use base=...")
    failed: CheckpointError | None = None
    for name in names:
        try:
            model = _load_base(name, card, folder, part)
        except UserError as error:
            if base:
                raise
            failed = failed or CheckpointError(
                f"the base of {folder}: {error}; if it has moved, use base to say where it is"
            )
            continue
        try:
            load_delta(model, folder)
        except CheckpointError as error:
            failed = error
            continue
        return model
    raise failed or AssertionError


def _bases(card: DeltaCard, folder: Path) -> list[str]:
    """Where the base may be now, best first."""
    return found_places(card.base_places, folder) or [name for name in (card.base_name,) if name]


def _load_base(name: str, card: DeltaCard, folder: Path, part: frozenset[str] | None) -> Any:
    config, model_class = load_config(str(folder)), class_called(card.model_class)
    with torch.random.fork_rng(devices=[]):
        # A new head that the plan froze gets the same random values as in the run.
        torch.default_generator.manual_seed(card.seed)
        if card.base_rows is not None:
            model = load_weights(name, model_class, with_vocabulary(config, card.base_rows), card.base_dtype)
            resize_embeddings(model, config.get_text_config().vocab_size, drawn=False)
            model.config.pad_token_id = config.pad_token_id
            return model
        if part is None:
            return load_weights(name, model_class, config, card.base_dtype)
        return load_part(name, model_class, config, part, card.base_dtype)


def _common_dtype(model: Any) -> torch.dtype:
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def _dtype(name: str) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ConfigError(f"unknown dtype '{name}': use one of {', '.join(known)}")
    return known[name]


def _copy_tokenizer(places: Sequence[str], out: Path) -> None:
    for place in places:
        try:
            load_tokenizer(place).save_pretrained(out)
        except UserError:
            continue
        return
