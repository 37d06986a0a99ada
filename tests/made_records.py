"""Records made by hand, for what reads records only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from frostline.records import DataFacts, Measured, ModelFacts, RunMetrics, RunRecord
from frostline.report import Run


def run(
    strategy: str = "all",
    seed: int = 42,
    *,
    accuracy: float = 0.5,
    seconds: float = 10.0,
    memory: int = 1000,
    step: float | None = 0.1,
    model: str = "models/base16",
    task: str = "rte",
    label: str | None = None,
    status: str = "finished",
    error: str | None = None,
    config: dict[str, Any] | None = None,
    selection: float = 0.0,
) -> Run:
    """A run whose figures are given; the rest is made up."""
    measured = Measured(
        train_seconds=seconds,
        seconds_per_step=step,
        caching_seconds=0,
        peak_memory_bytes=memory,
        steps=100,
        selection_seconds=selection,
    )
    done = status == "finished"
    record = RunRecord(
        status=status,  # type: ignore[arg-type]
        started=f"2025-01-01T00:00:{seed:02d}+00:00",
        error=error,
        config={"strategy": strategy, "seed": seed, "out": f"runs/{strategy}-{seed}", **(config or {})},
        plan={"strategy": strategy},
        model=ModelFacts(name=model, model_class="M", model_type="m", dtype="float32", blocks=4, fingerprint="f"),
        data=DataFacts(
            task=task,
            kind="classification",
            source=task,
            train_rows=100,
            eval_rows=50,
            truncated_rows=0,
            mean_length=20,
            metric="accuracy",
            majority_share=0.52,
            fingerprint="d",
        ),
        seed=seed,
        versions={},
        trainable_parameters=250,
        total_parameters=1000,
        predicted={"flops_ratio": 0.6, "memory_ratio": None},
        measured=measured if done else None,
        metrics=RunMetrics(before={"accuracy": 0.4}, after={"accuracy": accuracy, "loss": 1.0}) if done else None,
    )
    return Run(label or strategy, record, Path("runs") / strategy / f"seed{seed}")
