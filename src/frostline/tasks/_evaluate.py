"""Evaluate a model on a task."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from frostline.core.seeding import derive_seed
from frostline.processes import ALONE, Processes
from frostline.rows import TaskKind
from frostline.tasks._collate import Collator
from frostline.tasks._decoding import Decoding
from frostline.tasks._encode import encode
from frostline.tasks._encode_heads import as_completions
from frostline.tasks._eval_batches import MOST_ROWS, batches, vocabulary
from frostline.tasks._generate import generate_texts
from frostline.tasks._metrics import perplexity
from frostline.tasks._predict import (
    HEADS,
    Asked,
    Batches,
    ModelAnswer,
    choose_by_loss,
    outputs,
    token_loss,
    token_losses,
)
from frostline.tasks._task import Example, Split, Task
from frostline.tasks._tokenize import model_kind

GREEDY = Decoding()


@dataclass(frozen=True)
class Evaluation:
    """Metric name -> value on a task, and the model's answers (none for plain text and chats).

    `labels` are the task's, in the model's order; `notices` say what a reader of the results should know.
    """

    task: str
    rows: int
    metrics: dict[str, float]
    predictions: tuple[ModelAnswer, ...]
    labels: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()

    def json_lines(self) -> str:
        """The answers as JSON, one line for each."""
        return "".join(json.dumps(item.document(), ensure_ascii=False) + "\n" for item in self.predictions)


def evaluate(
    model: Any,
    tokenizer: Any,
    task: Task,
    *,
    batch_size: int | None = None,
    max_length: int = 128,
    generate_rows: int | None = None,
    max_new_tokens: int = 128,
    decoding: Decoding = GREEDY,
    device: torch.device | str | None = None,
    split: Split = "eval",
    processes: Processes = ALONE,
) -> Evaluation:
    """Evaluate a model on one split of a task.

    - Tasks that a head does: the metrics of their kind (`METRICS`), and `loss`, the mean over examples (over labelled
      words in tagging, over the windows of contexts in extraction). Decoders and encoder-decoders choose among texts by
      their loss.
    - Generation: `loss`, the mean over all labelled tokens of the split (it does not depend on the batches);
      `perplexity`; and the task's scores of generated texts.
    - Plain text and chats: `loss` and `perplexity`.

    Losses are in nats. The model runs in evaluation mode and without gradients, under autocast where the caller uses
    it. Every module's training mode and torch's random state are put back.

    Args:
        model: the model.
        tokenizer: a tokenizer with a pad token (`prepare_tokenizer`).
        task: the task.
        batch_size: how many rows a batch has; None: at most 32, and as many as the loss of a language model has room
            for (`tasks._eval_batches`).
        max_length: at most this many input tokens for each example.
        generate_rows: for how many distinct prompts texts are generated (`generation_examples`); None is the task's
            own number, 0 generates none. Prompts are those of the task's questions, where it has any, else of the
            split.
        max_new_tokens: generate at most this many tokens, where `decoding` has no number.
        decoding: how texts are generated.
        device: where batches go; None is the model's own device.
        split: `train` or `eval`.
        processes: which divide the batches between them, and all get the results. Batches, and so the results, are
            those of one process. Texts that are drawn are drawn by each process.
    """
    from frostline.hooks import device_of, evaluation_mode

    kind = model_kind(model.config)
    device = device or device_of(model)
    asked, by_loss = task, task.kind is TaskKind.CHOICE and kind != "encoder"
    if by_loss:
        every = [one for example in task.split(split) for one in as_completions(example)]
        asked = replace(task, kind=TaskKind.GENERATION, train=every, eval=every)
    encoded = encode(asked, split, tokenizer, max_length, kind)
    encoded.check_ids(tokenizer, model.config)
    grouped = batches(encoded, batch_size, vocabulary(task.kind, model.config))
    collator = Collator(tokenizer, keep_ids=True)

    def collate(places: Sequence[int]) -> dict[str, Any]:
        batch = collator([encoded.rows[place] for place in places])
        return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}

    divided = Batches(grouped, collate, processes)
    given = Asked(task, task.split(split), [row["example_id"] for row in encoded.rows], tokenizer, max_length)
    with evaluation_mode(model), torch.inference_mode():
        if task.kind in HEADS:
            found = (
                choose_by_loss(given, token_losses(model, divided, kind))
                if by_loss
                else HEADS[task.kind](given, outputs(model, divided))
            )
            return Evaluation(task.name, len(given.examples), found[0], tuple(found[1]))
        loss = token_loss(model, divided, kind)
    metrics = {"loss": loss, "perplexity": perplexity(loss)}
    rows = task.generate_rows if generate_rows is None else generate_rows
    if task.kind is not TaskKind.GENERATION or not rows:
        return Evaluation(task.name, len(task.split(split)), metrics, ())
    questions = task.questions if split == "eval" and task.questions else task.split(split)
    examples = generation_examples(questions, rows)
    with _drawing(decoding):
        texts = generate_texts(
            model,
            tokenizer,
            [example.text for example in examples],
            batch_size=batch_size or MOST_ROWS,
            max_length=max_length,
            device=device,
            processes=ALONE if decoding.do_sample else processes,
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
