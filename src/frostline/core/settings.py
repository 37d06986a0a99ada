"""What a user writes: YAML documents, and `key=value` over them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from frostline.core.errors import ConfigError, UserError, unknown_name
from frostline.core.files import read_text


class Options(BaseModel):
    """Base of everything a user writes: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        for key in value if isinstance(value, dict) else ():
            if key not in cls.model_fields:
                raise ValueError(unknown_name("key", str(key), cls.model_fields))
        return value


def parse_yaml(text: str, where: str, error: type[UserError] = ConfigError) -> Any:
    """The value of a YAML or JSON text.

    Args:
        text: YAML or JSON.
        where: it is from, in the message of an error.
        error: raised with the line at fault.
    """
    # JSON first: YAML nearly contains it, but reads neither its tabs nor its escaped characters beyond 16 bits.
    with suppress(ValueError):
        return json.loads(text)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as fault:  # a date that does not exist is a ValueError
        mark = getattr(fault, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else where
        reason = getattr(fault, "problem", None) or str(fault).splitlines()[0]
        raise error(f"{place}: not YAML: {reason}") from None


def read_mapping(path: Path, what: str, keys: str) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `UserError` for anything else; `keys` is what would be right."""
    document = parse_yaml(read_text(path, f"{what} file"), str(path))
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: a {what} is a mapping with {keys}")
    return document


def lay_over(document: dict[str, Any], overrides: Sequence[str]) -> None:
    """Put each `key=value` over the document, in place. Keys may be dotted, values are YAML.

    Raises `UserError` for an override of another form, or into what is not a group of settings.
    """
    for override in overrides:
        keys, equals, text = override.partition("=")
        if not equals or not keys:
            raise ConfigError(f"'{override}': an override is written key=value, such as seed=7 or data.eval_share=0.2")
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
    shown = f" (given: {given!r})" if isinstance(given, (str, int, float, bool)) else ""
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
