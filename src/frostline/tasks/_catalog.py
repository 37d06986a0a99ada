"""The built-in tasks, one entry each.

The prompt of `webnlg` is the row's triples (`subject | predicate | object`, joined by ` && `) and a line break. The
model trains on the row's first text and is scored against all of its texts.

A task that needs other code has a file of its own beside this one and a line here, as the tasks with extracted answers
have. Another package can add a task through the entry point group `frostline.tasks`: any callable from `TaskOptions` to
`Task`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frostline.core.errors import DataError
from frostline.core.registry import Registry
from frostline.rows import (
    OF_FILES,
    HubSource,
    Reading,
    Rows,
    TaskKind,
    TaskOptions,
    exported,
    hub_rows,
    read_hub,
    read_rows,
    split_file,
)
from frostline.tasks._build import build_task
from frostline.tasks._question_catalog import QUESTION_TASKS
from frostline.tasks._task import Scorer, Task, score_texts

TWO_WAY = ("entailment", "not_entailment")
THREE_WAY = ("entailment", "neutral", "contradiction")


@dataclass(frozen=True)
class BuiltIn:
    """A task with fixed columns, read from a local copy or from the hub.

    Attributes:
        folder: the folder of the local copy under `$FROSTLINE_DATA`, with `train.jsonl` and `dev.jsonl`.
        hub: the same task on the hub. Its rows are converted to the columns of the local copy.
        reading: how rows become examples.
        labels: the label names in order.
        metric: the main metric; None is the usual one of the kind of task.
        splits: local split -> the hub's name, where they differ.
        max_train_rows: limit on training rows in the paper's protocol; the options can set another.
        score: scores generated texts.
    """

    folder: str
    hub: HubSource
    reading: Reading
    labels: tuple[str, ...] | None = None
    metric: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)
    max_train_rows: int | None = None
    score: Scorer = score_texts

    def __call__(self, options: TaskOptions) -> Task:
        """Read the task. Raises `DataError` when its rows cannot be read, `ConfigError` for an option that is fixed."""
        options.refuse(OF_FILES, "it is fixed for a built-in task: leave it out (it is for files and hub data sets)")
        if options.max_train_rows is None:
            options = options.model_copy(update={"max_train_rows": self.max_train_rows})
        wanted = (options.train or "train", options.eval or "dev")
        local = os.environ.get("FROSTLINE_DATA")
        train, evaluation = self._local(Path(local), *wanted) if local else self._remote(*wanted)
        return build_task(
            self.folder,
            train,
            evaluation,
            self.reading,
            options,
            source=str(Path(local) / self.folder) if local else str(self.hub),
            labels=self.labels,
            metric=self.metric,
            score=self.score,
        )

    def _local(self, data: Path, *splits: str) -> list[Rows]:
        folder = data / self.folder
        files = [split_file(folder, split) for split in splits]
        for split, file in zip(splits, files, strict=True):
            if file is None:
                raise DataError(
                    f"no {split}.jsonl in {folder}, the folder of this task under FROSTLINE_DATA: correct or unset "
                    "FROSTLINE_DATA"
                )
        return [read_rows(file) for file in files if file]

    def _remote(self, *splits: str) -> list[Rows]:
        datasets = read_hub(self.hub, "set FROSTLINE_DATA to a folder with local copies of the built-in tasks")
        return [hub_rows(self.hub, datasets, self.splits.get(split, split)) for split in splits]


def _glue(subset: str, text: str = "sentence1", pair: str = "sentence2") -> HubSource:
    return HubSource(
        "nyu-mll/glue",
        subset,
        convert=lambda row: {"premise": row[text], "hypothesis": row[pair], "label": row["label"]},
    )


def _webnlg_row(row: Mapping[str, Any]) -> dict[str, Any] | None:
    triples = row["modified_triple_sets"]["mtriple_set"][0]
    texts = row["lex"]["text"]
    # The published test split also lists inputs without a text.
    return {"source": " && ".join(triples), "targets": list(texts)} if texts else None


def _entailment(
    name: str,
    hub: HubSource,
    labels: tuple[str, ...],
    dev: str = "validation",
    max_train_rows: int | None = None,
) -> BuiltIn:
    columns = {"text": "premise", "pair": "hypothesis", "label": "label"}
    reading = Reading(TaskKind.CLASSIFICATION, columns)
    return BuiltIn(f"nli/{name}", hub, reading, labels, splits={"dev": dev}, max_train_rows=max_train_rows)


WEBNLG = BuiltIn(
    "gen/webnlg2017",
    exported("webnlg-challenge/web_nlg", "webnlg_challenge_2017", "train", "dev", "test", convert=_webnlg_row),
    Reading(TaskKind.GENERATION, {"prompt": "source", "references": "targets"}, prompt="{}\n"),
    metric="bleu",
)

TASKS: Registry[Callable[[TaskOptions], Task]] = Registry(
    "task",
    "frostline.tasks",
    {
        "rte": _entailment("rte", _glue("rte"), TWO_WAY),
        "cb": _entailment("cb", exported("aps/super_glue", "cb", "train", "validation"), THREE_WAY),
        "wnli": _entailment("wnli", _glue("wnli"), TWO_WAY),
        "qnli": _entailment("qnli", _glue("qnli", "sentence", "question"), TWO_WAY, max_train_rows=3200),
        "mnli": _entailment("mnli", _glue("mnli", "premise", "hypothesis"), THREE_WAY, "validation_matched", 3200),
        "webnlg": WEBNLG,
        **QUESTION_TASKS,
    },
)
