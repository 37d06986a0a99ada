"""Tasks whose answers are extracted from generated texts. A row has an instruction, an output and an answer.

The prompt is that of the published data sets, which is Alpaca's for an instruction without an input. The published
programs add indents and a linter comment to it by mistake; these are left out. The model trains on `output`. Its texts
are scored against `answer`, because many outputs do not end with the right answer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from frostline.core.errors import DataError, unknown_name
from frostline.rows import OF_FILES, HubSource, Reading, Row, Rows, TaskKind, TaskOptions, hub_rows, read_hub, read_rows
from frostline.tasks._answers import RULES
from frostline.tasks._examples import make_examples
from frostline.tasks._marks import score_answers
from frostline.tasks._splits import draw_rows, held_count
from frostline.tasks._task import Example, Task

INSTRUCTION = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Response:\n"
)
QUESTION = {"prompt": "instruction", "references": "answer", "group": "set"}
Numbered = list[tuple[int, Row]]


@dataclass(frozen=True)
class AnswerTask:
    """Questions with answers to extract, read from a local copy or from the hub.

    Attributes:
        train: the training file under `$FROSTLINE_DATA`. Without it, the task can be evaluated but not trained on.
        test: the test file under `$FROSTLINE_DATA`.
        sets: the data sets whose rows are used, as names in `RULES`. The first is that of rows without a `set`.
        solved: whether the test rows have outputs. If not, texts are generated for them, and the loss is measured on
            held-out training rows.
        hub: the same rows on the hub; None where the hub does not have them.
        hub_test: name of the test split on the hub.
    """

    train: str
    test: str
    sets: tuple[str, ...]
    solved: bool = False
    hub: HubSource | None = None
    hub_test: str = "test"

    def __call__(self, options: TaskOptions) -> Task:
        """Read the task.

        A training row is left out when its output is empty, or when its question is also an evaluation question (the
        same letters and digits; case, spaces and punctuation do not count). `Task.notices` says how many.

        Raises `DataError` when rows cannot be read, or one is wrong. Raises `ConfigError` for an option that is fixed.
        """
        fixed = {*OF_FILES, "train", "eval", "metric"} - (set() if self.solved else {"eval_share"})
        options.refuse(
            sorted(fixed), "it is fixed for this built-in task: leave it out (it is for files and hub data sets)"
        )
        local = os.environ.get("FROSTLINE_DATA")
        folder = Path(local) if local else None
        train_rows, test_rows = self._local(folder) if folder else self._remote()
        with_output = [(i, row) for i, row in train_rows if str(row.values.get("output")).strip()]
        train = _examples("train", with_output, solved=True)
        test = _examples("eval" if self.solved else "test", test_rows, solved=self.solved)
        apart = _without(train, test)
        notices = [
            *_left_out(len(train_rows) - len(train), "because the output is empty"),
            *_left_out(len(train) - len(apart), "because the test rows have the same question"),
        ]
        held: Sequence[Example] = []
        if not self.solved and apart:
            count = held_count(len(apart), options.eval_share, self.train)
            held = draw_rows(apart, count, options.seed, "held out")
            taken = {example.id for example in held}
            remaining = [example for example in apart if example.id not in taken]
            held = [replace(example, id=example.id.replace("train", "eval")) for example in held]
            apart = _without(remaining, held)
            notices += [f"the loss is measured on {len(held)} held-out training rows: the test rows have no output"]
            notices += _left_out(len(remaining) - len(apart), "because the held-out rows have the same question")
        drawn = draw_rows(apart, options.max_train_rows, options.seed, "train rows")
        if len(drawn) < len(apart):
            notices.append(f"{len(drawn)} of {len(apart)} training rows drawn by seed {options.seed}")
        judged = draw_rows(test, options.max_eval_rows, options.seed, "eval rows")
        return Task(
            name=self.sets[0],
            kind=TaskKind.GENERATION,
            train=drawn,
            eval=judged if self.solved else draw_rows(held, options.max_eval_rows, options.seed, "eval rows"),
            metric="accuracy" if options.generate_rows else "loss",
            source=str(folder / self.test) if folder else str(self.hub),
            train_on_prompt=options.train_on_prompt,
            generate_rows=options.generate_rows,
            score=score_answers,
            questions=() if self.solved else judged,
            notices=tuple(notices),
            no_training="" if drawn else self._no_training(folder),
        )

    def _local(self, data: Path) -> tuple[Numbered, Numbered]:
        test = data / self.test
        if not test.is_file():
            raise DataError(f"no {self.test} in {data}, the folder in FROSTLINE_DATA: correct or unset FROSTLINE_DATA")
        train = data / self.train
        return self._rows(read_rows(train)) if train.is_file() else [], self._rows(read_rows(test))

    def _remote(self) -> tuple[Numbered, Numbered]:
        wanted = f"set FROSTLINE_DATA to a folder with {self.train} and {self.test}"
        if self.hub is None:
            raise DataError(f"this task needs a local copy: {wanted}")
        splits = read_hub(self.hub, wanted)
        return self._rows(hub_rows(self.hub, splits, "train")), self._rows(hub_rows(self.hub, splits, self.hub_test))

    def _rows(self, rows: Rows) -> Numbered:
        """(Place in the source, row) for the rows of the task's data sets. Each row gets the name of its `set`."""
        found = []
        for number, row in enumerate(rows.rows):
            group = str(row.values.get("set", self.sets[0])).lower()
            if group not in RULES:
                raise DataError(f"{row.where}: {unknown_name('set', group, RULES)}")
            if group in self.sets:
                found.append((number, Row({**row.values, "set": group}, row.where)))
        if not found:
            raise DataError(f"{rows.origin}: it has no rows of the set {' or '.join(self.sets)}: use another file")
        return found

    def _no_training(self, folder: Path | None) -> str:
        missing = f"nothing to train on: no rows in {self.train if folder is None else folder / self.train}"
        return f"{missing}: add them there" + (f", or unset FROSTLINE_DATA to read {self.hub}" if self.hub else "")


def _examples(split: str, rows: Numbered, *, solved: bool) -> list[Example]:
    columns = QUESTION | {"completion": "output"} if solved else QUESTION
    reading = Reading(TaskKind.GENERATION, columns, prompt=INSTRUCTION)
    return list(make_examples(((f"{split}:{i}", row) for i, row in rows), reading, ()))


def _question_key(example: Example) -> str:
    return re.sub(r"[\W_]+", "", example.text.lower())


def _without(examples: Sequence[Example], others: Sequence[Example]) -> list[Example]:
    """The examples whose question is not one of those in `others`."""
    asked = {_question_key(example) for example in others}
    return [example for example in examples if _question_key(example) not in asked]


def _left_out(count: int, why: str) -> list[str]:
    return [f"{count} training row{'s' if count > 1 else ''} left out {why}"] if count else []
