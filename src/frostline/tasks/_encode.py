"""From examples to token ids and labels.

Every row has `input_ids`, `labels` and `example_id`, and for encoders the tokenizer's other outputs (`token_type_ids`).
Rows have no padding: the collator adds it, and the attention mask.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, overload

import numpy as np

from frostline.core.cache import LABEL
from frostline.core.errors import DataError, UnsupportedModel, a_noun
from frostline.core.labels import IGNORED
from frostline.core.row_files import kept_rows, scratch
from frostline.rows import Stored, TaskKind, chunks_of, store
from frostline.tasks._chat import chat_rows
from frostline.tasks._clip import clip_texts
from frostline.tasks._encode_heads import (
    Whole,
    answer_windows,
    as_completions,
    choices,
    ended_pairs,
    joined_pairs,
    pairs,
    tagged_words,
)
from frostline.tasks._stored import FIGURES, Encoding, figures, stored_figure, texts_of
from frostline.tasks._task import Example, Split, Task
from frostline.tasks._tokenize import (
    ModelKind,
    Tokens,
    check_ids,
    continuation_tokens,
    ended,
    prompt_tokens,
    tokenizer_content,
)

EncodedRow = dict[str, Any]
Counts = np.ndarray[Any, np.dtype[np.int64]]
FORMAT = 1
"""Of the kept rows. It grows when an encoding changes."""
ROWS = "tokens.arrow"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoded(Sequence[EncodedRow]):
    """Encoded examples in order: a map-style data set for any loader or trainer.

    Attributes:
        rows: the encoded examples; an example with a long context has several.
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

    def __iter__(self) -> Iterator[EncodedRow]:
        return iter(self.rows)

    def check_ids(self, tokenizer: Any, config: Any, advice: str = "") -> None:
        """Check that a model of `config` knows every token of the rows (`tasks._tokenize.check_ids`).

        Raises `UnsupportedModel` or `DataError` too where the head of an encoder-decoder would not find its end token.
        """
        known = getattr(config.get_text_config(), "vocab_size", None)
        some_unknown = known is not None and any(self._figure("largest") >= known)
        labels = (row["labels"] for row in self.rows if isinstance(row.get("labels"), list))
        check_ids(tokenizer, chain(texts_of(self.rows), labels) if some_unknown else (), config, advice)
        if config.is_encoder_decoder and not len(self.label_counts(shifted=False)):
            _check_ends(tokenizer, texts_of(self.rows), config)

    @property
    def lengths(self) -> list[int]:
        """The number of input tokens of each row; of its longest text, where a row has several."""
        return list(self._figure("length").tolist())

    @property
    def label_lengths(self) -> list[int]:
        """How many labels of tokens each row has; empty where a row has a label of its own, or the places of an answer.

        Rows without such labels are left out.
        """
        found = self._figure("labels_count")
        return list(found[found >= 0].tolist())

    def label_counts(self, *, shifted: bool) -> Counts:
        """How many labels of tokens the loss counts in each row; rows without such labels are left out.

        With `shifted`, each token is predicted from those before it, so that the first one's label does not count.
        """
        counts = self._figure("counted_after_first" if shifted else "counted")
        return counts[self._figure("labels_count") >= 0]

    def _figure(self, name: str) -> Counts:
        return self._figures[name] if self._figures else np.asarray(stored_figure(self.rows, name))

    @cached_property
    def _figures(self) -> Mapping[str, Counts]:
        """Those of rows in memory. Those of rows in a file are columns there."""
        if isinstance(self.rows, Stored):
            return {}
        table = np.array([figures(row) for row in self.rows], dtype=np.int64).reshape(-1, len(FIGURES))
        return dict(zip(FIGURES, table.T, strict=True))

    @property
    def texts(self) -> int:
        """How many texts a row has: the choices, where a head chooses among them, else 1."""
        ids = self.rows[0]["input_ids"]
        return len(ids) if isinstance(ids[0], list) else 1


