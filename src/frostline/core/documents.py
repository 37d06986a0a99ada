"""Read JSON and YAML: plain data of a bounded size and depth, and each key of an object once."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from typing import Any

import yaml

from frostline.core.errors import ConfigError, UserError, first_line

DEEPEST = 100
"""So many lists and objects may lie in each other. What is deeper makes Python's own recursion fail somewhere."""
LARGEST = 2_000_000
"""So many values may a document have. A few lines of YAML can stand for billions: `*name` repeats what it names."""
LONGEST_NUMBER = 10**300
"""Any whole number below this is a floating-point number too."""

_HALF = re.compile("[\ud800-\udfff]")


class KeyTwice(ValueError):
    """A key is twice in one object: which of its values is meant?"""


def once(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """The object with these pairs of key and value, for `object_pairs_hook`. Raises `KeyTwice`."""
    values = dict(pairs)
    if len(values) < len(pairs):
        _refuse_twice([key for key, _ in pairs])
    return values


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises only `ValueError`, of one line."""
    try:
        value = json.loads(text, object_pairs_hook=once)
        _check(value)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def parse_yaml(text: str, where: str, error: type[UserError] = ConfigError) -> Any:
    """The value of a YAML or JSON text.

    Args:
        text: YAML or JSON.
        where: the source that an error message names.
        error: the class of error that is raised, with the line that is wrong.
    """
    # JSON first: YAML nearly contains it, but reads neither its tabs nor its escaped characters beyond 16 bits.
    try:
        return parse_json(text)
    except KeyTwice as fault:
        raise error(f"{where}: {fault}") from None
    except ValueError:
        pass
    try:
        value = yaml.load(text, _Loader)
        _check(value)
        return value
    except RecursionError:
        raise error(f"{where}: not YAML: it is nested too deeply: use flat settings") from None
    # A value that is not of its tag (`!!timestamp x`, `!!int ""`, a date that does not exist) makes any error in yaml.
    except Exception as fault:
        mark = getattr(fault, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else where
        known = isinstance(fault, yaml.YAMLError | ValueError)
        reason = (getattr(fault, "problem", None) or first_line(fault)) if known else "a value is not of its type"
        raise error(f"{place}: not YAML: {reason}") from None


class _Loader(yaml.SafeLoader):
    """Makes plain data only."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            try:
                _refuse_twice([value for _, value in keys])
            except KeyTwice as fault:
                raise yaml.MarkedYAMLError(problem=str(fault), problem_mark=node.start_mark) from None
        return super().construct_mapping(node, deep)


def _refuse_twice(keys: list[Any]) -> None:
    seen = set[Any]()
    for key in keys:
        if key in seen:
            raise KeyTwice(f"the key '{key}' is twice in one object: remove one of them")
        seen.add(key)


def _check(value: Any) -> None:
    """Raise `ValueError` for a value that is too deep or too large, and for a number of hundreds of digits."""
    count, level = 0, [value]
    for _ in range(DEEPEST):
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                below += (*each, *each.values())
            elif isinstance(each, (list, tuple, set)):
                below += each
            elif isinstance(each, str):
                if not each.isascii() and _HALF.search(each):
                    raise ValueError("a text has half of a surrogate pair, so it is not valid Unicode")
            elif isinstance(each, int) and abs(each) >= LONGEST_NUMBER:
                raise ValueError("a number has too many digits: use at most 300")
            count += 1
            if len(below) + count > LARGEST:
                raise ValueError(f"it stands for more than {LARGEST:,} values: use fewer")
        if not below:
            return
        level = below
    raise ValueError("it is nested too deeply: use flat settings")
