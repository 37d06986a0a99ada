"""What a user writes about a task."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from frostline.core.settings import Options
from frostline.tasks._task import TaskKind

Share = Annotated[float, Field(gt=0, lt=1)]


class Columns(Options):
    """Which column plays which role. A role that is not given is looked for under its own name."""

    text: str | None = None
    pair: str | None = None
    label: str | None = None
    prompt: str | None = None
    completion: str | None = None
    references: str | None = None
    messages: str | None = None

    def given(self) -> dict[str, str]:
        """Role to column, of the roles that were written."""
        return self.model_dump(exclude_none=True)


class TaskOptions(Options):
    """How a task is read. Every field has a default; a built-in task takes those of the second group only.

    Attributes:
        kind: guessed from the columns if they leave no choice.
        columns: which column plays which role.
        labels: the label names in order; read from the training rows if not given.
        subset: the configuration of a hub data set.
        eval_share: the share of rows held out for evaluation where there is no evaluation split.
        train: the training split: of a folder, a hub data set or a built-in task.
        eval: the evaluation split; beside a single training file, the path of the evaluation file.
        max_train_rows: train on at most this many rows, drawn by `seed`.
        max_eval_rows: evaluate on at most this many rows, drawn by `seed`.
        seed: of the held-out share and of the drawn rows.
        train_on_prompt: let the loss count the prompt too, not the completion alone.
        generate_rows: generate for this many distinct evaluation prompts; 0 for none.
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
