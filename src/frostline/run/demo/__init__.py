"""The embedded default: a small pretrained decoder (`MODEL_DIR`), a small generated task, and a study of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from frostline.run.demo.task import LABELS, rows, write

MODEL_DIR = Path(__file__).parent / "storyteller"
"""The folder of the pretrained decoder, for `from_pretrained`; its README.md is the model card."""

STUDY: dict[str, Any] = {
    "strategies": [
        {"name": "all", "learning_rate": 5e-4},
        {"name": "bot50", "learning_rate": 1e-3},
        {"name": "lora", "learning_rate": 5e-3},
        {"name": "head", "learning_rate": 2e-2},
    ],
    "baseline": "all",
    "config": {
        "max_steps": 100,
        "per_device_train_batch_size": 16,
        "max_length": 32,
        "lr_scheduler_type": "linear",
        "warmup_steps": 10,
        "bf16": False,
        "frozen_dtype": "float32",
        "threads": 1,
    },
}
"""What the demo compares, as a study without its models, tasks and seeds."""

__all__ = ["LABELS", "MODEL_DIR", "STUDY", "rows", "write"]
