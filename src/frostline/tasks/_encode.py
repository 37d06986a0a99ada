"""From examples to token ids and labels.

Every row has `input_ids`, `labels` and `example_id`, and for encoders the tokenizer's other outputs (`token_type_ids`).
Rows have no padding: the collator adds it, and the attention mask.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

from frostline.core.errors import DataError, UnsupportedModel
from frostline.core.labels import IGNORED
from frostline.tasks._chat import chat_tokens
from frostline.tasks._task import Example, Split, Task, TaskKind
from frostline.tasks._tokenize import ModelKind, Tokens, continuation_tokens, prompt_tokens

EncodedRow = dict[str, Any]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoded(Sequence[EncodedRow]):
    """Encoded examples in order: a map-style data set for any loader or trainer.

    Attributes:
        rows: the encoded examples.
        truncated: how many of them were cut to the maximum length.
    """

    rows: Sequence[EncodedRow]
    truncated: int

    @overload
    def __getitem__(self, index: int) -> EncodedRow: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[EncodedRow]: ...
    def __getitem__(self, index: int | slice) -> EncodedRow | Sequence[EncodedRow]:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> list[int]:
        """The number of input tokens of each example."""
        return [len(row["input_ids"]) for row in self.rows]


def encode(task: Task, split: Split, tokenizer: Any, max_length: int, kind: ModelKind) -> Encoded:
    """Encode one split of a task for a kind of model.

    - Classification, encoders and encoder-decoders: the tokenizer's own encoding of a pair; the longer text is cut.
    - Classification, decoders: `text`, a line break, `pair`, and no end token, so that the classification head reads
      the last token of the pair. Cut on the left.
    - Generation, decoders: prompt, completion, end token. Prompt and completion are tokenized separately, so that the
      prompt has the same tokens as in generation. The prompt has no labels unless the task trains on it. Where a row
      is too long, the prompt is cut on the left; a completion is cut, at its end, only where one prompt token and the
      completion are too long.
    - Generation, encoder-decoders: the prompt goes to the encoder, the completion is the labels. Each is cut to
      `max_length`.
    - Plain text, decoders: the text and the end token, all with labels. Cut at the end.
    - Chats, decoders: the tokenizer's chat template, with labels on the assistant's turns, or on all turns where the
      task trains on the prompt. Cut on the left.

    Args:
        task: the task.
        split: `train` or `eval`.
        tokenizer: a prepared tokenizer (`prepare_tokenizer`).
        max_length: at most this many input tokens for each example. `Encoded.truncated` counts the examples that
            were cut, and a log line says it.
        kind: the kind of model.

    Raises `DataError` when the split has no rows. Raises `UnsupportedModel` when the kind of model cannot do the kind
    of task, or the tokenizer lacks an end token or a chat template that is needed.
    """
    examples = task.split(split)
    if not examples:
        raise DataError(task.no_training or f"task '{task.name}': {task.source} has no {split} rows: add some")
    pairs = list(_encoder(task, kind)(task, examples, tokenizer, max_length))
    rows = [{**row, "example_id": example.id} for (row, _), example in zip(pairs, examples, strict=True)]
    truncated = sum(cut for _, cut in pairs)
    if truncated:
        _log.info("%s, %s: %d of %d examples cut to %d tokens", task.name, split, truncated, len(rows), max_length)
    return Encoded(rows, truncated)


Encoder = Callable[[Task, Sequence[Example], Any, int], Iterator[tuple[EncodedRow, bool]]]


def _encoder(task: Task, kind: ModelKind) -> Encoder:
    chat = any(example.messages for example in task.train[:1])
    table: dict[tuple[TaskKind, ModelKind], Encoder] = {
        (TaskKind.CLASSIFICATION, "encoder"): _pairs,
        (TaskKind.CLASSIFICATION, "encoder-decoder"): _pairs,
        (TaskKind.CLASSIFICATION, "decoder"): _joined_pairs,
        (TaskKind.GENERATION, "decoder"): _completions,
        (TaskKind.GENERATION, "encoder-decoder"): _translations,
        (TaskKind.LANGUAGE, "decoder"): _chats if chat else _texts,
    }
    if (task.kind, kind) not in table:
        raise UnsupportedModel(
            f"task '{task.name}' is a {task.kind} task, which an {kind} model cannot do: use a decoder model"
        )
    return table[task.kind, kind]


def _pairs(
    task: Task, examples: Sequence[Example], tokenizer: Any, max_length: int
) -> Iterator[tuple[EncodedRow, bool]]:
    texts: list[list[str]] = [[example.text for example in examples]]
    if any(example.pair is not None for example in examples):
        texts.append([example.pair or "" for example in examples])
    whole = tokenizer(*texts, verbose=False)
    cut = tokenizer(*texts, truncation=True, max_length=max_length)
    names = [name for name in cut if name != "attention_mask"]
    for i, example in enumerate(examples):
        row = {name: cut[name][i] for name in names}
        yield row | {"labels": example.label}, len(whole["input_ids"][i]) > max_length


def _joined_pairs(
    task: Task, examples: Sequence[Example], tokenizer: Any, max_length: int
) -> Iterator[tuple[EncodedRow, bool]]:
    texts = [e.text if e.pair is None else f"{e.text}\n{e.pair}" for e in examples]
    for example, tokens in zip(examples, prompt_tokens(tokenizer, texts, closed=False), strict=True):
        row = {"input_ids": tokens.last(max_length), "labels": example.label}
        yield row, len(tokens.ids) > max_length


def _completions(
    task: Task, examples: Sequence[Example], tokenizer: Any, max_length: int
) -> Iterator[tuple[EncodedRow, bool]]:
    prompts = prompt_tokens(tokenizer, [example.text for example in examples], closed=False)
    targets = continuation_tokens(tokenizer, [example.target or "" for example in examples])
    for prompt, target in zip(prompts, targets, strict=True):
        before, after = _fit(prompt, target, max_length)
        labels = [*(before if task.train_on_prompt else [IGNORED] * len(before)), *after]
        yield {"input_ids": before + after, "labels": labels}, len(prompt.ids) + len(target) > max_length


def _fit(prompt: Tokens, target: list[int], most: int) -> tuple[list[int], list[int]]:
    kept = min(len(prompt.ids), max(most - len(target), prompt.head + 1))
    return prompt.last(kept), target[: most - kept]


def _translations(
    task: Task, examples: Sequence[Example], tokenizer: Any, max_length: int
) -> Iterator[tuple[EncodedRow, bool]]:
    prompts = prompt_tokens(tokenizer, [example.text for example in examples], closed=True)
    targets = continuation_tokens(tokenizer, [example.target or "" for example in examples])
    for prompt, target in zip(prompts, targets, strict=True):
        row = {"input_ids": prompt.last(max_length), "labels": target[:max_length]}
        yield row, max(len(prompt.ids), len(target)) > max_length


def _texts(
    task: Task, examples: Sequence[Example], tokenizer: Any, max_length: int
) -> Iterator[tuple[EncodedRow, bool]]:
    for tokens in prompt_tokens(tokenizer, [example.text for example in examples], closed=False):
        ids = [*tokens.ids, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])]
        yield {"input_ids": ids[:max_length], "labels": ids[:max_length]}, len(ids) > max_length


def _chats(
    task: Task, examples: Sequence[Example], tokenizer: Any, max_length: int
) -> Iterator[tuple[EncodedRow, bool]]:
    for example in examples:
        ids, answers = chat_tokens(tokenizer, example)
        labels = [
            token if task.train_on_prompt or answer else IGNORED for token, answer in zip(ids, answers, strict=True)
        ]
        cut = len(ids) > max_length
        yield {"input_ids": ids[-max_length:], "labels": labels[-max_length:]}, cut
