"""Measure a model's blocks on a task."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import transformers

from frostline.anatomy import Anatomy, find_anatomy, skeleton, tensor_hash, tensor_hashes
from frostline.bottom import CannotCut, Load, Streaming
from frostline.checkpoints import load_above, load_tokenizer, quiet_libraries
from frostline.core.errors import UnsupportedModel
from frostline.run._device import device
from frostline.run._setup import PROBLEMS, check_length, class_for, config_for, load_model, task_for
from frostline.signals import (
    FIVE_STEPS,
    Probe,
    Tokens,
    WarmUp,
    cached,
    choose_signals,
    measure,
    probe_identity,
    token_text,
)
from frostline.tasks import Collator, Task, TaskKind, TaskOptions, encode, model_kind, prepare_tokenizer


def probe_model(
    model: str,
    task: str,
    *,
    rows: int = 256,
    signals: Sequence[str] | None = None,
    tokens: Tokens | None = None,
    max_length: int = 128,
    seed: int = 42,
    dtype: str = "auto",
    streaming: bool = False,
    warm_up: WarmUp = FIVE_STEPS,
) -> Probe:
    """Signals of every block of the model at `model`, on training rows of `task`; from the cache where they are known.

    `rows` of them are drawn by `seed`, which also draws a head that the checkpoint lacks. By default the signals are
    `vds` (where the model has it), `shift` and `similarity`, and the token read is the one that predicts the first
    labelled one (in plain text and chats: every one). `dtype` is what the model computes in, by default the
    checkpoint's, or float32 where this machine imitates that; with `streaming` one block at a time is in memory.
    `warm_up` is what `weight_change` is measured after. Raises `UserError` for bad input and for a signal that the
    model does not have.
    """
    found = task_for(model, task, TaskOptions(max_train_rows=rows, seed=seed))
    config = config_for(model, found)
    check_length(max_length, config, model)
    tokenizer = prepare_tokenizer(load_tokenizer(model))
    encoded = encode(found, "train", tokenizer, max_length, model_kind(config))
    encoded.check_ids(tokenizer, config)
    sample = encoded.rows
    bare = skeleton(config, class_for(config, found.kind))
    anatomy = find_anatomy(bare)
    chosen = choose_signals(bare, anatomy, sample, signals, streaming=streaming)  # refuses before weights are read
    loaded = load_streamed(model, found, anatomy, seed, dtype) if streaming else _whole(model, found, seed, dtype)
    prepare_tokenizer(tokenizer, loaded.model)
    return measure_loaded(loaded, (model, found), sample, tokenizer, chosen, tokens=tokens, warm_up=warm_up)


def measure_loaded(
    loaded: LoadedModel,
    named: tuple[str, Task],
    sample: Sequence[Any],
    tokenizer: Any,
    signals: Sequence[str],
    *,
    tokens: Tokens | None = None,
    warm_up: WarmUp = FIVE_STEPS,
) -> Probe:
    """Signals of a loaded model on encoded rows of the task, from the cache where they are known."""
    model, task = named
    reading: Tokens = tokens or ("all" if task.kind is TaskKind.LANGUAGE else "first")

    def probe() -> Probe:
        begun = time.perf_counter()
        with quiet_libraries():
            measured = measure(
                loaded.model,
                sample,
                Collator(tokenizer),
                signals=signals,
                tokens=reading,
                load=loaded.load,
                warm_up=warm_up,
            )
        read = token_text(find_anatomy(loaded.model), classes=task.kind in PROBLEMS, tokens=reading)
        return Probe(model, task.name, len(sample), read, measured, time.perf_counter() - begun)

    kind = device().type
    identity = probe_identity(
        loaded.model, loaded.hashes, sample, signals=signals, tokens=reading, device=kind, warm_up=warm_up
    )
    return cached(identity, (model, task.name), probe)


@dataclass(frozen=True)
class LoadedModel:
    """A model on the device, with what reads the blocks that are not in memory, and the hashes of all tensors."""

    model: Any
    hashes: dict[str, str]
    load: Load | None = None


def _whole(name: str, task: Task, seed: int, dtype: str) -> LoadedModel:
    model = load_model(name, task, seed=seed, dtype=dtype)
    return LoadedModel(model.to(device()), tensor_hashes(model))


def load_streamed(name: str, task: Task, anatomy: Anatomy, seed: int, dtype: str) -> LoadedModel:
    """The model with only what lies around its blocks in memory. Raises `UserError` when it cannot be read so."""
    config = config_for(name, task)
    depth = len(anatomy.blocks)
    transformers.set_seed(seed)
    try:
        model, load = load_above(name, class_for(config, task.kind), config, depth, dtype)
    except CannotCut as error:
        raise UnsupportedModel(f"streaming: {error}: leave it out") from None
    bottom = Streaming(model, anatomy, load)
    bottom.read_hashes(depth)
    above = {tensor.name: tensor_hash(model.get_parameter(tensor.name)) for tensor in anatomy.head}
    for module in model.modules():
        module._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(device()), recurse=False)
    return LoadedModel(model, bottom.hashes | above, load)
