"""The two parts of a model, below and above the cut. Each holds only the weights that it computes with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import pad

from frostline.anatomy import find_anatomy, skeleton
from frostline.bottom import StandIns, last_blocks, names_below
from frostline.checkpoints import (
    class_called,
    load_above,
    load_part,
    put_tensors,
    quiet_libraries,
    read_tensors,
    trained_tensors,
)
from frostline.core.labels import IGNORED
from frostline.hooks import hidden_of, run_until
from frostline.split._job import Job
from frostline.split._protocol import ATTENDED, PADDING, BatchAtCut, marks_of
from frostline.surgery import applied_to, apply

BASE_FOLDER = "base"
TENSORS_FILE = "trained.safetensors"


def save_parts(model: Any, folder: Path) -> None:
    """Write the base of `model` and its trained tensors to `folder`: both parts are loaded from there."""
    applied = applied_to(model)
    assert applied is not None, "the trainer has applied its plan"
    plain = set(skeleton(applied.config, class_called(applied.anatomy.model_class)).state_dict())
    names = {name: name.replace(".base_layer.", ".") for name in model.state_dict()}
    state = {names[name]: tensor for name, tensor in model.state_dict().items() if names[name] in plain}
    with quiet_libraries():
        model.save_pretrained(folder / BASE_FOLDER, state_dict=state)
    save_file(trained_tensors(model), folder / TENSORS_FILE)


class LowerPart:
    """The part of a client: the embeddings and the blocks below the cut. `trained` has what trains in it, by name."""

    def __init__(self, job: Job) -> None:
        model_class = class_called(job.model_class)
        anatomy = find_anatomy(skeleton(job.config, model_class))
        own_names = frozenset(names_below(anatomy, job.cut))
        base = load_part(str(job.folder / BASE_FOLDER), model_class, job.config, own_names, job.dtype)
        self._model = _under_plan(base, job)
        self._padding = _padding(job.config)
        self._device = job.device
        (last,) = last_blocks(job.cut).values()
        self._last = self._model.get_submodule(last)
        own = tuple(f"{block.name}." for block in anatomy.blocks[: job.cut.boundary])
        self.trained = {name: p for name, p in _trained(self._model).items() if name.startswith(own)}

    def forward(self, batch: Mapping[str, Tensor]) -> BatchAtCut:
        """Run a batch up to the cut. The gradient of the states can flow back from there."""
        inputs = {name: value.to(self._device) for name, value in batch.items() if name != "labels"}
        return BatchAtCut(
            states=self._run(inputs),
            labels=batch["labels"].to(torch.int32),
            marks=marks_of(batch["input_ids"], batch.get("attention_mask"), self._padding),
        )

    def _run(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return hidden_of(run_until(self._last, self._model, inputs))


class UpperPart:
    """The part of the server: the blocks above the cut, the final norm and the head.

    `trained` has its trained parameters by name, and `lower` the initial values of those in the clients' part.
    """

    def __init__(self, job: Job) -> None:
        base, _ = load_above(
            str(job.folder / BASE_FOLDER), class_called(job.model_class), job.config, job.cut.boundary, job.dtype
        )
        self._model = _under_plan(base, job)
        every = _trained(self._model)
        self._standins = StandIns(self._model, job.cut)
        self.trained = {name: parameter for name, parameter in every.items() if not self._standins.cover(name)}
        self.lower: dict[str, Tensor] = {name: p.detach() for name, p in every.items() if name not in self.trained}
        self._padding = _padding(job.config)
        self._device = job.device
        (self._stream,) = job.cut.streams

    def loss(self, batches: Sequence[BatchAtCut]) -> Tensor:
        """The loss over the batches of all clients as one batch: the mean over all labels.

        Shorter batches are padded on the right.
        """
        length = max(batch.marks.shape[1] for batch in batches)
        states = torch.cat([pad(b.states, (0, 0, 0, length - b.marks.shape[1])) for b in batches])
        marks = torch.cat([pad(b.marks, (0, length - b.marks.shape[1]), value=PADDING) for b in batches])
        labels = torch.cat([_padded(batch.labels, length) for batch in batches])
        self._standins.feed({self._stream: states.to(self._device)})
        ids = self._stand_in_ids(marks)
        output = self._model(
            input_ids=ids.to(self._device),
            attention_mask=marks.bitwise_and(ATTENDED).long().to(self._device),
            labels=labels.long().to(self._device),
        )
        loss: Tensor = output.loss
        return loss

    def _stand_in_ids(self, marks: Tensor) -> Tensor:
        """Made-up ids, with the padding token at its real places: a classifier finds the end of a row by it."""
        padding = 0 if self._padding is None else self._padding
        other = 1 if padding == 0 else 0
        return torch.where(marks.bitwise_and(PADDING).bool(), padding, other)


def _under_plan(base: Any, job: Job) -> Any:
    apply(job.plan, base, seed=job.seed)
    put_tensors(base, read_tensors(job.folder / TENSORS_FILE, "trained tensors"), str(job.folder), more=False)
    for tensor in (*base.parameters(), *base.buffers()):
        if not tensor.is_meta:  # tensors of the other part have no values
            tensor.data = tensor.data.to(job.device)
    base.train()
    return base


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _padding(config: Any) -> int | None:
    padding: int | None = config.get_text_config().pad_token_id
    return padding


def _padded(labels: Tensor, length: int) -> Tensor:
    return labels if labels.dim() == 1 else pad(labels, (0, length - labels.shape[1]), value=IGNORED)
