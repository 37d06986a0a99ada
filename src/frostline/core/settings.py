"""Settings: YAML documents, and `key=value` over them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from frostline.core.documents import parse_yaml
from frostline.core.errors import ConfigError, unknown_name
from frostline.core.files import read_text

MOST, MOST_REAL, MOST_SEED = 10**15, 1e40, 2**64 - 1
"""No number of rows, tokens, steps or bytes that a run can have is larger; nor is any rate or share, or any seed."""


class Options(BaseModel):
    """Base of all settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    how_to_list: ClassVar[str] = ""
    """The command that lists all keys, where they are too many for an error message."""
    other_names: ClassVar[Mapping[str, str]] = {}
    """What to use in place of names that other tools have, where the spelling does not show it."""

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        for key in value if isinstance(value, dict) else ():
            if key not in cls.model_fields and key in cls.other_names:
                raise ValueError(f"unknown key '{key}': use {cls.other_names[key]}")
            if key not in cls.model_fields:
                raise ValueError(unknown_key(str(key), cls.model_fields, cls.how_to_list))
        return value

    @model_validator(mode="after")
    def _no_enormous_numbers(self) -> Self:
        refuse_enormous(self)
        return self


def refuse_enormous(settings: BaseModel) -> None:
    """Raise `ValueError` for a number with which no cost can be computed any more."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        most = MOST_REAL if isinstance(value, float) else MOST_SEED if name.endswith("seed") else MOST
        if isinstance(value, int | float) and abs(value) > most:
            raise ValueError(f"{name}: {value:.4g} is too large: use at most {most:.4g}")


def unknown_key(key: str, known: Iterable[str], how_to_list: str = "") -> str:
    """The message for a key that matches nothing, with the closest known one.

    Args:
        key: what was given.
        known: the keys that there are.
        how_to_list: the command that lists them; without one the message does.
    """
    message = str(unknown_name("key", key, known, 0.6 if how_to_list else 0.5))
    return f"{message.partition('known: ')[0]}see: {how_to_list}" if how_to_list else message


def described(options: type[BaseModel]) -> list[tuple[str, str, str]]:
    """Every setting of a class as its docstring's `Attributes` describe it: name, default, description.

    Settings that have settings of their own are followed by these: `data`, `data.kind` and so on.
    """
    found: dict[str, str] = {}
    last = ""
    for line in (options.__doc__ or "").partition("Attributes:\n")[2].splitlines():
        if entry := re.fullmatch(r" {8}(\w+): (.*)", line):
            last, text = entry.groups()
            found[last] = text
        elif last and line.startswith(" " * 12):
            found[last] += f" {line.strip()}"
    lines: list[tuple[str, str, str]] = []
    for name, field in options.model_fields.items():
        default = "(required)" if field.is_required() else _default(field.get_default(call_default_factory=True))
        lines.append((name, default, found.get(name, "")))
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            lines += [(f"{name}.{inner}", value, text) for inner, value, text in described(field.annotation)]
    return lines


def _default(value: Any) -> str:
    if isinstance(value, BaseModel):
        return ""
    return json.dumps(value).strip('"') if value not in (None, {}, ()) else ""


def read_mapping(path: Path, what: str, keys: str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        path: the file.
        what: what the file holds, for error messages.
        keys: the keys that it should have, for error messages.

    Raises `ConfigError` for anything else.
    """
    document = parse_yaml(read_text(path, f"{what} file"), str(path))
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: a {what} is a mapping with {keys}")
    return document


def lay_over(document: dict[str, Any], overrides: Sequence[str]) -> None:
    """Put each `key=value` over the document, in place. Keys may be dotted, values are YAML.

    Raises `ConfigError` for an override of another form, and for a dotted key whose first part is no group of settings.
    """
    for override in overrides:
        keys, equals, text = override.partition("=")
        if not equals or not keys:
            raise ConfigError(f"'{override}' is not key=value: use for example seed=7 or data.eval_share=0.2")
        *groups, key = keys.split(".")
        place = document
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise ConfigError(f"'{override}': {group} is not a group of settings")
        place[key] = parse_yaml(text, f"'{override}'")


def first_error(error: ValidationError) -> str:
    """The first of pydantic's errors as one line: place, what is wrong, what would be right."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(piece) for piece in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ").replace("Input should", "it should")
    if first["type"] in _MESSAGES:
        context = first.get("ctx", {})
        if "discriminator" in context:  # comes with quotes
            context = {**context, "discriminator": context["discriminator"].strip("'")}
        message = _MESSAGES[first["type"]].format_map(context)
    given = first.get("input")
    named = not isinstance(given, (str, int, float, bool)) or "(given: " in message
    shown = "" if named else f" (given: {given!r})"
    line = f"{place}: {message}{shown}" if place else message
    return " ".join(line.split())


_MESSAGES = {
    "extra_forbidden": "no such key",
    "missing": "this key is missing",
    "union_tag_invalid": "unknown {discriminator} '{tag}', it should be one of {expected_tags}",
    "union_tag_not_found": "the key '{discriminator}' is missing",
    "model_attributes_type": "it should be a mapping",
    "model_type": "it should be a mapping",
    "dict_type": "it should be a mapping",
    "tuple_type": "it should be a list",
    "too_short": "it should have at least {min_length} of them",
}
