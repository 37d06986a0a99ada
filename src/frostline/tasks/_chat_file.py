"""Chats that a user gives to continue: a JSON file, or one with a chat on each line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from frostline.core.documents import parse_json
from frostline.core.errors import DataError
from frostline.core.files import read_text
from frostline.tasks._task import Example, Message

KEYS = ("messages", "tools", "system")


def read_chats(path: Path) -> list[Example]:
    """The chats in a file, each to be continued by the assistant.

    A chat is a list of messages with `role` and `content`, or an object with `messages` and, where they are needed,
    `system` (a text) and `tools` (a list of objects). The file is one chat, a JSON list of chats, or a chat on each
    line. The content of a message is a text, or a list of parts of the type "text".

    Raises `DataError` with the place of what is wrong.
    """
    text = read_text(path, "file of messages", DataError)
    try:
        document = parse_json(text)
    except ValueError:
        lines = [(f"{path}:{number}", line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
        given = [(place, _json(line, place)) for place, line in lines]
    else:
        several = isinstance(document, list) and document and not _is_message(document[0])
        given = [(f"{path}[{i}]", chat) for i, chat in enumerate(document)] if several else [(str(path), document)]
    if not given:
        raise DataError(f"{path}: the file is empty: use a JSON list of messages with role and content")
    return [_chat(chat, place) for place, chat in given]


def _json(line: str, place: str) -> Any:
    try:
        return parse_json(line)
    except ValueError as error:
        raise DataError(f"{place}: not JSON: {getattr(error, 'msg', error)}") from None


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and "role" in value


def _chat(value: Any, place: str) -> Example:
    chat = value if isinstance(value, dict) else {"messages": value}
    if unknown := [key for key in chat if key not in KEYS]:
        raise DataError(f"{place}: a chat has the keys {', '.join(KEYS)}, found '{unknown[0]}': remove it")
    turns, tools, system = chat.get("messages"), chat.get("tools", []), chat.get("system")
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{place}: a chat is a list of messages with role and content, or has it as 'messages'")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError(f"{place}: tools must be a list of objects, one for each tool")
    messages = [_message(turn, f"{place}: message {i}") for i, turn in enumerate(turns, start=1)]
    if system is not None:
        if messages[0].role == "system":
            raise DataError(f"{place}: there is a system message and a 'system' too: use one of them")
        messages.insert(0, Message("system", _text(system, f"{place}: system")))
    if messages[-1].role == "assistant":
        raise DataError(f"{place}: the last message is the assistant's, so there is nothing to answer: remove it")
    return Example(place, messages=tuple(messages), tools=tuple(tools))


def _message(turn: Any, place: str) -> Message:
    if not isinstance(turn, dict):
        raise DataError(f"{place} must be an object with role and content")
    if unknown := [key for key, value in turn.items() if key not in ("role", "content") and value is not None]:
        raise DataError(f"{place} has the key '{unknown[0]}': a message must have only role and content")
    content = turn.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise DataError(f"{place}.content: only parts of the type 'text' can be used, remove the others")
        content = "".join(_text(part.get("text"), f"{place}.content") for part in content)
    return Message(_text(turn.get("role"), f"{place}.role"), _text(content, f"{place}.content"))


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place} must be a text that is not empty")
    return value
