"""Tasks whose answers are read out of generated text: an instruction, a worked solution or a sentence, an answer.

The prompt is the one of the published data sets, which is Alpaca's for an instruction without an input; the indents and
the stray linter comment that their programs put into it are left out. The model is trained on `output`, and its texts
are scored against `answer`, because many of the worked solutions do not end on the right one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from frostline.core.errors import ConfigError, DataError, unknown_name
from frostline.tasks._answers import RULES
from frostline.tasks._build import draw_rows, hold_out
from frostline.tasks._hub import HubSource, hub_rows, read_hub
from frostline.tasks._marks import score_answers
from frostline.tasks._options import TaskOptions
from frostline.tasks._reading import Reading, make_examples
from frostline.tasks._rows import Row, Rows, read_rows
from frostline.tasks._task import Example, Task, TaskKind

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
        train, test: the local copy's files under `$FROSTLINE_DATA`. Without the first the task can be evaluated only.
        sets: whose rows are taken: names in `RULES`. A single one is also the set of rows that do not name theirs.
        solved: whether the test rows have outputs. If not, texts are generated for them, and the loss is measured on
            a held-out share of the training rows.
        hub: the same rows on the hub, where they are there; `hub_test` is its test split.
    """

    train: str
    test: str
    sets: tuple[str, ...]
    solved: bool = False
    hub: HubSource | None = None
    hub_test: str = "test"

    def __call__(self, options: TaskOptions) -> Task:
        """Read the task.

        A training row goes when its output is empty, or when its question is also one of those that are evaluated:
        the same letters and digits, whatever the case, the spaces and the punctuation. `Task.notices` says how many.

        Raises `UserError` when its source cannot be had, for an option that is fixed, and for a bad row.
        """
        self._check(options)
        local = os.environ.get("FROSTLINE_DATA")
        folder = Path(local) if local else None
        train_rows, test_rows = self._local(folder) if folder else self._remote()
        with_output = [(i, row) for i, row in train_rows if str(row.values.get("output")).strip()]
        train = _examples("train", with_output, solved=True)
        test = _examples("eval" if self.solved else "test", test_rows, solved=self.solved)
        apart = _without(train, test)
        notices = [
            *_left_out(len(train_rows) - len(train), "without an output"),
            *_left_out(len(train) - len(apart), "whose question is asked in the test rows too"),
        ]
        held: list[Example] = []
        if not self.solved and apart:
            remaining, held = hold_out(apart, options.eval_share, options.seed, self.train)
            held = [replace(example, id=example.id.replace("train", "eval")) for example in held]
            apart = _without(remaining, held)
            notices += [f"the loss is measured on {len(held)} held-out training rows: the test rows have no output"]
            notices += _left_out(len(remaining) - len(apart), "whose question is asked in the held-out rows too")
        drawn = draw_rows(apart, options.max_train_rows, options.seed, "train")
        if len(drawn) < len(apart):
            notices.append(f"{len(drawn)} of {len(apart)} training rows drawn by seed {options.seed}")
        test = draw_rows(test, options.max_eval_rows, options.seed, "eval")
        return Task(
            name=self.sets[0],
            kind=TaskKind.GENERATION,
            train=drawn,
            eval=test if self.solved else draw_rows(held, options.max_eval_rows, options.seed, "eval"),
            metric="accuracy" if options.generate_rows else "loss",
            source=str(folder / self.test) if folder else str(self.hub),
            train_on_prompt=options.train_on_prompt,
            generate_rows=options.generate_rows,
            score=score_answers,
            questions=() if self.solved else test,
            notices=tuple(notices),
            no_training="" if drawn else self._no_training(folder),
        )

    def _check(self, options: TaskOptions) -> None:
        fixed = ["kind", "columns", "labels", "subset", "train", "eval", *(["eval_share"] if self.solved else [])]
        for name in fixed:
            if getattr(options, name) != TaskOptions.model_fields[name].default:
                raise ConfigError(f"option '{name}' is fixed for this built-in task: it is for files and hub data sets")

    def _local(self, data: Path) -> tuple[Numbered, Numbered]:
        test = data / self.test
        if not test.is_file():
            raise DataError(
                f"no {self.test} in {data}, where FROSTLINE_DATA says that built-in tasks are; correct or unset it"
            )
        train = data / self.train
        return self._rows(read_rows(train)) if train.is_file() else [], self._rows(read_rows(test))

    def _remote(self) -> tuple[Numbered, Numbered]:
        wanted = f"set FROSTLINE_DATA to a folder with {self.train} and {self.test}"
        if self.hub is None:
            raise DataError(f"this task is read from a local copy: {wanted}")
        splits = read_hub(self.hub, wanted)
        return self._rows(hub_rows(self.hub, splits, "train")), self._rows(hub_rows(self.hub, splits, self.hub_test))

    def _rows(self, rows: Rows) -> Numbered:
        """The rows of the task's sets, with their place in the source and the set that they are from."""
        found = []
        for number, row in enumerate(rows.rows):
            group = str(row.values.get("set", self.sets[0])).lower()
            if group not in RULES:
                raise DataError(f"{row.where}: {unknown_name('set', group, RULES)}")
            if group in self.sets:
                found.append((number, Row({**row.values, "set": group}, row.where)))
        if not found:
            raise DataError(f"{rows.origin}: no rows of the set {' or '.join(self.sets)}")
        return found

    def _no_training(self, folder: Path | None) -> str:
        missing = f"nothing to train on: no rows in {self.train if folder is None else folder / self.train}"
        return f"{missing}; put them there" + (f", or unset FROSTLINE_DATA to read {self.hub}" if self.hub else "")


def _examples(split: str, rows: Numbered, *, solved: bool) -> list[Example]:
    columns = QUESTION | {"completion": "output"} if solved else QUESTION
    reading = Reading(TaskKind.GENERATION, columns, prompt=INSTRUCTION)
    return make_examples(((f"{split}:{i}", row) for i, row in rows), reading, ())


def _question_key(example: Example) -> str:
    return re.sub(r"[\W_]+", "", example.text.lower())


def _without(examples: Sequence[Example], others: Sequence[Example]) -> list[Example]:
    """The examples that do not ask what one of `others` asks."""
    asked = {_question_key(example) for example in others}
    return [example for example in examples if _question_key(example) not in asked]


def _left_out(count: int, why: str) -> list[str]:
    return [f"{count} training row{'s' if count > 1 else ''} left out {why}"] if count else []
