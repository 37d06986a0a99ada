"""What the activation cache did in a training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CacheReport:
    """What the activation cache did in a training.

    Attributes:
        used: whether it was used.
        reason: why it was used or not, in one line.
        estimate: what it was expected to save, in one line.
        rows: rows that went through the frozen bottom for this training, in this process or in another.
        found: rows that were in the cache before.
        bytes: size of the rows on disk.
        seconds: time until the first step could begin.
        freed_bytes: size of the weights that were taken out of memory.
        computed: training batches that ran the bottom, because some of their rows were not in the cache.
        declined: whether it was asked for or would save time, and is not used.
        given_up: why training went back to the bottom itself before its end, in one line; empty where it did not.
    """

    used: bool = False
    reason: str = "activation_cache: off"
    estimate: str = ""
    rows: int = 0
    found: int = 0
    bytes: int = 0
    seconds: float = 0.0
    freed_bytes: int = 0
    computed: int = 0
    declined: bool = False
    given_up: str = ""

    @property
    def notice(self) -> str | None:
        """One line on what did not use the cache, and why; None where everything did that could save time by it."""
        if self.declined:
            return f"no activation cache: {self.reason}"
        if self.given_up:
            return f"activation cache: {self.given_up}"
        if not self.computed:
            return None
        return (
            f"{self.computed:,} training batches held rows that are not in the activation cache: the frozen bottom ran "
            "for them"
        )
