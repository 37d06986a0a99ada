"""What a model's head says of the rows of a task, as metrics and answers.

B rows of a batch, T tokens, C choices
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from frostline.core.labels import IGNORED
from frostline.processes import Processes
from frostline.rows import TaskKind
from frostline.tasks._encode_heads import as_completions
from frostline.tasks._entities import OUTSIDE, entity_scores
from frostline.tasks._metrics import (
    accuracy,
    label_set_scores,
    macro_f1,
    mean_squared_error,
    pearson,
    spearman,
)
from frostline.tasks._squad import answer_scores
from frostline.tasks._task import Example, Task
from frostline.tasks._tokenize import ModelKind
from frostline.tasks._words import Place, Window, windows, word_tokens

LONGEST_ANSWER = 30
"""The most tokens of an extracted answer, as in transformers' question answering example."""


@dataclass(frozen=True)
class ModelAnswer:
    """A model's answer to one example, as text, and the right answers.

    Attributes:
        id: the example's id.
        text: the answer.
        expected: the right answers.
        prompt: the prompt that the text was generated for; empty where a head answers.
        marks: the scorer's marks of this text, such as `extracted` and `right`.
    """

    id: str
    text: str
    expected: tuple[str, ...]
    prompt: str = ""
    marks: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The answer as plain data."""
        return asdict(self)


class Outputs(NamedTuple):
    """One batch: the places of its rows, the ids of their examples, which tokens are no padding, the labels by name,
    and what the model gives without these."""

    places: list[int]
    ids: list[str]
    real: Tensor
    labels: dict[str, Tensor]
    given: Any

    def to(self, device: torch.device) -> Outputs:
        """The same on a device."""
        labels = {name: label.to(device) for name, label in self.labels.items()}
        given = SimpleNamespace(**{name: tensor.to(device) for name, tensor in vars(self.given).items()})
        return Outputs(self.places, self.ids, self.real.to(device), labels, given)


@dataclass(frozen=True)
class Asked:
    """What the model was asked: the examples of one split, the id of the example of each row, how they are encoded."""

    task: Task
    examples: Sequence[Example]
    rows: Sequence[str]
    tokenizer: Any
    max_length: int

    def named(self, labels: Sequence[int]) -> tuple[str, ...]:
        """The names of labels."""
        return tuple(self.task.labels[label] for label in labels)


@dataclass(frozen=True)
class Batches:
    """Rows in batches, which processes divide between them.

    Attributes:
        places: of the rows of each batch.
        collate: makes the batch of these rows.
        processes: all of them get what the model says of every batch.
    """

    places: Iterable[Sequence[int]]
    collate: Callable[[Sequence[int]], dict[str, Any]]
    processes: Processes


TokenLosses = Iterator[tuple[str, tuple[float, int]]]
"""For each row its id, the sum of the losses of its labelled tokens, and how many these are."""
Found = tuple[dict[str, float], list[ModelAnswer]]
LABELS = ("labels", "start_positions", "end_positions")
READ = ("logits", "start_logits", "end_logits")
"""What is read of a model's outputs."""


def outputs(model: Any, batches: Batches) -> Iterator[Outputs]:
    """The model's outputs for batches with `example_id`. It does not see the labels."""
    from frostline.hooks import device_of

    several, device = batches.processes.count > 1, device_of(model)

    def answer(places: Sequence[int]) -> Outputs:
        batch = batches.collate(places)
        ids = batch.pop("example_id")
        labels = {name: batch.pop(name) for name in LABELS if name in batch}
        output = model(**batch)
        given = SimpleNamespace(**{name: output[name] for name in READ if name in output})
        found = Outputs(list(places), ids, batch["attention_mask"] > 0, labels, given)
        return found.to(torch.device("cpu")) if several else found

    for found in batches.processes.divided(answer, batches.places):
        yield found.to(device) if several else found


def classify(asked: Asked, batches: Iterator[Outputs]) -> Found:
    """One label for each example: accuracy, macro-F1, mean cross-entropy."""
    chosen, loss = _highest(batches)
    examples = asked.examples
    answers = [chosen[example.id] for example in examples]
    truth = [example.label for example in examples if example.label is not None]
    metrics = {"accuracy": accuracy(answers, truth), "macro_f1": macro_f1(answers, truth), "loss": loss}
    return metrics, [
        ModelAnswer(example.id, asked.task.labels[answer], asked.named([label]))
        for example, answer, label in zip(examples, answers, truth, strict=True)
    ]


def choose(asked: Asked, batches: Iterator[Outputs]) -> Found:
    """One of an example's choices: accuracy, mean cross-entropy."""
    chosen, loss = _highest(batches)
    return _choices(asked, chosen, loss)


