"""Fill the activation cache of a run without training: no trainer, no process group, any number of processes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from transformers.utils import find_labels, is_torch_tf32_available
from transformers.utils.import_utils import enable_tf32

from frostline.bottom import CacheSession, Streaming, Training
from frostline.checkpoints import quiet_libraries
from frostline.core.errors import ConfigError
from frostline.core.files import private
from frostline.engine import start_bar, streaming
from frostline.loss_positions import pack_rows
from frostline.plan import Schedule
from frostline.run._config import RunConfig
from frostline.run._device import device, uses_bfloat16
from frostline.run._prepare import collator_for, load, read_data
from frostline.run._work import Data
from frostline.surgery import apply
from frostline.tasks import PackingCollator, prepare_tokenizer

_FIXED = "use a fixed plan, such as strategy=bot50, or the plan.yaml of a run"


@dataclass(frozen=True)
class Filled:
    """What filling a cache did.

    Attributes:
        cache: the folder of the cache.
        shard: which rows, as `i/n`.
        rows: how many these are.
        passed: those that were missing, and passed the frozen bottom now.
        all_rows: the rows of the run.
        missing: those of them that are not in the cache yet.
        bytes: the size of `rows` on disk.
        seconds: the time that it took.
    """

    cache: str
    shard: str
    rows: int
    passed: int
    all_rows: int
    missing: int
    bytes: int
    seconds: float


def fill_cache(config: RunConfig, shard: int = 0, shards: int = 1, console: Console | None = None) -> Filled:
    """Let the rows `shard::shards` of a run pass its frozen bottom, and store their states. It does not train.

    Any number of processes, on any machines that share the folder of the caches, may do this at once, with the same or
    other rows. What is there already is not computed again. The run finds what is stored when it trains.

    Args:
        config: of the run. Its strategy has a fixed plan.
        shard: the first of the rows, from 0.
        shards: every so many-th row from there on.
        console: where progress is shown; None: nowhere.

    Raises `UserError` for a config whose training would not read the cache, a shard that is none, and where there is
    no room for all rows.
    """
    begun = time.perf_counter()
    if not 0 <= shard < shards:
        raise ConfigError(f"shard: {shard}/{shards} is none of {shards} shards: use i/n with i from 0 to n - 1")
    with private(), quiet_libraries(), start_bar(console) as bar:
        bar.stage("reading the data and the model")
        session = filling_session(config)
        session.stage, session.progress = bar.stage, bar.rows
        report = session.fill(shard, shards)
        every = session.rows
    return Filled(
        cache=str(session.cache.folder),
        shard=f"{shard}/{shards}",
        rows=report.rows + report.found,
        passed=report.rows,
        all_rows=len(every),
        missing=len(session.cache.missing(every)),
        bytes=report.bytes,
        seconds=time.perf_counter() - begun,
    )


def filling_session(config: RunConfig) -> CacheSession:
    """What fills the cache of a run. Raises `UserError` as `fill_cache` does."""
    _check(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.training.get("tf32") is not None and is_torch_tf32_available():
        enable_tf32(config.training["tf32"])
    data = read_data(config)
    training, bottom = _training(config, data)
    return CacheSession(lambda: training, "on", limit=config.activation_cache_bytes, streaming=bottom)


def _check(config: RunConfig) -> None:
    if config.strategy == "auto":
        raise ConfigError(f"strategy: auto chooses its plan by trials while it trains: {_FIXED}")
    if config.activation_cache == "off":
        raise ConfigError("activation_cache: off, so training would not read the cache: use auto or on")
    if config.frozen_bits:
        raise ConfigError(
            "frozen_bits: quantized blocks run in every step, so training would not read the cache: leave it out"
        )


def _check_schedule(config: RunConfig, schedule: Schedule, split: Any) -> None:
    if not schedule.settled or split is not None:
        why = "splits its training" if split is not None else "changes its plan while it trains"
        raise ConfigError(f"strategy: {config.strategy} {why}: {_FIXED}")


def _training(config: RunConfig, data: Data) -> tuple[Training, Streaming | None]:
    """What the run's trainer would tell its session, made without a trainer; and the bottom that is read by name."""
    model, chosen, load_bottom = load(config, data, None, lambda: 1)  # a plan that depends on the steps is refused
    _check_schedule(config, chosen.schedule, chosen.split)
    config = chosen.config
    prepare_tokenizer(data.tokenizer, model)
    applied = apply(chosen.schedule.first, model, seed=config.seed)
    for tensor in (*model.parameters(), *model.buffers()):
        if not tensor.is_meta:
            tensor.data = tensor.data.to(device())
    if config.packing:
        pack_rows(model, data.rows, PackingCollator())
    every_pass = next((name for name in ("neftune_noise_alpha", "torch_compile") if config.training.get(name)), None)
    training = Training(
        model=model,
        plan=applied.plan,
        anatomy=applied.anatomy,
        datasets=[data.rows, data.eval_rows] if config.eval_steps or config.streaming else [data.rows],
        collate=collator_for(config, data),
        device=device(),
        batch_size=config.per_device_train_batch_size,
        autocast=torch.bfloat16 if uses_bfloat16(config.bf16) else None,
        trained=applied.lr_scales,
        refusal=f"training.{every_pass} acts on the whole model in every pass" if every_pass else None,
        label_names=find_labels(type(model)),
    )
    return training, streaming(model, applied, load_bottom)
