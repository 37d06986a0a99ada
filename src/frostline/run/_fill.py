"""Fill the activation cache of a run without training: no trainer, no process group, any number of processes."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from transformers.utils import find_labels, is_torch_tf32_available
from transformers.utils.import_utils import enable_tf32

from frostline.bottom import CacheSession, Contents, Streaming, Training
from frostline.checkpoints import quiet_libraries
from frostline.core.errors import ConfigError
from frostline.core.files import private
from frostline.engine import StartBar, start_bar, streaming
from frostline.loss_positions import pack_rows
from frostline.plan import Schedule
from frostline.run._config import RunConfig
from frostline.run._device import device, uses_bfloat16
from frostline.run._prepare import collator_for, load, read_data
from frostline.surgery import apply
from frostline.tasks import PackingCollator, prepare_tokenizer

LINE_SECONDS = 30.0
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
        actors: what each actor did, with Ray: `node`, `pid`, `rows`, `seconds`.
    """

    cache: str
    shard: str
    rows: int
    passed: int
    all_rows: int
    missing: int
    bytes: int
    seconds: float
    actors: tuple[dict[str, Any], ...] = ()


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
    with private(), quiet_libraries(), shown(console) as bar:
        bar.stage("reading the data and the model")
        contents = contents_of(config)
        every = contents.rows
        rows = every.some(list(every)[shard::shards])
        contents.levels = f"{shard}/{shards}"
        bar.stage("caching pass")
        passed = contents.fill(rows, bar.rows)
    return Filled(
        cache=str(contents.cache.folder),
        shard=f"{shard}/{shards}",
        rows=len(rows),
        passed=passed,
        all_rows=len(every),
        missing=len(contents.cache.missing(every)),
        bytes=sum(contents.row_bytes[key] for key in rows),
        seconds=time.perf_counter() - begun,
    )


def contents_of(config: RunConfig) -> Contents:
    """What a run would read from its cache. Raises `UserError` as `fill_cache` does."""
    training, bottom = training_of(config)
    session = CacheSession(lambda: training, "on", limit=config.activation_cache_bytes, streaming=bottom)
    return session.to_fill()


class _Lines:
    """Shows in a log what a bar shows in a terminal, a line at a time."""

    def __init__(self, console: Console) -> None:
        self._console, self._since = console, time.monotonic()

    def stage(self, what: str) -> None:
        """Nothing: the stages before the pass are short."""

    def rows(self, done: int, total: int) -> None:
        """Say how many rows are done, now and then."""
        if time.monotonic() - self._since > LINE_SECONDS:
            self._since = time.monotonic()
            self._console.print(f"caching pass: {done:,}/{total:,} rows")


def shown(console: Console | None) -> AbstractContextManager[StartBar | _Lines]:
    """Shows the progress of a pass: a bar in a terminal, lines in a log, nothing without a console."""
    return start_bar(console) if console is None or console.is_terminal else nullcontext(_Lines(console))


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


def training_of(config: RunConfig) -> tuple[Training, Streaming | None]:
    """What the run's trainer would tell its session, made without a trainer; and the bottom that is read by name.

    Raises `UserError` as `fill_cache` does, but for what rows show.
    """
    _check(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.training.get("tf32") is not None and is_torch_tf32_available():
        enable_tf32(config.training["tf32"])
    data = read_data(config)
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
    collate: Any = collator_for(config, data)
    training = Training(
        model=model,
        plan=applied.plan,
        anatomy=applied.anatomy,
        datasets=[data.rows, data.eval_rows] if config.eval_steps or config.streaming else [data.rows],
        collate=collate,
        device=device(),
        batch_size=config.per_device_train_batch_size,
        autocast=torch.bfloat16 if uses_bfloat16(config.bf16) else None,
        trained=applied.lr_scales,
        refusal=f"training.{every_pass} acts on the whole model in every pass" if every_pass else None,
        label_names=find_labels(type(model)),
    )
    return training, streaming(model, applied, load_bottom)
