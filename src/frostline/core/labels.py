"""Labels as every part of frostline reads them."""

from __future__ import annotations

IGNORED = -100
"""The label of a token that no loss looks at, as torch and transformers have it."""
