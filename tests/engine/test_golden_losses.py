"""Every path that a training can take gives the losses that it gave when they were written down."""

from __future__ import annotations

from pathlib import Path

import pytest

from golden_losses import PATHS, losses_of

WRITTEN = Path(__file__).resolve().parents[1] / "golden_losses.txt"
GOLDEN = dict(line.split(": ") for line in WRITTEN.read_text().splitlines())
# A float32 loss is right to some 1e-6 of itself on any CPU; six steps of SGD pass that on, each to the next.
CLOSE = 1e-5


def test_every_path_is_written_down() -> None:
    assert list(GOLDEN) == list(PATHS)


@pytest.mark.parametrize("path", PATHS)
def test_the_losses_are_those_written_down(path: str) -> None:
    if path == "llama quantized":
        pytest.importorskip("bitsandbytes")
    assert losses_of(path) == pytest.approx([float(loss) for loss in GOLDEN[path].split()], rel=CLOSE)
