"""The pairs of a model and a task."""

from __future__ import annotations

from dataclasses import dataclass

SEEDS = (0, 1)


@dataclass(frozen=True)
class Pair:
    """A model and a task."""

    model: str
    task: str
    batch: int
    max_length: int
    steps: int
    eval_rows: int
    rates: tuple[float, float, float]

    @property
    def name(self) -> str:
        return f"{self.model.rpartition('/')[2]}/{self.task}"


def _encoder(task: str) -> Pair:
    return Pair("sentence-transformers/all-MiniLM-L6-v2", task, 32, 64, 40, 512, (2e-4, 5e-4, 1e-3))


def _decoder(task: str) -> Pair:
    return Pair("frostline/base16", task, 8, 128, 30, 160, (1e-3, 2e-3, 4e-3))


PAIRS = (_encoder("rte"), _encoder("qnli"), _encoder("mnli"), _decoder("webnlg"), _decoder("math-mix"))
