"""Tokens of chats, by the tokenizer's chat template, and which of them are the assistant's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from frostline.core.errors import DataError, UnsupportedModel, first_line
from frostline.tasks._task import Example, Message
from frostline.tasks._tokenize import Tokens, with_begin

ROLES = ("system", "user", "assistant", "tool", "developer")
"""The roles that templates are given without naming each of them."""
Span = tuple[int, int]
"""Where a text starts and ends in another, in characters."""


class ChatRow(NamedTuple):
    """The tokens of a chat, and for each whether it counts as the assistant's."""

    tokens: Tokens
    answers: list[bool]


def chat_rows(tokenizer: Any, example: Example) -> list[ChatRow]:
    """A chat as one row, or as several where the template changes earlier turns. Each answer counts in one row.

    Turns after the assistant's last are left out. Tokens are those of the tokenizer's own `apply_chat_template`. The
    assistant's text is what the template marks (`{% generation %}`), or else what is added when the chat is rendered
    with one more turn of the assistant, up to the token that ends the turn. An answer that the template renders
    otherwise once more turns follow (it may drop the thinking of earlier turns) counts in a row of its own, which ends
    with it. So each answer is learned after the same tokens as it is generated from.

    Raises `UnsupportedModel` when there is no template, or it does not show where the assistant's text is, and
    `DataError` when the template refuses the chat, does not know a role, or leaves the system message or the tools out.
    """
    left = [i for i, message in enumerate(example.messages) if message.role == "assistant"]
    rows: list[ChatRow] = []
    while left:
        chat = _Chat(tokenizer, example, left[-1] + 1)
        spans = {turn: found for turn in left if chat.keeps(turn) and (found := chat.spans_of(turn))}
        if left[-1] not in spans:
            raise UnsupportedModel(
                f"{example.id}: the chat template does not show where the assistant's turns are: use a template with "
                "{% generation %} marks, or one that leaves earlier turns as they are"
            )
        rows.insert(0, _row(tokenizer, example.id, chat.text, [span for found in spans.values() for span in found]))
        left = [turn for turn in left if turn not in spans]
    return rows


def chat_prompt(tokenizer: Any, example: Example) -> Tokens:
    """The tokens after which the assistant's next turn is generated. Raises as `chat_rows` does."""
    chat = _Chat(tokenizer, example, len(example.messages), add_generation_prompt=True)
    return with_begin(tokenizer, _ids(tokenizer, chat.text))


def turn_end(tokenizer: Any, example: Example) -> int | None:
    """The special token that ends the assistant's turns in this template; None where no such token follows a turn."""
    messages = (*example.messages, Message("assistant", "."))
    before = _rendered(tokenizer, example, example.messages, add_generation_prompt=True)
    after = _rendered(tokenizer, example, messages)
    if not after.startswith(before):
        return None
    end = after[len(before) :].rpartition(".")[2]
    special = _special(tokenizer)
    return next((token for token in _ids(tokenizer, end) if token in special), None)


def _special(tokenizer: Any) -> dict[int, str]:
    """The special and added tokens, with their texts."""
    ids = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return {token: str(tokenizer.convert_ids_to_tokens(token)) for token in ids}


