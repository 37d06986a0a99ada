"""The embedded default: a small pretrained decoder (`MODEL_DIR`) and a small generated task."""

from __future__ import annotations

from pathlib import Path

from frostline.run.demo.task import LABELS, rows, write

MODEL_DIR = Path(__file__).parent / "model"
"""The folder of the pretrained decoder, as `from_pretrained` wants it; its README.md is the model card."""

__all__ = ["LABELS", "MODEL_DIR", "rows", "write"]
