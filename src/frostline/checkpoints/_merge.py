"""From the folder of a run to the trained model, or to an ordinary checkpoint that needs no frostline."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import cached_file

from frostline.anatomy import find_anatomy, skeleton
from frostline.checkpoints._delta import CARD_FILE, DeltaCard, load_delta, read_card
from frostline.checkpoints._model_cards import card_of_merged
from frostline.checkpoints._models import (
    OtherShapes,
    class_called,
    load_config,
    load_part,
    load_tokenizer,
    load_weights,
    local_copy,
    quiet_libraries,
)
from frostline.checkpoints._parts import Shards, parts_of
from frostline.checkpoints._resize import resize_embeddings, with_vocabulary
from frostline.core.errors import CheckpointError, ConfigError, UserError
from frostline.core.locks import new_folder
from frostline.core.memory import give_back_free_memory
from frostline.core.places import found_places
from frostline.model_card import card_text, write_readme
from frostline.plan import Plan
from frostline.surgery import to_plain


def load(folder: str | Path, *, base: str | None = None) -> Any:
    """Load the trained model of a run or a checkpoint, in eval mode: its base with the delta.

    `base` is where the base is now, if it has moved. Raises `CheckpointError` when `folder` holds no delta or the base
    is not that of the delta.
    """
    return _load(Path(folder), base).eval()


@dataclass(frozen=True)
class Merged:
    """What `merge` wrote.

    Attributes:
        folder: of the checkpoint.
        dtype: of its tensors.
        changed: how many entries training changed. Counted where `dtype` is not float32; else 0.
        lost: how many of them were rounded to the value that the base has in this dtype.
    """

    folder: Path
    dtype: str
    changed: int = 0
    lost: int = 0


def merge(folder: str | Path, out: str | Path, *, base: str | None = None, dtype: str | None = None) -> Merged:
    """Write the trained model of a run as an ordinary checkpoint, which transformers loads without frostline.

    The model is made part by part, so that only one part is in memory, and a large one is written in several shards.
    PEFT merges LoRA, in float32; every other tensor is bit for bit the trained one. By default nothing is rounded:
    where trained tensors (float32) and frozen ones differ in dtype, all are written in float32. `dtype` rounds each
    tensor once, and the result says how much of the training is lost by it.

    The tokenizer of the run, or of the base, is written too, and a model card. A layered loss changes nothing here: it
    changes how a model trains, not what it computes.

    Args:
        folder: of the run or checkpoint.
        out: a new or empty folder.
        base: where the base is now, if it has moved.
        dtype: "float32", "bfloat16" or "float16", to which all tensors are rounded.

    Raises `CheckpointError` when `out` is not empty, when an ordinary model would compute something else than the
    plan's, when a value is too large for `dtype`, and as `load` does; `ConfigError` for an unknown dtype.
    """
    chosen = _dtype(dtype) if dtype else None
    out, folder = Path(out), Path(folder)
    card = read_card(folder)
    if (reason := Plan.read(card.plan, str(folder / CARD_FILE)).forward.why_not_plain) is not None:
        raise CheckpointError(
            f"{folder}: {reason}, which an ordinary model cannot do: use frostline.load, which loads it without merging"
        )
    anatomy = find_anatomy(skeleton(load_config(str(folder)), class_called(card.model_class)))
    changed = lost = 0
    with new_folder(out) as staging, quiet_libraries():
        shards = Shards(staging)
        whole = card.base_rows is not None  # new rows of embeddings are made in a whole model
        parts = [frozenset[str]()] if whole else list(parts_of(anatomy))
        for part in parts:
            if part is not parts[0]:
                give_back_free_memory()  # of the part before
            before: dict[str, torch.Tensor] | None = None if chosen in (None, torch.float32) else {}
            model = to_plain(_load(folder, base, part if len(parts) > 1 else None, before))
            if chosen is not None:
                moved, same = _count_lost(before or {}, model, chosen)
                changed, lost = changed + moved, lost + same
                model = model.to(chosen)
            written = str(model.dtype).removeprefix("torch.")
            shards.add(model)
            del model
        shards.finish()
        bases = [base] if base else _bases(card, folder)
        _copy_tokenizer(folder, bases, staging)
        write_readme(staging, card_text(card_of_merged(folder, out, staging, card, bases, dtype)))
    return Merged(out, written, changed, lost)


def _in_memory(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters that are not on the meta device, by name."""
    return ((name, p.detach()) for name, p in model.named_parameters() if not p.is_meta and p.is_floating_point())


def _count_lost(before: Mapping[str, torch.Tensor], model: Any, dtype: torch.dtype) -> tuple[int, int]:
    """How many entries of the tensors in `before` training changed, and how many of these `dtype` rounds to the base's.

    Raises `CheckpointError` when a value is too large for `dtype`.
    """
    changed = lost = 0
    for name, trained in _in_memory(model):
        largest = trained.abs().max().item() if trained.numel() else 0.0
        if torch.finfo(dtype).max < largest < float("inf"):
            raise CheckpointError(f"{name} has values up to {largest:.3g}, too large for {dtype}: use another dtype")
        if name in before and before[name].shape == trained.shape:
            moved = before[name].to(trained.dtype) != trained
            changed += int(moved.sum())
            lost += int((moved & (before[name].to(dtype) == trained.to(dtype))).sum())
    return changed, lost


def _load(
    folder: Path,
    base: str | None,
    part: frozenset[str] | None = None,
    before: dict[str, torch.Tensor] | None = None,
) -> Any:
    """The trained model.

    The base is looked for where it was, from anywhere, and then where it was as seen from the delta. The first that has
    the tensors of the delta's base counts.

    Args:
        folder: of the delta.
        base: where the base is now, if it has moved.
        part: only these tensors are in memory, and the others on the meta device.
        before: gets the base's tensors that are in memory.
    """
    card = read_card(folder)
    names = [base] if base else _bases(card, folder)
    if not names:
        raise CheckpointError(f"{folder} was trained on a model made in memory: save that model and use base=...")
    failed: CheckpointError | None = None
    for name in names:
        try:
            model = _load_base(name, card, folder, part)
        except OtherShapes:
            failed = CheckpointError(
                f"{name} is not the base of {folder} ({card.base_name or 'made in memory'}): its tensors have other "
                "shapes: use the model that the run was trained on"
            )
            continue
        except UserError as error:
            if base:
                raise
            failed = failed or CheckpointError(
                f"the base of {folder}: {error}; if it has moved, use base to say where it is"
            )
            continue
        if before is not None:
            before.clear()
            before.update((name, values.clone()) for name, values in _in_memory(model))
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


def _dtype(name: str) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ConfigError(f"unknown dtype '{name}': use one of {', '.join(known)}")
    return known[name]


_PIECES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
"""A vocabulary as SentencePiece writes it. transformers does not save it, and llama.cpp's converter prefers it."""


def _copy_tokenizer(run: Path, bases: Sequence[str], out: Path) -> None:
    """Write the tokenizer of the run, or else of its base."""
    found = {}
    for place in (str(run), *bases[:1]):
        with suppress(UserError):
            found[place] = load_tokenizer(place)
    if not found:
        return
    next(iter(found.values())).save_pretrained(out)
    if {*bases[:1]} & found.keys() and len({frozenset(each.get_vocab().items()) for each in found.values()}) == 1:
        for name in _PIECES:
            with suppress(OSError):
                shutil.copyfile(cached_file(local_copy(bases[0]), name), out / name)