def choose_by_loss(asked: Asked, rows: TokenLosses) -> Found:
    """As `choose`, for a model that writes: the choice with the lowest mean loss of its tokens, its end token too.

    The loss is that of the right choices' tokens. `rows` has one for each choice (`as_completions`).
    """
    losses = dict(rows)
    chosen: dict[str, int] = {}
    right = []
    for example in asked.examples:
        own = [losses[row.id] for row in as_completions(example)]
        means = [total / max(count, 1) for total, count in own]
        chosen[example.id] = means.index(min(means))
        right.append(own[example.label or 0])
    return _choices(asked, chosen, _mean(right))


def _choices(asked: Asked, chosen: Mapping[str, int], loss: float) -> Found:
    examples = asked.examples
    right = [example.label or 0 for example in examples]
    metrics = {"accuracy": accuracy([chosen[example.id] for example in examples], right), "loss": loss}
    return metrics, [
        ModelAnswer(example.id, example.choices[chosen[example.id]], (example.choices[label],))
        for example, label in zip(examples, right, strict=True)
    ]


def _highest(batches: Iterator[Outputs]) -> tuple[dict[str, int], float]:
    """For each example the index with the highest logit, and the mean cross-entropy."""
    chosen: dict[str, int] = {}
    total = 0.0
    for _, ids, _, labels, given in batches:
        logits = given.logits.float()  # [B, labels] or [B, C]
        total += F.cross_entropy(logits, labels["labels"], reduction="sum").item()
        chosen.update(zip(ids, logits.argmax(-1).tolist(), strict=True))
    return chosen, total / len(chosen)


def label_sets(asked: Asked, batches: Iterator[Outputs]) -> Found:
    """The labels with a probability above 0.5: micro-F1, macro-F1, subset accuracy, mean binary cross-entropy."""
    found: dict[str, list[int]] = {}
    total = 0.0
    for _, ids, _, labels, given in batches:
        logits = given.logits.float()  # [B, labels]
        total += F.binary_cross_entropy_with_logits(logits, labels["labels"], reduction="sum").item()
        found.update((name, row.nonzero().flatten().tolist()) for name, row in zip(ids, logits > 0, strict=True))
    answers = [found[example.id] for example in asked.examples]
    truth = [example.labels or () for example in asked.examples]
    metrics = {**label_set_scores(answers, truth), "loss": total / (len(found) * len(asked.task.labels))}
    return metrics, [
        ModelAnswer(example.id, ", ".join(asked.named(answer)), asked.named(right))
        for example, answer, right in zip(asked.examples, answers, truth, strict=True)
    ]


def regress(asked: Asked, batches: Iterator[Outputs]) -> Found:
    """A number for each example: Pearson's and Spearman's correlation, and the mean squared error, also as the loss."""
    found: dict[str, float] = {}
    for _, ids, _, _, given in batches:
        found.update(zip(ids, given.logits.float().squeeze(-1).tolist(), strict=True))
    answers = [found[example.id] for example in asked.examples]
    truth = [float(example.value or 0) for example in asked.examples]
    error = mean_squared_error(answers, truth)
    metrics = {"pearson": pearson(answers, truth), "spearman": spearman(answers, truth), "mse": error, "loss": error}
    return metrics, [
        ModelAnswer(example.id, f"{answer:.6g}", (f"{right:.6g}",))
        for example, answer, right in zip(asked.examples, answers, truth, strict=True)
    ]


def tag(asked: Asked, batches: Iterator[Outputs]) -> Found:
    """A tag for each word: F1 of the entities, accuracy, mean cross-entropy.

    A word that was cut, or that has no token, counts as outside. Words without a right tag (-100) are left out.
    """
    highest: dict[str, list[int]] = {}
    total, count = 0.0, 0
    for _, ids, _, labels, given in batches:
        logits, right = given.logits.float(), labels["labels"]  # [B, T, labels], [B, T]
        total += F.cross_entropy(logits.flatten(0, 1), right.flatten(), ignore_index=IGNORED, reduction="sum").item()
        count += int((right != IGNORED).sum())
        highest.update(zip(ids, logits.argmax(-1).tolist(), strict=True))
    answers = [_tags(asked, example, highest[example.id]) for example in asked.examples]
    truth = [asked.named([one for one in example.tags if one != IGNORED]) for example in asked.examples]
    metrics = {**entity_scores(answers, truth), "loss": total / max(count, 1)}
    return metrics, [
        ModelAnswer(example.id, " ".join(answer), (" ".join(right),))
        for example, answer, right in zip(asked.examples, answers, truth, strict=True)
    ]


def _tags(asked: Asked, example: Example, highest: Sequence[int]) -> list[str]:
    """The tags of the words that have a right one."""
    first = word_tokens(asked.tokenizer, example.words, asked.max_length).first
    return [
        OUTSIDE if place is None else asked.task.labels[highest[place]]
        for place, right in zip(first, example.tags, strict=True)
        if right != IGNORED
    ]


