"""Evaluate a model on a task."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch.nn import functional as F

from frostline.core.labels import IGNORED
from frostline.core.seeding import derive_seed
from frostline.tasks._collate import Collator
from frostline.tasks._decoding import Decoding
from frostline.tasks._encode import Encoded, encode
from frostline.tasks._generate import generate_texts
from frostline.tasks._metrics import accuracy, macro_f1, perplexity
from frostline.tasks._task import Example, Split, Task, TaskKind
from frostline.tasks._tokenize import ModelKind, model_kind

GREEDY = Decoding()


@dataclass(frozen=True)
class ModelAnswer:
    """A model's answer to one example, as text, and the right answers.

    Attributes:
        id: the example's id.
        text: the answer.
        expected: the right answers.
        prompt: the prompt that the text was generated for; empty for a classification.
        marks: the scorer's marks of this text, such as `extracted` and `right`.
    """

    id: str
    text: str
    expected: tuple[str, ...]
    prompt: str = ""
    marks: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """Metric name -> value on a task, and the model's answers (none for plain text and chats)."""

    task: str
    rows: int
    metrics: dict[str, float]
    predictions: tuple[ModelAnswer, ...]

    def json_lines(self) -> str:
        """The answers as JSON, one line for each."""
        return "".join(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in self.predictions)


def evaluate(
    model: Any,
    tokenizer: Any,
    task: Task,
    *,
    batch_size: int = 32,
    max_length: int = 128,
    generate_rows: int | None = None,
    max_new_tokens: int = 128,
    decoding: Decoding = GREEDY,
    device: torch.device | str | None = None,
    split: Split = "eval",
) -> Evaluation:
    """Evaluate a model on one split of a task.

    - Classification: `accuracy`, `macro_f1`, and `loss`, the mean cross-entropy over examples.
    - Generation: `loss`, the mean over all labelled tokens of the split (it does not depend on the batches);
      `perplexity`; and the task's scores of generated texts.
    - Plain text and chats: `loss` and `perplexity`.

    Losses are in nats. The model runs in evaluation mode and without gradients, under autocast where the caller uses
    it. Every module's training mode and torch's random state are put back.

    Args:
        model: the model.
        tokenizer: a tokenizer with a pad token (`prepare_tokenizer`).
        task: the task.
        batch_size: how many rows a batch has.
        max_length: at most this many input tokens for each example.
        generate_rows: for how many distinct prompts texts are generated (`generation_examples`); None is the task's
            own number, 0 generates none. Prompts are those of the task's questions, where it has any, else of the
            split.
        max_new_tokens: generate at most this many tokens, where `decoding` has no number.
        decoding: how texts are generated.
        device: where batches go; None is the model's own device.
        split: `train` or `eval`.
    """
    from frostline.hooks import device_of, evaluation_mode

    kind = model_kind(model.config)
    device = device or device_of(model)
    encoded = encode(task, split, tokenizer, max_length, kind)
    batches = _batches(encoded, Collator(tokenizer, keep_ids=True), batch_size, device)
    with evaluation_mode(model), torch.inference_mode():
        if task.kind is TaskKind.CLASSIFICATION:
            return _classify(model, task, split, batches)
        loss = _token_loss(model, batches, kind)
    metrics = {"loss": loss, "perplexity": perplexity(loss)}
    rows = task.generate_rows if generate_rows is None else generate_rows
    if task.kind is not TaskKind.GENERATION or not rows:
        return Evaluation(task.name, len(task.split(split)), metrics, ())
    asked = task.questions if split == "eval" and task.questions else task.split(split)
    examples = generation_examples(asked, rows)
    with _drawing(decoding):
        texts = generate_texts(
            model,
            tokenizer,
            [example.text for example in examples],
            batch_size=batch_size,
            max_length=max_length,
            device=device,
            **decoding.keywords(max_new_tokens),
        )
    scores = task.score(examples, texts)
    marks: Sequence[Mapping[str, Any]] = scores.marks or [{}] * len(texts)
    predictions = tuple(
        ModelAnswer(example.id, text, example.references, example.text, mark)
        for example, text, mark in zip(examples, texts, marks, strict=True)
    )
    return Evaluation(task.name, len(task.split(split)), metrics | scores.metrics, predictions)


@contextmanager
def _drawing(decoding: Decoding) -> Iterator[None]:
    """Inside, torch draws by the decoding's seed. Its random state is put back afterwards."""
    if not decoding.do_sample:
        yield
        return
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(derive_seed(decoding.seed, "generated texts"))
        yield


def generation_examples(examples: Sequence[Example], count: int) -> list[Example]:
    """`count` examples with distinct prompts, the same for every run. A smaller count gives a part of a larger one's.

    One example represents all with the same prompt, and has the references of all of them. The draw does not use the
    run's seed, so that all runs are scored on the same prompts.
    """
    distinct: dict[str, Example] = {}
    for example in examples:
        first = distinct.setdefault(example.text, example)
        references = dict.fromkeys((*first.references, *example.references))
        distinct[example.text] = replace(first, references=tuple(references))
    drawn = list(distinct.values())
    random.Random(derive_seed(0, "generation examples")).shuffle(drawn)
    return drawn[:count]


def _batches(
    encoded: Encoded, collate: Collator, batch_size: int, device: torch.device | str
) -> Iterator[dict[str, Any]]:
    # Rows of similar length share a batch, which needs less padding.
    rows = sorted(encoded.rows, key=lambda row: len(row["input_ids"]))
    for start in range(0, len(rows), batch_size):
        batch = collate(rows[start : start + batch_size])
        yield {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def _classify(model: Any, task: Task, split: Split, batches: Iterator[dict[str, Any]]) -> Evaluation:
    total = 0.0
    predicted: dict[str, int] = {}
    for batch in batches:
        ids, labels = batch.pop("example_id"), batch.pop("labels")
        logits = model(**batch).logits.float()  # [batch, labels]
        total += F.cross_entropy(logits, labels, reduction="sum").item()
        predicted.update(zip(ids, logits.argmax(-1).tolist(), strict=True))
    examples = task.split(split)
    answers = [predicted[example.id] for example in examples]
    truth = [example.label for example in examples if example.label is not None]
    metrics = {
        "accuracy": accuracy(answers, truth),
        "macro_f1": macro_f1(answers, truth),
        "loss": total / len(examples),
    }
    predictions = (
        ModelAnswer(example.id, task.labels[answer], (task.labels[label],))
        for example, answer, label in zip(examples, answers, truth, strict=True)
    )
    return Evaluation(task.name, len(task.split(split)), metrics, tuple(predictions))


def _token_loss(model: Any, batches: Iterator[dict[str, Any]], kind: ModelKind) -> float:
    total, count = 0.0, 0
    for batch in batches:
        batch.pop("example_id")
        labels = batch["labels"] if kind == "encoder-decoder" else batch.pop("labels")
        logits = model(**batch).logits  # [batch, length, vocabulary]
        if kind == "decoder":  # position t predicts token t + 1. An encoder-decoder shifts its inputs itself.
            logits, labels = logits[:, :-1], labels[:, 1:]
        counted = labels != IGNORED
        total += F.cross_entropy(logits[counted].float(), labels[counted], reduction="sum").item()
        count += int(counted.sum())
    return total / count
