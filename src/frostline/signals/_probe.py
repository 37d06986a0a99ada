"""A probe: the signals of a model on a task. Strategies read it, and the command line shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from frostline.core.errors import CheckpointError, ConfigError, UnsupportedModel, unknown_name
from frostline.signals._choose import DEVIATIONS
from frostline.signals._deviation import cut_at_largest
from frostline.signals._measurement import Measurement

VERSION = 2
Form = Literal["difference", "log"]


@dataclass(frozen=True)
class Probe:
    """Signals of a model's blocks on rows of a task.

    Attributes:
        model: name of the model.
        task: name of the task.
        rows: how many rows were measured.
        read: which token of each row is read, in words.
        signals: name -> one measurement for each block.
        seconds: how long measuring took; None where it was not timed.
    """

    model: str
    task: str
    rows: int
    read: str
    signals: Mapping[str, tuple[Measurement, ...]]
    seconds: float | None = field(default=None, compare=False)

    @property
    def deviation(self) -> str | None:
        """The semantic deviation that the cut uses: `vds` where it was measured, else `shift`, else None."""
        return next((name for name in DEVIATIONS if name in self.signals), None)

    def gains(self, form: Form = "difference", deviation: str | None = None) -> tuple[Measurement, ...]:
        """The gain of every block, in one of its forms. Raises `ConfigError` when the deviation was not measured."""
        name = deviation or self.deviation
        if name is None or name not in self.signals:
            raise ConfigError(f"the probe has no {name or 'semantic deviation'}: measure {' or '.join(DEVIATIONS)}")
        if name not in DEVIATIONS:
            raise unknown_name("semantic deviation", name, DEVIATIONS)
        return self.signals[f"{name}_gain" if form == "difference" else f"{name}_log_gain"]

    def cut(self, form: Form = "difference", deviation: str | None = None) -> int:
        """How many of the lowest blocks to freeze: all up to the one with the largest gain, but never the last block.

        Raises `ConfigError` as `gains` does, and `UnsupportedModel` when no block has a gain.
        """
        gains = [gain.value for gain in self.gains(form, deviation)]
        if all(gain is None for gain in gains):
            raise UnsupportedModel(f"{self.model}: no block has a gain: use a model with two blocks or more")
        return cut_at_largest(gains)

    @property
    def suggestion(self) -> int | None:
        """`cut` with the default deviation and form. None where no deviation was measured, or there is one block."""
        if self.deviation is None or len(self.signals[self.deviation]) < 2:
            return None
        return self.cut()

    def document(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "version": VERSION,
            "model": self.model,
            "task": self.task,
            "rows": self.rows,
            "read": self.read,
            "seconds": self.seconds,
            "signals": {name: [one.document() for one in values] for name, values in self.signals.items()},
        }

    @classmethod
    def read_document(cls, document: Any) -> Probe:
        """Read what `document` returned. Raises `CheckpointError` for anything else."""
        try:
            if document["version"] != VERSION:
                raise CheckpointError(
                    f"the probe has version {document['version']}, but this frostline reads {VERSION}"
                )
            signals = {name: tuple(map(Measurement.read, values)) for name, values in document["signals"].items()}
            return cls(
                document["model"],
                document["task"],
                document["rows"],
                document["read"],
                signals,
                document.get("seconds"),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(f"the document is not a probe: {type(error).__name__}: {error}") from None
