"""The optimizer's state of parameters that stopped training, in the host's memory, until they train again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from frostline.checkpoints import read_tensors
from frostline.core.files import read_json, write_json

LEFT_TENSORS, LEFT_FILE = "left_optimizer.safetensors", "left_optimizer.json"


class LeftState:
    """What an optimizer knew of parameters that stopped training.

    Args:
        names: gives `id` of each parameter of the model -> its name.
    """

    def __init__(self, names: Callable[[], Mapping[int, str]]) -> None:
        self._names, self._states = names, dict[str, dict[str, Any]]()

    def put(self, parameter: Tensor, state: Mapping[str, Any]) -> None:
        """Keep the state of a parameter."""
        self._states[self._names()[id(parameter)]] = {
            key: value.cpu() if isinstance(value, Tensor) else value for key, value in state.items()
        }

    def take(self, parameter: Tensor) -> dict[str, Any] | None:
        """The state of a parameter that trains again, on its device; None where there is none."""
        state = self._states.pop(self._names()[id(parameter)], None)
        if state is None:
            return None
        # A count of steps is one number on the CPU, as torch's optimizers make it.
        return {
            key: value.to(parameter.device) if isinstance(value, Tensor) and value.dim() else value
            for key, value in state.items()
        }

    def save(self, folder: Path) -> None:
        """Write all states to the folder of a checkpoint."""
        flat = {f"{name}|{key}": value for name, state in self._states.items() for key, value in state.items()}
        tensors = {key: value.contiguous().clone() for key, value in flat.items() if isinstance(value, Tensor)}
        save_file(tensors, folder / LEFT_TENSORS)
        write_json(folder / LEFT_FILE, {key: value for key, value in flat.items() if key not in tensors})

    def load(self, folder: Path) -> None:
        """The inverse of `save`; nothing is kept where it was not called."""
        self._states = {}
        if not (folder / LEFT_FILE).is_file():
            return
        what = "the optimizer's state of what stopped training"
        tensors, numbers = read_tensors(folder / LEFT_TENSORS, what), read_json(folder / LEFT_FILE, what)
        for entry, value in {**tensors, **numbers}.items():
            name, _, key = entry.rpartition("|")
            self._states.setdefault(name, {})[key] = value
