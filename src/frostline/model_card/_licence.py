"""The licence of a base model, where its own model card says one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import metadata_load


@dataclass(frozen=True)
class Licence:
    """A licence as the hub names it; `name` and `link` belong to `other`."""

    id: str
    name: str | None = None
    link: str | None = None


def licence_of(bases: Sequence[str]) -> Licence | None:
    """The licence that the card of a base names: in its folder, or in the hub's cache. None where no card says one.

    `bases` are folders or hub ids, best first. Nothing is downloaded.
    """
    for base in bases:
        try:
            path = Path(base) / "README.md"
            if not path.is_file():
                path = Path(str(try_to_load_from_cache(base, "README.md")))
            if path.is_file() and (found := _read(path)) is not None:
                return found
        except (HFValidationError, OSError):  # no name of a model on the hub, or none that a file can have
            continue
    return None


def _read(path: Path) -> Licence | None:
    try:
        metadata = metadata_load(path)
    except Exception:  # someone else's file: YAML's errors are of many classes
        return None
    metadata = metadata if isinstance(metadata, dict) else {}
    name = metadata.get("license")
    if not isinstance(name, str) or not re.fullmatch(r"[\w.+-]{1,60}", name) or name == "unknown":
        return None
    more = {key: metadata.get(f"license_{key}") for key in ("name", "link")}
    return Licence(name, **{key: value for key, value in more.items() if isinstance(value, str)})
