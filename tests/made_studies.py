"""A study made by hand, with all that a report draws: curves, plans, a schedule, signals, trials, predictions."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from frostline.records import RunMetrics, RunRecord, write_record
from frostline.report import Run
from made_records import run

BLOCKS = 12
STRATEGIES = ("all", "bot50", "lora", "lisa", "semantic", "auto", "head", "top50", "int50", "bot25")


def plan(strategy: str) -> dict[str, Any]:
    """A plan that differs between strategies."""
    mode = "lora" if strategy == "lora" else "full"
    first = {"all": 0, "lora": 0, "head": BLOCKS}.get(strategy, BLOCKS // 2)
    blocks = [{"index": i, "mode": mode if i >= first else "frozen"} for i in range(BLOCKS)]
    norm = "frozen" if strategy == "lora" else "full"
    embeddings = "full" if strategy == "all" else "frozen"
    return {
        "strategy": strategy,
        "embeddings": {"mode": embeddings},
        "blocks": blocks,
        "final_norm": {"mode": norm},
        "head": {"mode": "full"},
    }


def _strip() -> tuple[str, ...]:
    blocks = [f"{i:<5}{'░' * 10}{('█' if i % 2 else '░') * 10}" for i in reversed(range(BLOCKS))]
    return ("head " + "█" * 20, "norm " + "█" * 20, *blocks, "emb  " + "░" * 20)


def _signals() -> dict[str, Any]:
    shift = [{"value": math.sin(i) + 1.5, "error": 0.05} for i in range(BLOCKS)]
    gain: list[dict[str, Any]] = [{"value": None, "error": None}]
    gain += [{"value": math.cos(i), "error": None} for i in range(1, BLOCKS)]
    return {"version": 1, "rows": 96, "read": "the last token", "seconds": 1.5, "signals": {"vds": shift, "gain": gain}}


def _trials() -> tuple[dict[str, Any], ...]:
    common = {"option": "full-6", "what": "blocks 6-11 in full", "step_seconds": 0.1}
    return (
        {**common, "learning_rate": 1e-4, "result": "lost", "curve": [[10, 1.0, 0.9]]},
        {**common, "learning_rate": 3e-4, "result": "won", "curve": [[10, 1.0, 0.8], [20, 2.0, 0.7]]},
        {**common, "learning_rate": 1e-3, "result": "diverged", "curve": []},
    )


def finished(strategy: str, seed: int, task: str = "rte", steps: int = 40) -> RunRecord:
    """The record of a run that a report has everything of; its figures are drawn from its names."""
    rng = random.Random(f"{strategy} {seed} {task}")
    place = STRATEGIES.index(strategy)
    each = 0.5 - 0.04 * place
    history = [
        {"loss": 2 * math.exp(-step / 20) + rng.random() / 10, "step": float(step), "seconds": each * step}
        for step in range(1, steps + 1)
    ]
    history += [{"eval_loss": 1.0 + rng.random(), "step": 20.0, "seconds": each * 20}]
    made = run(
        strategy,
        seed,
        accuracy=0.9 - 0.01 * place + rng.gauss(0, 0.004),
        seconds=each * steps,
        memory=(1500 - 100 * place) * 2**20,
        task=task,
        selection=1.5 if strategy == "semantic" else 0.0,
    ).record
    assert made.metrics is not None
    changes = {
        "plan": plan(strategy),
        "metrics": RunMetrics(before=made.metrics.before, after=made.metrics.after, history=tuple(history)),
        "command": f"frostline train --task {task} --strategy {strategy} --seed {seed} max_steps={steps}",
        "versions": {"frostline": "0.1.0", "torch": "2.13.0" if seed % 2 else "2.12.0"},
        "notices": (f"{strategy} has something to say",),
        "predicted": {
            "flops_ratio": each * 2,
            "run_flops_ratio": each * 1.8,
            "memory_ratio": 0.9 - 0.05 * place,
            "peak_memory_bytes": (1400 - 100 * place) * 2**20,
        },
    }
    if strategy == "lisa":
        changes |= {"strip": _strip(), "changes": ({"step": 20, "seconds": 0.1, "differs": {}},)}
    if strategy == "semantic":
        changes["signals"] = _signals()
    if strategy == "auto":
        changes |= {"trials": _trials(), "chosen": {"clock": "processor time"}}
    return made.model_copy(update=changes)


def write_study(
    folder: Path, strategies: int = 7, tasks: tuple[str, ...] = ("rte", "qnli"), seeds: tuple[int, ...] = (42, 43)
) -> list[Run]:
    """Write the runs of a study as `frostline study` lays them out, and return them."""
    found = []
    for task in tasks:
        for strategy in STRATEGIES[:strategies]:
            for seed in seeds:
                place = folder / "base16" / task / strategy / f"seed{seed}"
                record = finished(strategy, seed, task)
                write_record(record, place)
                found.append(Run(strategy, record, place))
    return found