class _Chat:
    """The first `count` messages of a chat, rendered by the template."""

    def __init__(self, tokenizer: Any, example: Example, count: int, *, add_generation_prompt: bool = False) -> None:
        self._tokenizer = tokenizer
        self._example = example
        self._messages = example.messages[:count]
        self.text = self._render(count, add_generation_prompt=add_generation_prompt)
        for message in self._messages:
            if message.role == "system" and message.content.strip() not in self.text:
                raise DataError(
                    f"{example.id}: the chat template leaves the system message out: put its text into the first "
                    "message of the user"
                )
        bare = Example(example.id, messages=example.messages)
        if example.tools and self.text == _rendered(
            tokenizer, bare, self._messages, add_generation_prompt=add_generation_prompt
        ):
            raise DataError(
                f"{example.id}: the chat template leaves the tools out: use a template with tools, or remove them"
            )
        template = tokenizer.get_chat_template(tools=list(example.tools) or None)
        _check_roles(example, template)
        self._marks: list[Span] | None = None
        if re.search(r"\{%-?\s*generation\b", template):
            from transformers.utils.chat_template_utils import render_jinja_template

            _, [marks] = render_jinja_template(
                conversations=[_plain(self._messages)],
                tools=list(example.tools) or None,
                chat_template=template,
                return_assistant_tokens_mask=True,
                **tokenizer.special_tokens_map,
            )
            self._marks = [(start, end) for start, end in marks if start < end]

    def keeps(self, turn: int) -> bool:
        """Whether a turn, and all before it, are rendered as when it was the last."""
        return turn + 1 == len(self._messages) or self.text.startswith(self._render(turn + 1))

    def spans_of(self, turn: int) -> list[Span]:
        """Where a turn of the assistant that the template keeps is in the text; empty where that is not shown."""
        end = len(self._render(turn + 1))
        if self._marks is not None:
            before = self._render(turn) if turn else ""
            kept = self.text.startswith(before)
            return [span for span in self._marks if kept and len(before) <= span[0] < end]
        before = self._render(turn, add_generation_prompt=True) if turn else ""
        end -= self._after_end(turn, self.text[:end])
        return [(len(before), end)] if self.text.startswith(before) and len(before) < end else []

    def _after_end(self, turn: int, text: str) -> int:
        """How much of a text that a turn ends is written after the token that ends the turn, such as a line break."""
        short = (*self._messages[:turn], self._messages[turn]._replace(content="."))
        tail = _rendered(self._tokenizer, self._example, short).rpartition(".")[2]
        ends = [(tail.index(end), end) for end in _special(self._tokenizer).values() if end in tail]
        if not ends or not text.endswith(tail):
            return 0
        place, end = min(ends)
        return len(tail) - place - len(end)

    def _render(self, count: int, **options: Any) -> str:
        return _rendered(self._tokenizer, self._example, self._messages[:count], **options)


def _rendered(tokenizer: Any, example: Example, messages: Sequence[Message], **options: Any) -> str:
    if not tokenizer.chat_template:
        raise UnsupportedModel(
            "the tokenizer has no chat template, which messages need: use the tokenizer of a chat model, or rows with "
            "prompt and completion"
        )
    try:
        text = tokenizer.apply_chat_template(
            _plain(messages), tools=list(example.tools) or None, tokenize=False, **options
        )
    except Exception as error:  # a template raises jinja's errors, and transformers does not catch them
        roles = ", ".join([*(message.role for message in messages[:6]), *(["..."] if len(messages) > 6 else [])])
        raise DataError(
            f"{example.id}: the chat template refuses this chat: {first_line(error)} (its turns: {roles})"
        ) from error
    return str(text)


def _check_roles(example: Example, template: str) -> None:
    """Raise `DataError` for roles that are neither usual nor named in the template, also in turns that are left out."""
    roles = dict.fromkeys(message.role for message in example.messages)
    unknown = [
        role for role in roles if role not in ROLES and not re.search(rf"""["']{re.escape(role)}["']""", template)
    ]
    if unknown:
        raise DataError(
            f"{example.id}: the chat has roles that its template does not name: {', '.join(unknown)}: rename them to "
            f"one of {', '.join(ROLES)} (or human, gpt in 'from'), or use a template for them"
        )


def _plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [message._asdict() for message in messages]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _row(tokenizer: Any, name: str, text: str, spans: Sequence[Span]) -> ChatRow:
    ids = _ids(tokenizer, text)
    answers = [False] * len(ids)
    for start, end in spans:
        before, after = (_ids(tokenizer, text[:place]) for place in (start, end))
        if ids[: len(before)] != before or ids[: len(after)] != after:  # a token lies across the start or the end
            return _row_in_parts(tokenizer, name, text, spans)
        answers[len(before) : len(after)] = [True] * (len(after) - len(before))
    return ChatRow(with_begin(tokenizer, ids), answers)


def _row_in_parts(tokenizer: Any, name: str, text: str, spans: Sequence[Span]) -> ChatRow:
    """The row with each part tokenized apart, so that an answer follows the tokens from which it is generated."""
    ids: list[int] = []
    answers: list[bool] = []
    places = [0, *(place for span in spans for place in span), len(text)]
    for number, (start, end) in enumerate(pairwise(places)):
        part = _ids(tokenizer, text[start:end])
        ids += part
        answers += [number % 2 == 1] * len(part)
    if tokenizer.decode(ids) != tokenizer.decode(_ids(tokenizer, text)):
        raise UnsupportedModel(
            f"{name}: the tokenizer joins the assistant's text with the text beside it: use a chat template with a "
            "special token or a line break between them"
        )
    return ChatRow(with_begin(tokenizer, ids), answers)
