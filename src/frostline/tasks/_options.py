"""The options of a task, as a user writes them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from frostline.core.settings import Options
from frostline.tasks._task import TaskKind

Share = Annotated[float, Field(gt=0, lt=1)]


class Columns(Options):
    """Role -> column. A role that is not given uses the column with the role's name.

    Attributes:
        text: the column of a text that is classified.
        pair: the column of a second text beside it.
        label: the column of the class.
        prompt: the column of a prompt.
        completion: the column of the text that should follow the prompt.
        references: the column of all texts that are right for a prompt.
        messages: the column of a chat's messages.
    """

    text: str | None = None
    pair: str | None = None
    label: str | None = None
    prompt: str | None = None
    completion: str | None = None
    references: str | None = None
    messages: str | None = None

    def given(self) -> dict[str, str]:
        """Role -> column, for the roles that were given."""
        return self.model_dump(exclude_none=True)


class TaskOptions(Options):
    """How a task is read. Every field has a default. A built-in task accepts `train` and those after it only.

    Attributes:
        kind: the kind of task; None where the columns allow only one.
        columns: role -> column.
        labels: the label names in order; None reads them from the training rows.
        subset: the configuration of a hub data set.
        eval_share: the share of rows that is held out for evaluation, where there is no evaluation split.
        train: the training split of a folder, a hub data set or a built-in task.
        eval: the evaluation split; for a single training file, the path of the evaluation file.
        max_train_rows: train on at most this many rows, drawn by `seed`.
        max_eval_rows: evaluate on at most this many rows, drawn by `seed`.
        seed: draws the held-out rows, and the rows of the two limits.
        train_on_prompt: count the prompt in the loss too, not only the completion.
        generate_rows: generate texts for this many distinct evaluation prompts; 0 generates none.
        metric: the main metric, such as `bleu` or `chrf` for translations; None is the usual one of the kind of task.
    """

    kind: TaskKind | None = None
    columns: Columns = Columns()
    labels: tuple[str, ...] | None = None
    subset: str | None = None
    eval_share: Share = 0.1

    train: str | None = None
    eval: str | None = None
    max_train_rows: PositiveInt | None = None
    max_eval_rows: PositiveInt | None = None
    seed: int = 42
    train_on_prompt: bool = False
    generate_rows: NonNegativeInt = 200
    metric: str | None = None
