"""Groups of a block's modules, or their names."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BeforeValidator


def group_or_names(groups: Any) -> BeforeValidator:
    """Check that a field is one of the `groups` (a `Literal`) or a list of names."""

    def check(value: Any) -> Any:
        named = isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
        if not named and value not in get_args(groups):
            raise ValueError(f"use {' | '.join(get_args(groups))}, or a list of module names")
        return value

    return BeforeValidator(check)
