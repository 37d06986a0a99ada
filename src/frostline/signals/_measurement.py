"""A measured number and its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Measurement:
    """A value and its standard error over the sample's rows.

    Attributes:
        value: None where there is nothing to measure (the gain of a block without one before it). May be infinite.
        error: None for a value that is not a mean over rows, and for a single row.
    """

    value: float | None
    error: float | None = None

    def document(self) -> dict[str, Any]:
        """Plain data. JSON has no infinity, so it is written as the text "inf"."""
        infinite = self.value is not None and math.isinf(self.value)
        return {"value": str(self.value) if infinite else self.value, "error": self.error}

    @classmethod
    def read(cls, document: dict[str, Any]) -> Measurement:
        """Read what `document` returned."""
        value = document["value"]
        return cls(None if value is None else float(value), document["error"])


NOTHING = Measurement(None)


def mean(values: Tensor) -> Measurement:
    """The mean of [N] values, one for each row, with the standard error std / sqrt(N)."""
    return Measurement(float(values.mean()), standard_error(values))


def standard_error(values: Tensor) -> float | None:
    """std / sqrt(N) of [N] values, with N - 1 in the variance; None for one value."""
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else None