def extract(asked: Asked, batches: Iterator[Outputs]) -> Found:
    """The part of each context with the highest logits of its first and last token: exact match and F1 of SQuAD.

    It is the best of all windows, of at most `LONGEST_ANSWER` tokens. Where the task has questions without an answer,
    the answer is empty if the logits at the class token are higher, in the window where they are lowest. The loss is
    the mean over all windows; unlike in training, it does not count the padding of a batch.
    """
    logits: dict[int, tuple[Tensor, Tensor]] = {}
    total = 0.0
    for places, _, real, labels, given in batches:
        starts, ends = (
            side.float().masked_fill(~real, float("-inf")) for side in (given.start_logits, given.end_logits)
        )  # [B, T]
        for side, name in ((starts, "start_positions"), (ends, "end_positions")):
            total += F.cross_entropy(side, labels[name], reduction="sum").item() / 2
        logits.update(zip(places, zip(starts.cpu(), ends.cpu(), strict=True), strict=True))
    by_example: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for row, name in enumerate(asked.rows):
        by_example[name].append(logits[row])
    some_unanswered = not all(example.answers for example in (*asked.task.train, *asked.task.eval))
    answers = []
    for example in asked.examples:
        context = example.pair or ""
        own, _ = windows(asked.tokenizer, example.text, context, asked.max_length)
        start, end = best_span(own, by_example[example.id], none_allowed=some_unanswered)
        answers.append(context[start:end])
    truth = [tuple(answer for answer, _ in example.answers) for example in asked.examples]
    metrics = {**answer_scores(answers, truth), "loss": total / len(logits)}
    return metrics, [
        ModelAnswer(example.id, answer, right or ("",))
        for example, answer, right in zip(asked.examples, answers, truth, strict=True)
    ]


def best_span(own: Sequence[Window], logits: Sequence[tuple[Tensor, Tensor]], *, none_allowed: bool) -> Place:
    """The characters of the best answer of a context; (0, 0) for none.

    Args:
        own: the windows of the context.
        logits: for each window those of the first and of the last token.
        none_allowed: whether "no answer" may be the best.
    """
    best, place, none = float("-inf"), (0, 0), float("inf")
    for window, (starts, ends) in zip(own, logits, strict=True):
        length = len(window.places)
        inside = torch.tensor([where is not None for where in window.places])
        sums = starts[:length, None] + ends[:length]  # [T, T]: from token, to token
        near = torch.ones(length, length, dtype=torch.bool).triu().tril(LONGEST_ANSWER - 1)
        sums = sums.masked_fill(~(near & inside & inside[:, None]), float("-inf"))
        score, at = sums.flatten().max(0)
        none = min(none, float(starts[window.none] + ends[window.none]))
        if score > best:
            first, last = window.places[int(at) // length], window.places[int(at) % length]
            if first is not None and last is not None:
                best, place = float(score), (first[0], last[1])
    return (0, 0) if none_allowed and none > best else place


HEADS: Mapping[TaskKind, Callable[[Asked, Iterator[Outputs]], Found]] = {
    TaskKind.CLASSIFICATION: classify,
    TaskKind.MULTI_LABEL: label_sets,
    TaskKind.REGRESSION: regress,
    TaskKind.TAGGING: tag,
    TaskKind.EXTRACTION: extract,
    TaskKind.CHOICE: choose,
}
"""Kind of task -> what reads the outputs of its head."""


def token_losses(model: Any, batches: Batches, kind: ModelKind) -> TokenLosses:
    """The losses of the rows of language models."""

    def read(places: Sequence[int]) -> list[tuple[str, tuple[float, int]]]:
        batch = batches.collate(places)
        ids = batch.pop("example_id")
        labels = batch["labels"] if kind == "encoder-decoder" else batch.pop("labels")
        logits = model(**batch).logits  # [B, T, vocabulary]
        if kind == "decoder":  # position t predicts token t + 1. An encoder-decoder shifts its inputs itself.
            logits, labels = logits[:, :-1], labels[:, 1:]
        counted = labels != IGNORED
        losses = torch.zeros(labels.shape, device=logits.device)
        losses[counted] = F.cross_entropy(logits[counted].float(), labels[counted], reduction="none")
        return list(zip(ids, zip(losses.sum(1).tolist(), counted.sum(1).tolist(), strict=True), strict=True))

    for found in batches.processes.divided(read, batches.places):
        yield from found


def token_loss(model: Any, batches: Batches, kind: ModelKind) -> float:
    """The mean loss of all labelled tokens; it does not depend on the batches."""
    return _mean([losses for _, losses in token_losses(model, batches, kind)])


def _mean(losses: Sequence[tuple[float, int]]) -> float:
    return sum(total for total, _ in losses) / sum(count for _, count in losses)
