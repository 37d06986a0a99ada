"""The folder of a run: who works in it, and what a new or a resumed run may find there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from frostline.core.errors import CheckpointError, ConfigError
from frostline.core.locks import own_folder
from frostline.processes import Processes, running
from frostline.records import RECORD_FILE, RunRecord, read_record
from frostline.run._config import RunConfig
from frostline.run._device import uses_bfloat16
from frostline.run._trials import TRIALS_FILE, read_trials
from frostline.run._work import devices_of, shares_model

_BATCHES = ("per_device_train_batch_size", "gradient_accumulation_steps")


@contextmanager
def own_folder_of_all(folder: Path, group: Processes) -> Iterator[None]:
    """The lock of a run's folder. Of several processes that train together, the first keeps it for all."""
    with ExitStack() as held:
        with group.together():
            if group.first:
                held.enter_context(own_folder(folder))
        yield


def check_several(config: RunConfig, group: Processes) -> None:
    """Raises `ConfigError` for what a single process alone can do."""
    if group.count == 1:
        return
    refused = {
        "streaming": (config.streaming, "use streaming=false"),
        "optimizer_in_backward": (config.optimizer_in_backward, "use optimizer_in_backward=false"),
        "optim=flora": (config.optim == "flora", "use another optim"),
        "strategy=splitlora": (config.strategy == "splitlora", "it starts its own processes"),
    }
    for name, (asked, instead) in refused.items():
        if asked:
            raise ConfigError(
                f"{name}: it works in one process, but the launcher started {group.count}: {instead}, or start one "
                "process"
            )
    if not shares_model(config):
        return
    if config.calibrate:
        raise ConfigError("calibrate: it times whole blocks, and fsdp gathers them in each step: use calibrate=false")
    if config.frozen_bits is not None:
        raise ConfigError("frozen_bits: quantized weights cannot be divided: leave it out, or fsdp")
    if isinstance(config.budget.memory, str):
        raise ConfigError(
            "budget.memory: with fsdp a size cannot be kept, because each process holds the whole model before the "
            "first step: use a share of full fine-tuning (budget.memory=0.5)"
        )


def checkpoint_to_resume(folder: Path, config: RunConfig, resume: bool) -> str | None:
    """The checkpoint to resume from. Raises `CheckpointError` when the folder holds another run."""
    if not (folder / RECORD_FILE).is_file():
        _check_trials(folder, config, resume)
        return None
    record = read_record(folder)
    if not resume:
        goes_on = "" if record.status == "finished" else f", or {how_to_go_on(folder)}"
        raise CheckpointError(f"{folder} already holds a {record.status} run: use another out{goes_on}")
    if record.status == "finished":
        raise CheckpointError(
            f"the run in {folder} is finished, so there is nothing to resume: use another out for a new run"
        )
    moved = _check_steps(folder, record, config)
    _check_same(folder, record.config, config, lambda path: record.found(path, folder), moved)
    last: str | None = get_last_checkpoint(str(folder))
    return last


def how_to_go_on(folder: Path) -> str:
    """What to do about the run in `folder`, which was not finished."""
    if not (folder / RECORD_FILE).is_file():
        tried = (folder / TRIALS_FILE).is_file()
        return "--resume to continue its trials" if tried else "the same command again: nothing was saved yet"
    last = get_last_checkpoint(str(folder))
    return f"--resume to {f'continue from {Path(last).name}' if last else 'start it again: it saved no checkpoint'}"


def _check_trials(folder: Path, config: RunConfig, resume: bool) -> None:
    """Check a folder without a record: it may hold trials of a run that was stopped before it began."""
    trials = folder / TRIALS_FILE
    if not trials.is_file():
        if resume:
            raise CheckpointError(f"{folder} holds no run to resume: leave --resume out, or use the out of that run")
        return
    if not resume:
        raise CheckpointError(
            f"{folder} holds trials of a run that was stopped: use another out, or --resume to continue that run"
        )
    found = read_trials(trials)
    count = found.get("processes", 1)
    if count != running().count:
        raise CheckpointError(
            f"cannot resume {folder} in {running().count} processes: its trials were made by {count}, whose steps have "
            "other rows: use as many processes"
        )
    _check_same(folder, found.get("asked", {}), config, lambda path: path)


def _check_steps(folder: Path, record: RunRecord, config: RunConfig) -> bool:
    """Whether a run goes on in another number of processes, or shares its model otherwise, with the rows of each step.

    Raises `CheckpointError` where its steps would have other rows, or its weights another type in a pass.
    """
    before = {"devices": 1, "processes": 1, **record.predicted.get("assumes", {})}
    now = devices_of(config)
    if all(before[name] == value for name, value in now.items()):
        return False
    planned = record.chosen or {}
    for name in _BATCHES:
        now[name] = planned.get(name, getattr(config, name))
    was, rows = (math.prod(each.get(name, 1) for name in ("devices", "processes", *_BATCHES)) for each in (before, now))
    if was != rows:
        raise CheckpointError(
            f"cannot resume {folder} in {running().count} processes: a step had {was} rows, and would have {rows}: use "
            "another per_device_train_batch_size, or as many processes as before"
        )
    if (before["devices"] > 1) != (now["devices"] > 1) and uses_bfloat16(config.bf16):
        raise CheckpointError(
            f"cannot resume {folder}: with bf16, fsdp computes norms and states in bfloat16, and other runs do not: "
            f"start it {'with' if before['devices'] > 1 else 'without'} fsdp, as before"
        )
    return True


def _check_same(
    folder: Path, before: Mapping[str, Any], config: RunConfig, find: Callable[[str], str], moved: bool = False
) -> None:
    """Raises `CheckpointError` for settings that are not those from before.

    Args:
        folder: of the run.
        before: its settings.
        config: those of now.
        find: tells where a path is now.
        moved: whether processes divide its steps in another way than before.
    """
    wanted = config.model_dump(mode="json")
    if moved:
        before, wanted = ({**each, "training": _but_sharing(each.get("training", {}))} for each in (before, wanted))
    for key in wanted:
        if key in ("out", "threads", "activation_cache_limit", *(_BATCHES if moved else ())):
            continue
        if not _same(before.get(key), wanted[key], find):
            raise CheckpointError(
                f"cannot resume {folder}: {key} was {before.get(key)!r}, now {wanted[key]!r}: use the same settings"
            )


def _but_sharing(training: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in training.items() if name not in ("fsdp", "fsdp_config")}


def _same(before: Any, now: Any, find: Callable[[str], str]) -> bool:
    """Whether two values of a setting are the same, or paths to the same file."""
    if isinstance(before, dict) and isinstance(now, dict) and before.keys() == now.keys():
        return all(_same(before[key], now[key], find) for key in before)
    if before == now or not (isinstance(before, str) and isinstance(now, str)):
        return bool(before == now)
    place = Path(find(before))
    return place.exists() and Path(now).exists() and place.samefile(now)
