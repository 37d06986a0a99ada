"""What a user writes: YAML documents, and `key=value` over them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from frostline.core.errors import UserError
from frostline.core.files import read_text


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML or JSON text. Raises `UserError` with `where` and the line at fault."""
    # JSON first: YAML nearly contains it, but reads neither its tabs nor its escaped characters beyond 16 bits.
    with suppress(ValueError):
        return json.loads(text)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # a date that does not exist is a ValueError
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else where
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{place}: not YAML: {reason}") from None


def read_mapping(path: Path, what: str, keys: str) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `UserError` for anything else; `keys` is what would be right."""
    document = parse_yaml(read_text(path, f"{what} file"), str(path))
    if not isinstance(document, dict):
        raise UserError(f"{path}: a {what} is a mapping with {keys}")
    return document


def lay_over(document: dict[str, Any], overrides: Sequence[str]) -> None:
    """Put each `key=value` over the document, in place. Keys may be dotted, values are YAML.

    Raises `UserError` for an override of another form, or into what is not a group of settings.
    """
    for override in overrides:
        keys, equals, text = override.partition("=")
        if not equals or not keys:
            raise UserError(f"'{override}': an override is written key=value, such as seed=7 or data.eval_share=0.2")
        *groups, key = keys.split(".")
        place = document
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise UserError(f"'{override}': {group} is not a group of settings")
        place[key] = parse_yaml(text, f"'{override}'")
