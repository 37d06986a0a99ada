"""The options of a task, as a user writes them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt

from frostline.core.errors import ConfigError
from frostline.core.settings import Options
from frostline.rows._kinds import TaskKind


def label_name(value: object) -> object:
    """The name of a label: numbers and booleans as text, text trimmed and in the Unicode form NFC; else the value."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    return unicodedata.normalize("NFC", value.strip()) if isinstance(value, str) else value


LabelName = Annotated[str, BeforeValidator(label_name)]
Share = Annotated[float, Field(gt=0, lt=1)]

DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}


class Columns(Options):
    """Role -> column. A role that is not given uses the column with the role's name, or with a usual name for it.

    A column inside a column is named with a point between them: `translation.en`.

    Attributes:
        text: the column of a text that is classified, or of plain text.
        pair: the column of a second text beside it.
        label: the column of the class, of the number, or of the list of classes; of the right one of several choices.
        prompt: the column of a prompt.
        input: the column of a text that follows the prompt (the input to an instruction, the context of a question).
        system: the column of a text that comes before the prompt or the messages.
        completion: the column of the text that should follow the prompt.
        references: the column of all texts that are right for a prompt.
        messages: the column of a chat's messages.
        tools: the column of the tools that a chat may call.
        question: the column of a question that a part of the context, or one of the choices, answers.
        context: the column of the context.
        answers: the column of the answers: their texts, and where they start in the context.
        choices: the column of the choices, or the list of their columns.
        words: the column of the words that are tagged.
        tags: the column of a tag for each word.
    """

    text: str | None = None
    pair: str | None = None
    label: str | None = None
    prompt: str | None = None
    input: str | None = None
    system: str | None = None
    completion: str | None = None
    references: str | None = None
    messages: str | None = None
    tools: str | None = None
    question: str | None = None
    context: str | None = None
    answers: str | None = None
    choices: str | tuple[str, ...] | None = None
    words: str | None = None
    tags: str | None = None

    def given(self) -> dict[str, str | tuple[str, ...]]:
        """Role -> column (or columns), for the roles that were given."""
        return self.model_dump(exclude_none=True)


class TaskOptions(Options):
    """How a task is read. Every field has a default. A built-in task accepts `train` and those after it only.

    Attributes:
        kind: the kind of task; None where the columns allow only one.
        columns: role -> column.
        labels: the label names in order; None reads them from the training rows. For choices: what the column of the
            right one has for the first choice, the second, and so on.
        delimiter: what separates the columns of a CSV file; None finds it out.
        quotes: whether quotes in a CSV file hold a field together; false where they are ordinary characters.
        encoding: the encoding of a text file that is neither UTF-8 nor has a byte order mark, such as `cp1252`.
        subset: the configuration of a hub data set.
        eval_share: the share of rows that is held out for evaluation, where there is no evaluation split.
        train: the training split of a folder, a hub data set or a built-in task.
        eval: the evaluation split; for a single training file, the path of the evaluation file.
        max_train_rows: train on at most this many rows, drawn by `seed`.
        max_eval_rows: evaluate on at most this many rows, drawn by `seed`.
        seed: draws the held-out rows, the rows of the two limits, and the noise.
        train_on_prompt: count the prompt in the loss too, not only the completion.
        generate_rows: generate texts for this many distinct evaluation prompts; 0 generates none.
        noise: change this share of the characters of the texts that the model reads, in both splits.
        metric: the main metric, such as `bleu` or `chrf` for translations; None is the usual one of the kind of task.
    """

    kind: TaskKind | None = None
    columns: Columns = Columns()
    labels: tuple[LabelName, ...] | None = None
    delimiter: Literal["comma", "semicolon", "tab", "pipe"] | None = None
    quotes: bool | None = None
    encoding: str | None = None
    subset: str | None = None
    eval_share: Share = 0.1

    train: str | None = None
    eval: str | None = None
    max_train_rows: PositiveInt | None = None
    max_eval_rows: PositiveInt | None = None
    seed: int = 42
    train_on_prompt: bool = False
    generate_rows: NonNegativeInt = 200
    noise: float = Field(0.0, ge=0, lt=1)
    metric: str | None = None

    def refuse(self, names: Iterable[str], reason: str) -> None:
        """Raise `ConfigError` for the first of the options `names` that was given."""
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ConfigError(f"data.{name}: {reason}")


OF_FILES = tuple(TaskOptions.model_fields)[: list(TaskOptions.model_fields).index("train")]
"""The options that are for files and hub data sets only."""
