"""A task as plain data: examples of two splits, what kind they are, and how they are scored."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal, NamedTuple

from frostline.tasks._metrics import text_scores

Split = Literal["train", "eval"]


class TaskKind(StrEnum):
    """What a model is asked for, and thereby which head it needs and how it is scored.

    - `CLASSIFICATION`: one of the task's labels for a text or a pair of texts; accuracy, macro-F1, loss.
    - `GENERATION`: a completion for a prompt; loss on the completion, and scores of generated texts.
    - `LANGUAGE`: plain text or chats; loss and perplexity only.
    """

    CLASSIFICATION = "classification"
    GENERATION = "generation"
    LANGUAGE = "language"


class Message(NamedTuple):
    """One turn of a chat. `role` is what the tokenizer's chat template knows: system, user, assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a task. Which fields are filled follows from the task's kind.

    Attributes:
        id: stable across runs: the split and the row's place in its source, as `train:17`.
        text: the text to classify, the prompt, or the plain text; empty for a chat.
        pair: the second text of a pair to classify.
        label: index into the task's labels.
        target: the completion to train on.
        references: every text that counts as right when a generated one is scored.
        messages: the turns of a chat.
        group: the set that the row is from, where rows of several are scored by different rules.
    """

    id: str
    text: str = ""
    pair: str | None = None
    label: int | None = None
    target: str | None = None
    references: tuple[str, ...] = ()
    messages: tuple[Message, ...] = ()
    group: str = ""


class Scores(NamedTuple):
    """Metrics of generated texts, and what there is to say of each text alone, if anything: whether it was right."""

    metrics: dict[str, float]
    marks: tuple[Mapping[str, Any], ...] = ()


Scorer = Callable[[Sequence[Example], Sequence[str]], Scores]


def score_texts(examples: Sequence[Example], texts: Sequence[str]) -> Scores:
    """The scores of generated texts unless a task brings its own: `text_scores` against each example's references."""
    return Scores(text_scores(texts, [example.references for example in examples]))


@dataclass(frozen=True)
class Task:
    """Training and evaluation examples, and how they are used.

    Attributes:
        metric: the headline metric, a key of what `evaluate` returns.
        labels: the label names, in the order of the label indices; classification only.
        source: where the rows came from: a path or a hub id.
        train_on_prompt: whether the loss also counts the prompt (in a chat: the other roles' turns).
        generate_rows: on how many distinct evaluation prompts texts are generated.
        score: scores the texts generated for examples.
        questions: the examples that texts are generated for, where these are others than `eval`: questions with an
            answer but no worked solution, on which there is no loss to measure.
        notices: what was done with the rows that a reader of the results should know, a line each.
        no_training: why there is nothing to train on, and what would be right, where `train` is empty.
    """

    name: str
    kind: TaskKind
    train: Sequence[Example]
    eval: Sequence[Example]
    metric: str
    labels: tuple[str, ...] = ()
    source: str = ""
    train_on_prompt: bool = False
    generate_rows: int = 200
    score: Scorer = score_texts
    questions: Sequence[Example] = ()
    notices: tuple[str, ...] = ()
    no_training: str = ""

    def split(self, name: Split) -> Sequence[Example]:
        """The examples of one split."""
        return self.train if name == "train" else self.eval

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the labels and over every example's content, in order, of both splits and the questions."""
        digest = hashlib.sha256(json.dumps([self.kind, self.labels]).encode())
        # What most tasks lack counts only where it is there, so that their fingerprints stay what they were.
        for part in (self.train, self.eval, *([self.questions] if self.questions else [])):
            digest.update(b"\n")
            for example in part:
                fields = astuple(example)
                digest.update(json.dumps(fields if example.group else fields[:-1]).encode() + b"\n")
        return digest.hexdigest()


def majority_share(task: Task) -> float:
    """The accuracy on the evaluation split of always answering the most common training label.

    Of equally common labels the first in `task.labels` is taken. Raises `ValueError` for other kinds.
    """
    if task.kind is not TaskKind.CLASSIFICATION:
        raise ValueError(f"a {task.kind} task has no majority label")
    counts = Counter(example.label for example in task.train)
    majority = max(range(len(task.labels)), key=lambda label: counts[label])
    return sum(example.label == majority for example in task.eval) / len(task.eval)
