"""A run's settings as the command line that makes it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from frostline.core.documents import parse_yaml
from frostline.core.errors import UserError
from frostline.run._config import RunConfig

OPTIONS = ("model", "task", "strategy", "seed", "out")


def command_line(config: RunConfig) -> str:
    """The `frostline train` that makes a run with these settings, those left out that were not given."""
    given = config.model_dump(mode="json", exclude_unset=True)
    options = [word for name in OPTIONS if name in given for word in (f"--{name}", str(given.pop(name)))]
    return shlex.join(["frostline", "train", *options, *_pairs(given)])


def _pairs(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in settings.items():
        # A key with a dot in it cannot be written with dots.
        if isinstance(value, dict) and value and not any("." in str(inner) for inner in value):
            yield from _pairs(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={_text(value)}"


def _text(value: Any) -> str:
    """The value as YAML that reads back as the same."""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    try:
        plain = parse_yaml(value, "value") == value
    except UserError:
        plain = False
    return value if plain else json.dumps(value, ensure_ascii=False)
