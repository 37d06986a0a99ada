"""Tokens of chats, by the tokenizer's chat template, and which of them are the assistant's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from frostline.core.errors import DataError, UnsupportedModel
from frostline.tasks._task import Example, Message

Conversation = list[dict[str, str]]


def chat_tokens(tokenizer: Any, example: Example) -> tuple[list[int], list[bool]]:
    """Token ids of a chat, and for each whether the assistant wrote it. Turns after the assistant's last are left out.

    Where the template marks the assistant's text (`{% generation %}`), the marks are used. Else the chat is rendered up
    to each turn of the assistant, without and with it. The difference is the assistant's text. The parts are tokenized
    separately, so that an answer follows exactly the tokens from which it is generated later.

    Raises `UnsupportedModel` when there is no template, or when it changes earlier turns, so that the parts cannot be
    found. Raises `DataError` when the template refuses the chat.
    """
    if not tokenizer.chat_template:
        raise UnsupportedModel(
            "the tokenizer has no chat template, which the column 'messages' needs: use a chat model's "
            "tokenizer, or map columns to prompt and completion"
        )
    last = max(i for i, message in enumerate(example.messages) if message.role == "assistant")
    messages = example.messages[: last + 1]
    if re.search(r"\{%-?\s*generation\b", str(tokenizer.chat_template)):
        return _marked_tokens(tokenizer, example, messages)
    ids: list[int] = []
    answers: list[bool] = []
    for text, answer in _segments(tokenizer, example, messages):
        part = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        ids += part
        answers += [answer] * len(part)
    return ids, answers


def _marked_tokens(tokenizer: Any, example: Example, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
    encoded = _apply(tokenizer, example, messages, tokenize=True, return_assistant_tokens_mask=True)
    return list(encoded["input_ids"]), [bool(flag) for flag in encoded["assistant_masks"]]


def _segments(tokenizer: Any, example: Example, messages: Sequence[Message]) -> list[tuple[str, bool]]:
    """The rendered chat in parts: (text, whether it is the assistant's)."""
    whole = _apply(tokenizer, example, messages, tokenize=False)
    segments: list[tuple[str, bool]] = []
    done = 0
    for i, message in enumerate(messages):
        if message.role != "assistant":
            continue
        start = _apply(tokenizer, example, messages[:i], tokenize=False, add_generation_prompt=True) if i else ""
        end = _apply(tokenizer, example, messages[: i + 1], tokenize=False)
        if not (whole.startswith(start) and whole.startswith(end) and done <= len(start) < len(end)):
            raise UnsupportedModel(
                f"{example.id}: the chat template does not show where the assistant's turns are: use a template with "
                "{% generation %} marks, or chats with one answer, at the end"
            )
        segments += [(whole[done : len(start)], False), (whole[len(start) : len(end)], True)]
        done = len(end)
    return [(text, answer) for text, answer in segments if text]


def _apply(tokenizer: Any, example: Example, messages: Sequence[Message], **options: Any) -> Any:
    conversation: Conversation = [message._asdict() for message in messages]
    try:
        return tokenizer.apply_chat_template(conversation, tools=list(example.tools) or None, **options)
    except Exception as error:  # a template raises jinja's errors, and transformers does not catch them
        raise DataError(f"{example.id}: the chat template refuses this chat: {error}") from error