def encode(task: Task, split: Split, tokenizer: Any, max_length: int, kind: ModelKind) -> Encoded:
    """Encode one split of a task for a kind of model.

    - Classification, multi-label and regression, encoders and encoder-decoders: the tokenizer's own encoding of a pair;
      the longer text is cut.
    - The same, decoders: `text`, a line break, `pair`, and no end token, so that the head reads the last token of the
      pair. Cut on the left.
    - Tagging: the words with a space between them, and each word's tag on its first token. Cut after a whole word.
    - Extraction, encoders: the question with the context, in as many rows as the context needs. A question with more
      than half of `max_length` tokens is cut.
    - Multiple choice, encoders: the text with each choice, as pairs. Others: the right choice as the completion of the
      text and a line break.
    - Generation, decoders: prompt, completion, end token. Prompt and completion are tokenized separately, so that the
      prompt has the same tokens as in generation. The prompt has no labels unless the task trains on it. Where a row
      is too long, the prompt is cut on the left; a completion is cut, at its end, only where one prompt token and the
      completion are too long.
    - Generation, encoder-decoders: the prompt goes to the encoder, the completion is the labels. Each is cut to
      `max_length`.
    - Plain text, decoders: the text and the end token, all with labels. Cut at the end.
    - Chats, decoders: the tokenizer's chat template, with labels on the assistant's turns, or on all turns where the
      task trains on the prompt. Cut on the left. A chat whose template changes earlier turns has several rows.

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
    if kind not in able_models(task.kind):
        raise UnsupportedModel(
            f"task '{task.name}' is {a_noun(task.kind)} task, which {a_noun(kind)} model cannot do: use "
            f"{' or '.join(map(a_noun, able_models(task.kind)))} model"
        )
    if isinstance(examples, Stored):
        encoded = _kept(task, split, examples, tokenizer, max_length, kind)
    else:
        cuts: list[bool] = []
        encoded = Encoded(list(_rows(task, examples, tokenizer, max_length, kind, cuts.append)), sum(cuts))
    if cut := encoded.truncated:
        _log.info("%s, %s: %d of %d examples cut to %d tokens", task.name, split, cut, len(examples), max_length)
    return encoded


def _rows(
    task: Task,
    examples: Sequence[Example],
    tokenizer: Any,
    max_length: int,
    kind: ModelKind,
    cut: Callable[[bool], None],
) -> Iterator[EncodedRow]:
    """The encoded rows of the examples, which are read as they are needed; `cut` is told of each whether it was cut."""
    encoder, whole = _ENCODERS[task.kind][kind], Whole.of(examples)
    for some in chunks_of(examples):
        for (own, was_cut), example in zip(encoder(task, some, tokenizer, max_length, whole), some, strict=True):
            cut(was_cut)
            for row in own if isinstance(own, list) else [own]:
                yield {**row, "example_id": example.id}


def _kept(
    task: Task, split: Split, examples: Sequence[Example], tokenizer: Any, max_length: int, kind: ModelKind
) -> Encoded:
    """Rows in the cache, by the content of the task and of the tokenizer."""

    def make(place: Path) -> dict[str, Any]:
        cuts: Counter[bool] = Counter()
        rows = _rows(task, examples, tokenizer, max_length, kind, lambda cut: cuts.update((cut,)))
        first = next(rows)
        stored = store(chain([first], rows), Encoding.like(first), place / ROWS)
        return {"rows": len(stored), "truncated": cuts[True]}

    content = tokenizer_content(tokenizer)
    if content is None:
        folder = scratch()
        facts: Mapping[str, Any] = make(folder)
    else:
        folder, facts = kept_rows(
            {
                LABEL: f"tokens of {task.name}, {split}",
                "holds": "tokens",
                "format": FORMAT,
                "task": task.fingerprint,
                "split": split,
                "train_on_prompt": task.train_on_prompt,
                "tokenizer": content,
                "max_length": max_length,
                "kind": kind,
            },
            make,
        )
    return Encoded(Stored(folder / ROWS, Encoding.of(folder / ROWS)), facts["truncated"])


EncodedRows = Iterator[tuple[EncodedRow | list[EncodedRow], bool]]
"""For each example its row, or rows, and whether it was cut."""
Encoder = Callable[[Task, Sequence[Example], Any, int, Whole], EncodedRows]


def _right_choices(write: Encoder) -> Encoder:
    """Rows of the right choices alone, as completions."""

    def rows(task: Task, examples: Sequence[Example], tokenizer: Any, max_length: int, whole: Whole) -> EncodedRows:
        right = [as_completions(example)[example.label or 0] for example in examples]
        return write(task, right, tokenizer, max_length, whole)

    return rows


def _completions(task: Task, examples: Sequence[Example], tokenizer: Any, max_length: int, whole: Whole) -> EncodedRows:
    prompts, targets = _prompts_and_targets(examples, tokenizer, max_length, closed=False)
    for prompt, target in zip(prompts, targets, strict=True):
        before, after = _fit(prompt, target, max_length)
        labels = [*(before if task.train_on_prompt else [IGNORED] * len(before)), *after]
        yield {"input_ids": before + after, "labels": labels}, len(prompt.ids) + len(target) > max_length


def _prompts_and_targets(
    examples: Sequence[Example], tokenizer: Any, max_length: int, *, closed: bool
) -> tuple[list[Tokens], list[list[int]]]:
    prompts = clip_texts(tokenizer, [example.text for example in examples], max_length, "end")
    targets = clip_texts(tokenizer, [example.target or "" for example in examples], max_length, "start")
    return prompt_tokens(tokenizer, prompts, closed=closed), continuation_tokens(tokenizer, targets)


def _fit(prompt: Tokens, target: list[int], most: int) -> tuple[list[int], list[int]]:
    kept = min(len(prompt.ids), max(most - len(target), prompt.head + 1))
    return prompt.last(kept), target[: most - kept]


def _translations(
    task: Task, examples: Sequence[Example], tokenizer: Any, max_length: int, whole: Whole
) -> EncodedRows:
    prompts, targets = _prompts_and_targets(examples, tokenizer, max_length, closed=True)
    for prompt, target in zip(prompts, targets, strict=True):
        row = {"input_ids": prompt.last(max_length), "labels": target[:max_length]}
        yield row, max(len(prompt.ids), len(target)) > max_length


def _language(task: Task, examples: Sequence[Example], tokenizer: Any, max_length: int, whole: Whole) -> EncodedRows:
    chat = bool(whole.first.messages)
    return (_chats if chat else _texts)(task, examples, tokenizer, max_length, whole)


def _texts(task: Task, examples: Sequence[Example], tokenizer: Any, max_length: int, whole: Whole) -> EncodedRows:
    texts = clip_texts(tokenizer, [example.text for example in examples], max_length, "start")
    end = tokenizer.eos_token_id
    for tokens in prompt_tokens(tokenizer, texts, closed=False):
        ids = ended(end, tokens.ids)
        yield {"input_ids": ids[:max_length], "labels": ids[:max_length]}, len(ids) > max_length


def _chats(task: Task, examples: Sequence[Example], tokenizer: Any, max_length: int, whole: Whole) -> EncodedRows:
    for example in examples:
        rows: list[EncodedRow] = []
        cut, before = False, list[int]()
        for tokens, answers in chat_rows(tokenizer, example):
            new = _common_start(before, tokens.ids)  # what stands in the row before it too has counted there
            counted = [answer or (task.train_on_prompt and i >= new) for i, answer in enumerate(answers)]
            labels = [token if counts else IGNORED for token, counts in zip(tokens.ids, counted, strict=True)]
            rows.append({"input_ids": tokens.last(max_length), "labels": tokens.cut(labels, max_length)})
            cut = cut or len(tokens.ids) > max_length
            before = tokens.ids
        yield rows, cut


def _common_start(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids at the start are the same."""
    length = min(len(one), len(other))
    return next((i for i in range(length) if one[i] != other[i]), length)


