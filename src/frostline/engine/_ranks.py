"""AdaLoRA in training: its ranks are distributed after each optimizer step, and its state is in checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import save_file
from transformers import TrainerCallback

from frostline.adapters import begin_ranks, load_ranks_state, ranks_state, step_ranks
from frostline.checkpoints import read_tensors
from frostline.surgery import applied_to

RANKS_FILE = "ranks.safetensors"


class ShareRanks(TrainerCallback):
    """Distributes the ranks of the model's AdaLoRA, if it has one."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **around: Any) -> None:
        begin_ranks(_peft_models(around["model"]), state.max_steps)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **around: Any) -> None:
        step_ranks(_peft_models(around["model"]), state.global_step + 1)  # the state counts this step later


def save_ranks(peft_models: Sequence[PeftModel], folder: Path) -> None:
    """Write the state of AdaLoRA besides its matrices to `folder`; nothing if the model has no AdaLoRA."""
    if state := ranks_state(peft_models):
        save_file(state, folder / RANKS_FILE)


def load_ranks(peft_models: Sequence[PeftModel], folder: Path) -> None:
    """The inverse of `save_ranks`. Raises `CheckpointError` when the file is damaged."""
    state = read_tensors(folder / RANKS_FILE, "state of ranks") if (folder / RANKS_FILE).is_file() else {}
    load_ranks_state(peft_models, state)


def _peft_models(model: Any) -> Sequence[PeftModel]:
    applied = applied_to(model)
    return applied.peft_models if applied else ()
