"""A task as plain data: the examples of two splits, their kind, and how they are scored."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, NamedTuple

from frostline.rows import TaskKind, values_of
from frostline.tasks._metrics import text_scores

Split = Literal["train", "eval"]


METRICS: Mapping[TaskKind, tuple[str, ...]] = {
    TaskKind.CLASSIFICATION: ("accuracy", "macro_f1", "loss"),
    TaskKind.MULTI_LABEL: ("micro_f1", "macro_f1", "subset_accuracy", "loss"),
    TaskKind.REGRESSION: ("pearson", "spearman", "mse", "loss"),
    TaskKind.TAGGING: ("f1", "precision", "recall", "accuracy", "loss"),
    TaskKind.EXTRACTION: ("f1", "exact_match", "loss"),
    TaskKind.CHOICE: ("accuracy", "loss"),
    TaskKind.GENERATION: ("rougeL", "rouge1", "rouge2", "bleu", "chrf", "exact_match", "loss", "perplexity"),
    TaskKind.LANGUAGE: ("loss", "perplexity"),
}
"""Kind of task -> the metrics that an evaluation has; the first is the main one, unless the task says otherwise."""


class Message(NamedTuple):
    """One turn of a chat. `role` is a role of the tokenizer's chat template: system, user, assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a task. The task's kind decides which fields are filled.

    Attributes:
        id: the split and the row's place in its source, such as `train:17`. It is the same in every run.
        text: the text to classify, the prompt, the question, or the plain text; empty for a chat and for words.
        pair: the second text of a pair to classify; the context that a question is about.
        label: index into the task's labels; the index of the right choice.
        target: the completion to train on.
        references: all texts that are right when a generated text is scored.
        messages: the turns of a chat.
        group: the data set of the row, where the rules of several data sets differ.
        value: the number of a regression.
        labels: indices into the task's labels, where a text may have several of them or none.
        words: the words to tag.
        tags: for each word an index into the task's labels, or -100 where it does not count.
        choices: the texts of which one is right.
        answers: the right answers to a question, each with where it starts in `pair`, in characters; empty where the
            context does not answer it.
        tools: descriptions of the tools that a chat may call, as JSON objects.
    """

    id: str
    text: str = ""
    pair: str | None = None
    label: int | None = None
    target: str | None = None
    references: tuple[str, ...] = ()
    messages: tuple[Message, ...] = ()
    group: str = ""
    value: float | None = None
    labels: tuple[int, ...] | None = None
    words: tuple[str, ...] = ()
    tags: tuple[int, ...] = ()
    choices: tuple[str, ...] = ()
    answers: tuple[tuple[str, int], ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()


FIRST_FIELDS = 7
"""The fields up to `messages`, which are in every fingerprint."""


class Scores(NamedTuple):
    """Metrics of generated texts, and a mark for each text where the task has them (such as whether it is right)."""

    metrics: dict[str, float]
    marks: tuple[Mapping[str, Any], ...] = ()


Scorer = Callable[[Sequence[Example], Sequence[str]], Scores]


def score_texts(examples: Sequence[Example], texts: Sequence[str]) -> Scores:
    """The default scores of generated texts: `text_scores` against each example's references."""
    return Scores(text_scores(texts, [example.references for example in examples]))


@dataclass(frozen=True)
class Task:
    """Training and evaluation examples, and how they are used.

    Attributes:
        name: the task's name.
        kind: the kind of task.
        train: training examples.
        eval: evaluation examples.
        metric: the main metric, a key of `Evaluation.metrics`.
        labels: the label names in the order of their indices, for the kinds of task that have labels.
        source: where the rows are from: a path or a hub id.
        train_on_prompt: whether the loss also counts the prompt (in a chat: the turns of other roles).
        generate_rows: for how many distinct evaluation prompts texts are generated.
        score: scores generated texts.
        questions: the examples that texts are generated for, where these are not `eval`: questions with an answer but
            without an output, so that they have no loss.
        notices: what happened to the rows that a reader of the results should know, one line for each.
        no_training: where `train` is empty, why, and what to do.
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
        first = [own.name for own in fields(Example)[:FIRST_FIELDS]]
        later = [(own.name, own.default) for own in fields(Example)[FIRST_FIELDS:]]
        # Later fields and questions count only where there are any, so that other tasks keep their fingerprints.
        for part in (self.train, self.eval, *([self.questions] if self.questions else [])):
            digest.update(b"\n")
            for example in part:
                content = [getattr(example, name) for name in first]
                if given := {name: value for name, usual in later if (value := getattr(example, name)) != usual}:
                    content.append(given)
                digest.update(json.dumps(content).encode() + b"\n")
        return digest.hexdigest()


def majority_share(task: Task) -> float:
    """The accuracy on the evaluation split when every answer is the most common training label.

    Of equally common labels, the first in `task.labels` counts. Raises `ValueError` unless it is a classification.
    """
    if task.kind is not TaskKind.CLASSIFICATION:
        raise ValueError(f"a {task.kind} task has no majority label")
    counts, judged = (
        Counter(values_of(part, "label", lambda example: example.label)) for part in (task.train, task.eval)
    )
    majority = max(range(len(task.labels)), key=lambda label: counts[label])
    return judged[majority] / len(task.eval)
