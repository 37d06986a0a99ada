"""The label that all parts of frostline ignore."""

from __future__ import annotations

IGNORED = -100
"""The label of a token that does not count in the loss, as in torch and transformers."""
