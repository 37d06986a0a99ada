"""Damage done to inputs: to bytes, to text, and to the structure of JSON and YAML."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import yaml

ODD_TEXTS = (
    "",
    " ",
    "\x1b[31mred\x1b[0m",
    "\x9b31m",
    "\u202egnp.exe",
    "\x00",
    "\ufeff",
    "\ud800",
    "[/red]",
    "[bold",
    "a|b",
    "a\n# b",
    "a\r\nb",
    "<script>alert(1)</script>",
    "../../x",
    "/etc/passwd",
    "~",
    ".",
    "NaN",
    "inf",
    "1e999",
    "nan",
    "None",
    "true",
    "%s%n{0}{x}",
    "é" * 3,
    "x" * 400,
    "y" * 9000,
    "pytorch_model.bin",
)
ODD_NUMBERS = (
    0,
    -1,
    1,
    2,
    0.5,
    -0.5,
    1e-320,
    1e308,
    2**31,
    2**63,
    2**64,
    10**9,
    10**12,
    10**18,
    10**400,
    100_000,
    True,
)
NESTED = 1_000
PIECES = (
    b"\x1b[31m",
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xc2\x9b",
    b"\xe2\x80\xae",
    b"[/red]",
    b"!!timestamp x",
    b"!!python/object:os.system x",
    b"!!binary x",
    b"!!set {a}",
    b"&a [*a]",
    b"9" * 400,
    b"9" * 5000,
    b"1e999",
    b"[" * NESTED,
    b'{"a":' * NESTED,
    b"- " * NESTED,
    b"\n",
    b"\r",
    b"\t",
    b'"',
    b"'",
    b":",
    b",",
    b"|",
    b"<<: *x",
    b"---\n",
    b"NaN",
    b"-Infinity",
    b"null",
)


def odd_value(draw: random.Random) -> Any:
    """A value that stands where another one is expected."""
    kind = draw.randrange(8)
    if kind < 3:
        return draw.choice(ODD_NUMBERS)
    if kind < 6:
        return draw.choice(ODD_TEXTS)
    if kind == 6:
        return draw.choice((None, float("nan"), float("inf"), [], {}, [[]], [None], {"a": 1}, [1, "a"], {"": None}))
    nested: Any = 1
    for _ in range(draw.choice((3, 60, 300))):
        nested = [nested] if draw.random() < 0.5 else {"a": nested}
    return nested


def mutated_bytes(data: bytes, draw: random.Random) -> bytes:
    """`data` with one to three faults in its bytes."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        at = draw.randrange(len(changed) + 1)
        match draw.randrange(7):
            case 0 if changed:
                changed[min(at, len(changed) - 1)] = draw.randrange(256)
            case 1 if changed:
                changed[min(at, len(changed) - 1)] ^= 1 << draw.randrange(8)
            case 2:
                changed[at:at] = draw.choice(PIECES)
            case 3:
                del changed[at : at + draw.choice((1, 2, 8, 100))]
            case 4:
                changed[at:at] = changed[at : at + draw.choice((1, 8, 100))]
            case 5:
                del changed[at:]
            case _:
                piece = draw.choice(PIECES)
                changed[at : at + len(piece)] = piece
    return bytes(changed)


def mutated_structure(value: Any, draw: random.Random) -> Any:
    """`value`, of plain data, with one to three faults in its structure. It is not changed itself."""
    value = json.loads(json.dumps(value, default=str))
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return odd_value(draw)
        holder, key = draw.choice(places)
        match draw.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[draw.choice((*ODD_TEXTS, f"{key}s", str(key).upper(), str(key)[:-1]))] = holder.pop(key)
            case 2 if isinstance(holder, list):
                holder.append(holder[key])
            case 3:
                holder[key] = draw.choice((str(holder[key]), [holder[key]], {"value": holder[key]}))
            case 4:
                other, inner = draw.choice(places)
                holder[key] = json.loads(json.dumps(other[inner]))
            case _:
                holder[key] = odd_value(draw)
    return value


def _places(value: Any) -> Any:
    """Every pair of a dict or a list and a key of it."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def as_json(value: Any, draw: random.Random | None = None) -> bytes:
    """JSON text; half surrogates are escaped."""
    return json.dumps(value).encode()


def as_yaml(value: Any, draw: random.Random | None = None) -> bytes:
    """YAML text, or JSON where YAML has no way to write it."""
    try:
        return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, RecursionError):
        return as_json(value)


def mutated_document(data: bytes, write: Callable[[Any], bytes], draw: random.Random) -> bytes:
    """A damaged JSON or YAML document: by structure three times out of four, else by bytes."""
    if draw.random() < 0.75:
        value = yaml.safe_load(data) if write is as_yaml else json.loads(data)
        data = write(mutated_structure(value, draw))
        if draw.random() < 0.9:
            return data
    return mutated_bytes(data, draw)


def mutated_lines(data: bytes, draw: random.Random) -> bytes:
    """Damaged JSON lines: one line by structure, or all bytes."""
    if draw.random() < 0.6:
        lines = data.splitlines()
        at = draw.randrange(len(lines))
        lines[at] = as_json(mutated_structure(json.loads(lines[at]), draw))
        return b"\n".join(lines)
    return mutated_bytes(data, draw)


def mutated_text(text: str, draw: random.Random) -> str:
    """A damaged argument of a command; it has no zero bytes, which no process can be given."""
    if draw.random() < 0.3:
        head, _, _ = text.partition("=")
        text = f"{head}={draw.choice([*map(str, ODD_NUMBERS), *ODD_TEXTS])}"
    else:
        text = mutated_bytes(text.encode(), draw).decode("utf-8", "surrogateescape")
    return text.replace("\0", "")
