"""The state of a run besides its weights, without pickle: optimizer, scheduler, random generators.

The state of the optimizer is stored by parameter name, so the order of the parameters does not matter.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from frostline.checkpoints._tensors import read_tensors
from frostline.core.errors import CheckpointError
from frostline.core.files import read_json, write_json
from frostline.hooks import sharded_like, whole

OPTIMIZER_TENSORS = "optimizer.safetensors"
OPTIMIZER_FILE = "optimizer.json"
SCHEDULER_FILE = "scheduler.json"


def save_optimizer(
    optimizer: torch.optim.Optimizer, names: dict[int, str], folder: Path, *, writes: bool = True
) -> None:
    """Write the optimizer's state.

    Args:
        optimizer: whose state is written.
        names: `id` of each parameter -> its name.
        folder: of the checkpoint.
        writes: whether this process writes. Where processes share the state (FSDP2), all of them gather it for one.
    """
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, Any] = {}
    kept: set[int] = set()
    groups = []
    for group in optimizer.param_groups:
        members = [names[id(parameter)] for parameter in group["params"]]
        groups.append({"parameters": members, **{k: v for k, v in group.items() if k != "params"}})
        for name, parameter in zip(members, group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    tensor = whole(value.detach()).cpu().contiguous()
                    if not writes:
                        continue
                    # 8-bit optimizers share one code book between parameters; safetensors needs each by itself.
                    tensors[f"{name}|{key}"] = tensor.clone() if tensor.data_ptr() in kept else tensor
                    kept.add(tensor.data_ptr())
                else:
                    numbers[f"{name}|{key}"] = value
    if writes:
        save_file(tensors, folder / OPTIMIZER_TENSORS)
        write_json(folder / OPTIMIZER_FILE, {"groups": groups, "numbers": numbers})


def load_optimizer(optimizer: torch.optim.Optimizer, names: dict[int, str], folder: Path) -> None:
    """Restore the optimizer's state by parameter name.

    Args:
        optimizer: whose state is restored.
        names: `id` of each parameter -> its name.
        folder: of the checkpoint.

    Raises `CheckpointError` when other parameters train than in the checkpoint, or the file is damaged.
    """
    saved = read_json(folder / OPTIMIZER_FILE, "optimizer state")
    entries: dict[str, dict[str, Any]] = {}
    tensors = read_tensors(folder / OPTIMIZER_TENSORS, "optimizer state")
    for key, value in {**tensors, **saved["numbers"]}.items():
        name, _, field = key.rpartition("|")
        entries.setdefault(name, {})[field] = value
    options = {
        name: {k: v for k, v in group.items() if k != "parameters"}
        for group in saved["groups"]
        for name in group["parameters"]
    }
    own = {names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]}
    if more := sorted(set(options) - own):
        raise CheckpointError(
            f"{folder} has optimizer state for {more[0]}, which does not train here: use the plan of the checkpoint"
        )
    state = optimizer.state_dict()
    state["state"] = {}
    for group, described in zip(optimizer.param_groups, state["param_groups"], strict=True):
        for parameter, index in zip(group["params"], described["params"], strict=True):
            name = names[id(parameter)]
            if name not in options:
                raise CheckpointError(
                    f"{folder} has no optimizer state for {name}, which trains here: use the plan of the checkpoint"
                )
            described.update(options[name])
            if name in entries:
                state["state"][index] = {key: _as_held(value, parameter) for key, value in entries[name].items()}
    optimizer.load_state_dict(state)


def _as_held(value: Any, parameter: torch.Tensor) -> Any:
    """An entry of a parameter's state, sharded as the parameter is."""
    shared = isinstance(value, torch.Tensor) and value.shape == parameter.shape
    return sharded_like(value, parameter) if shared else value


def save_scheduler(scheduler: Any, folder: Path) -> None:
    """Write the learning-rate scheduler's state."""
    write_json(folder / SCHEDULER_FILE, scheduler.state_dict())


def load_scheduler(scheduler: Any, folder: Path) -> None:
    """Restore the learning-rate scheduler's state."""
    scheduler.load_state_dict(read_json(folder / SCHEDULER_FILE, "scheduler state"))


def random_state() -> dict[str, Any]:
    """The states of the random generators of Python, numpy and torch, as plain data."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state().tolist(),
    }
    if torch.cuda.is_available():
        state["cuda"] = [device.tolist() for device in torch.cuda.get_rng_state_all()]
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Set the random generators to states that `random_state` gave."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([torch.tensor(device, dtype=torch.uint8) for device in state["cuda"]])
