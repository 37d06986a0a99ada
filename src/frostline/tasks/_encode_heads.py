"""Rows for models with a head: one or two texts, words with tags, windows of a context, several choices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from frostline.core.errors import DataError, UnsupportedModel
from frostline.core.labels import IGNORED
from frostline.rows import TaskKind, values_of
from frostline.tasks._clip import clip_texts
from frostline.tasks._task import Example, Task
from frostline.tasks._tokenize import prompt_tokens
from frostline.tasks._words import windows, word_tokens

Row = dict[str, Any]


@dataclass(frozen=True)
class Whole:
    """What an encoder, which gets some examples of a split at a time, has to know of all of them.

    Attributes:
        first: the first one.
        paired: whether any has a second text.
    """

    first: Example
    paired: bool

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Whole:
        """Of the examples of a split, at least one."""
        seconds = values_of(examples, "pair", lambda example: example.pair)
        return cls(examples[0], any(second is not None for second in seconds))


def pairs(
    task: Task, examples: Sequence[Example], tokenizer: Any, max_length: int, whole: Whole
) -> Iterator[tuple[Row, bool]]:
    """Texts, or pairs of texts, in the tokenizer's own frame; the longer text is cut."""
    firsts = [example.text for example in examples]
    seconds = [example.pair or "" for example in examples]
    encoded = _paired(tokenizer, firsts, seconds if whole.paired else None, max_length)
    for example, (row, cut) in zip(examples, encoded, strict=True):
        yield row | {"labels": _label(task, example)}, cut


def ended_pairs(
    task: Task, examples: Sequence[Example], tokenizer: Any, max_length: int, whole: Whole
) -> Iterator[tuple[Row, bool]]:
    """As `pairs`, with an end token, which the heads of encoder-decoders read, also where the tokenizer adds none.

    Raises `UnsupportedModel` for a tokenizer without an end token, or where it is the pad token too.
    """
    end = tokenizer.eos_token_id
    if end is None or end == tokenizer.pad_token_id:
        raise UnsupportedModel(
            "this model's head reads the end token, and the tokenizer has none that is not its pad token too: set "
            "eos_token and pad_token"
        )
    for row, cut in pairs(task, examples, tokenizer, max_length, whole):
        ids = row["input_ids"]
        if end in ids:
            yield row, cut
        else:
            yield row | {"input_ids": [*ids[: max_length - 1], end]}, cut or len(ids) == max_length


def joined_pairs(
    task: Task, examples: Sequence[Example], tokenizer: Any, max_length: int, whole: Whole
) -> Iterator[tuple[Row, bool]]:
    """Texts, or pairs of texts with a line break between them, cut at the start."""
    texts = [e.text if e.pair is None else f"{e.text}\n{e.pair}" for e in examples]
    texts = clip_texts(tokenizer, texts, max_length, "end")
    for example, tokens in zip(examples, prompt_tokens(tokenizer, texts, closed=False), strict=True):
        yield {"input_ids": tokens.last(max_length), "labels": _label(task, example)}, len(tokens.ids) > max_length


def tagged_words(
    task: Task, examples: Sequence[Example], tokenizer: Any, max_length: int, whole: Whole
) -> Iterator[tuple[Row, bool]]:
    """Words, with each one's tag on its first token."""
    for example in examples:
        tokens = word_tokens(tokenizer, example.words, max_length)
        labels = [IGNORED] * len(tokens.inputs["input_ids"])
        for place, tag in zip(tokens.first, example.tags, strict=True):
            if place is not None:
                labels[place] = tag
        yield tokens.inputs | {"labels": labels}, tokens.cut


def answer_windows(
    task: Task, examples: Sequence[Example], tokenizer: Any, max_length: int, whole: Whole
) -> Iterator[tuple[list[Row], bool]]:
    """The windows of each context, with the first and the last token of the first answer.

    A window without the whole answer has both at the class token, as transformers' question answering example does.
    """
    for example in examples:
        context = example.pair or ""
        for answer, start in example.answers:
            if context[start : start + len(answer)] != answer:
                raise DataError(f"{example.id}: the answer '{answer}' is not at character {start} of the context")
        found, cut = windows(tokenizer, example.text, context, max_length)
        rows = []
        for window in found:
            first = last = window.none
            if example.answers:
                answer, start = example.answers[0]
                first, last = window.find((start, start + len(answer)))
            rows.append(window.inputs | {"start_positions": first, "end_positions": last})
        yield rows, cut


def choices(
    task: Task, examples: Sequence[Example], tokenizer: Any, max_length: int, whole: Whole
) -> Iterator[tuple[Row, bool]]:
    """The text with each of its choices, as pairs: inputs of [choices, tokens].

    Raises `DataError` where the examples have different numbers of choices, which the head cannot batch.
    """
    count = len(whole.first.choices)
    for example in examples:
        if len(example.choices) != count:
            raise DataError(
                f"{example.id} has {len(example.choices)} choices and {whole.first.id} has {count}: this model's head "
                "needs the same number in all rows: use such rows, or a decoder"
            )
    firsts = [example.text for example in examples for _ in example.choices]
    seconds = [choice for example in examples for choice in example.choices]
    encoded = list(_paired(tokenizer, firsts, seconds, max_length))
    for number, example in enumerate(examples):
        own = encoded[number * count : (number + 1) * count]
        row: Row = {name: [one[name] for one, _ in own] for name in own[0][0]}
        yield row | {"labels": example.label}, any(cut for _, cut in own)


def as_completions(example: Example) -> list[Example]:
    """Each choice as the completion of the text and a line break: a decoder chooses the one that it expects most."""
    return [
        replace(example, id=f"{example.id}/{number}", text=f"{example.text}\n", target=choice)
        for number, choice in enumerate(example.choices)
    ]


def _paired(
    tokenizer: Any, firsts: list[str], seconds: list[str] | None, max_length: int
) -> Iterator[tuple[Row, bool]]:
    """Where both texts are very long, one of them, not always the longer, gets the odd token that is left."""
    texts = [clip_texts(tokenizer, part, max_length, "start") for part in (firsts, seconds) if part is not None]
    whole = tokenizer(*texts, verbose=False)["input_ids"]
    cut = tokenizer(*texts, truncation=True, max_length=max_length)
    names = [name for name in cut if name != "attention_mask"]
    for number, ids in enumerate(whole):
        yield {name: cut[name][number] for name in names}, len(ids) > max_length


def _label(task: Task, example: Example) -> int | float | list[float] | None:
    if task.kind is TaskKind.REGRESSION:
        return float(example.value or 0)
    if task.kind is TaskKind.MULTI_LABEL:
        return [float(label in (example.labels or ())) for label in range(len(task.labels))]
    return example.label
