"""A README.md of frostline's own, told from one that a user wrote or changed."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from frostline.core.files import write_text

README_FILE = "README.md"
OWN_README = "README.md is your own and stays as it is: no model card is written; rename it to get one"
"""Said where no card is written."""
_SEAL = "\n<!-- Written by frostline, which writes it again unless you change it: {digest} -->\n"
_SEALED = re.compile(re.escape(_SEAL.format(digest="DIGEST")).replace("DIGEST", "([0-9a-f]{64})") + r"\Z")


def write_readme(folder: Path, text: str) -> bool:
    """Write `text` as the folder's README.md, sealed with its hash. Returns False where a user's own is there.

    A README.md whose hash is not that of its text was written or changed by someone else, and stays.
    """
    path = folder / README_FILE
    if path.is_symlink() or (path.exists() and not _is_ours(path)):
        return False
    sealed = text + _SEAL.format(digest=_hash(text))
    if not path.exists() or path.read_bytes() != sealed.encode():
        write_text(path, sealed)
    return True


def _is_ours(path: Path) -> bool:
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return False
    found = _SEALED.search(text)
    return found is not None and found[1] == _hash(text[: found.start()])


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