def _check_ends(tokenizer: Any, texts: Iterable[list[int]], config: Any) -> None:
    """transformers' heads read the state at the last end token, and want the same number of them in all rows."""
    end = config.eos_token_id
    counts = [ids.count(end) for ids in texts]
    if 0 in counts:
        raise UnsupportedModel(
            f"this model's head reads the end token {end} (config.json: eos_token_id), and the tokenizer ends a text "
            f"with {tokenizer.eos_token_id}: use the model's own tokenizer"
        )
    if len(set(counts)) > 1:
        raise DataError(
            f"row {counts.index(max(counts)) + 1} has {max(counts)} end tokens ('{tokenizer.eos_token}') and others "
            f"{min(counts)}; this model's head needs the same number in all rows: remove it from the text"
        )


_PAIRS: dict[ModelKind, Encoder] = {"encoder": pairs, "encoder-decoder": ended_pairs, "decoder": joined_pairs}
_ENCODERS: Mapping[TaskKind, Mapping[ModelKind, Encoder]] = {
    TaskKind.CLASSIFICATION: _PAIRS,
    TaskKind.MULTI_LABEL: _PAIRS,
    TaskKind.REGRESSION: _PAIRS,
    TaskKind.TAGGING: {"encoder": tagged_words, "decoder": tagged_words},
    TaskKind.EXTRACTION: {"encoder": answer_windows},
    TaskKind.CHOICE: {
        "encoder": choices,
        "decoder": _right_choices(_completions),
        "encoder-decoder": _right_choices(_translations),
    },
    TaskKind.GENERATION: {"decoder": _completions, "encoder-decoder": _translations},
    TaskKind.LANGUAGE: {"decoder": _language},
}


def able_models(kind: TaskKind) -> tuple[ModelKind, ...]:
    """The kinds of models that can do a kind of task."""
    return tuple(_ENCODERS[kind])
