"""The frozen bottom of a training: up to which boundary, and what its states depend on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from frostline.anatomy import Anatomy
from frostline.bottom._below import acts_below, hook_below
from frostline.bottom._cache import ActivationCache
from frostline.bottom._caching_pass import Passage
from frostline.bottom._cut import Cut, cut_boundary, find_cut
from frostline.bottom._identity import buffers_below, hashes_of, identity, names_below
from frostline.bottom._rows import Features, row_key, row_length
from frostline.bottom._shards import Stream, row_bytes
from frostline.bottom._streaming import Streaming
from frostline.core.errors import CannotWrite, ConfigError, FrostlineError, first_line
from frostline.hooks import checkpoints_reentrantly
from frostline.plan import Plan

NOT_READ_BELOW = frozenset(
    {
        *("labels", "label", "label_ids", "shift_labels", "num_items_in_batch", "start_positions", "end_positions"),
        *("use_cache", "return_dict", "logits_to_keep", "kwargs", "args"),
        *("output_attentions", "output_hidden_states", "output_router_logits"),
    }
)
"""Arguments of a model that no block below the boundary reads. `_boundary` checks those that ask for more output."""


REENTRANT = "activation checkpointing is re-entrant and needs gradients from below the boundary: use_reentrant=False"


class Declined(FrostlineError):
    """The activation cache is not used; the message says why, in one line."""


def not_possible(reason: object) -> ConfigError:
    """The error where the cache is required (`activation_cache="on"`) and declined for `reason`."""
    return ConfigError(f"activation_cache: on, but {reason}: use activation_cache=auto or off")


def unusable(root: Path, error: CannotWrite | OSError) -> str | None:
    """Why no cache in `root` can be used, in one line; None where the error is about another place."""
    if isinstance(error, CannotWrite):
        return str(error)
    if error.filename is not None and not Path(error.filename).is_relative_to(root):
        return None
    return f"{root} cannot be used ({error.strerror or error}; FROSTLINE_CACHE can name another folder)"


class NotNeeded(Declined):
    """It would save nothing."""


class ExpectedSaving(Protocol):
    """What a cache is expected to save in a training; `str` says it in one line."""

    @property
    def pays(self) -> bool: ...

    @property
    def reason(self) -> str: ...


@dataclass(frozen=True)
class Amount:
    """How much there is to cache.

    Attributes:
        rows: number of rows.
        mean_length: their tokens on average.
        missing: rows that are not in the cache yet.
        bytes: size of all rows in the cache.
        boundary: where the states are.
        above: a lower boundary whose states are in the cache, and from which the missing ones are computed.
    """

    rows: int
    mean_length: float
    missing: int
    bytes: int
    boundary: int
    above: int = 0


def _model_loss(model: Any, batch: dict[str, Any]) -> Tensor:
    loss: Tensor = model(**batch).loss
    return loss


@dataclass(frozen=True)
class Training:
    """What a session has to know about a training, whatever training loop is used.

    Attributes:
        model: the model itself, to which `plan` was applied.
        plan: which blocks train.
        lowest: the lowest boundary of all plans to come, where the plan changes: states below it stay right. None: the
            plan's own boundary.
        anatomy: of the model before the plan was applied.
        datasets: map-style data sets of tokenized rows: first those for training, then those for evaluation.
        collate: makes a batch of rows.
        device: where the model computes.
        batch_size: rows of a training batch on this device.
        autocast: the dtype of autocast during training; None without autocast.
        trained: names of the parameters that train.
        loss: the loss of a batch on the device, as training computes it.
        estimate: says whether the cache saves time; without it, the cache is used wherever training stays the same.
        refusal: why this training loop cannot use a cache, in one line; None where it can.
        label_names: features that are labels, in addition to the usual ones.
    """

    model: Any
    plan: Plan
    anatomy: Anatomy
    datasets: Sequence[Any] = field(repr=False)
    collate: Callable[[Sequence[Features]], Mapping[str, Any]] = field(repr=False)
    device: torch.device
    batch_size: int
    autocast: torch.dtype | None = None
    trained: Iterable[str] = field(default=(), repr=False)
    loss: Callable[[Any, dict[str, Any]], Tensor] = field(default=_model_loss, repr=False)
    estimate: Callable[[Amount], ExpectedSaving] | None = field(default=None, repr=False)
    refusal: str | None = None
    label_names: Iterable[str] = ()
    lowest: int | None = None


class Bottom:
    """The frozen bottom of a model: where it ends, what it reads of a row, and the caches of its states.

    Raises `Declined` or `CannotCut` when training from a cache would not be the same training.

    Attributes:
        levels: tells the states below the boundary, which a pass block by block leaves for a while, from those of
            another such pass.

    Args:
        training: what trains.
        streaming: the bottom where it is read block by block; None where it is in memory.
        root: the folder in which all activation caches lie.
    """

    levels = ""

    def __init__(self, training: Training, streaming: Streaming | None, root: Path) -> None:
        self.training, self.streaming, self.root = training, streaming, root
        self._caches: dict[int, ActivationCache] = {}
        boundary = _boundary(training)
        self.cut = find_cut(training.model, training.anatomy, boundary, weightless=streaming is not None)
        self.names = {
            stream: "labels" if stream == "decoder" and len(self.cut.streams) > 1 else "input_ids"
            for stream in self.cut.streams
        }
        for reason in (
            REENTRANT if checkpoints_reentrantly(training.model) else None,
            hook_below(training.model, self.cut),
            acts_below(training.model, self.cut, training.plan),
        ):
            if reason is not None:
                raise Declined(reason)

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """The features of a row that the bottom reads. Where the user put a forward of his own, those of both."""
        not_read = NOT_READ_BELOW | set(self.training.label_names)
        model = self.training.model
        named = inspect.signature(model.forward).parameters | inspect.signature(type(model).forward).parameters
        names = [name for name in named if name != "self" and name not in not_read]
        return (*names, "labels") if "labels" in self.names.values() else tuple(names)

    @cached_property
    def passage(self) -> Passage:
        """How rows go through the bottom up to the boundary."""
        return self.passage_at(self.cut)

    def passage_at(self, cut: Cut) -> Passage:
        """How rows go through the bottom up to `cut`, which may lie below the boundary of the training."""
        device, dtype = self.training.device, self.training.autocast
        return Passage(
            names={stream: self.names[stream] for stream in cut.streams},
            dtypes={stack.stream: dtype or stack.state_dtype for stack in cut.stacks},
            collate=self.training.collate,
            context=lambda: torch.autocast(device.type, dtype, enabled=dtype is not None),
            device=device,
        )

    @property
    def cache(self) -> ActivationCache:
        """The cache of the states at the training's own cut."""
        return self.cache_at(self.cut)

    def cache_at(self, cut: Cut) -> ActivationCache:
        """The cache of the states at `cut`."""
        if cut.boundary not in self._caches:
            self._caches[cut.boundary] = self._open(cut)
        return self._caches[cut.boundary]

    def is_right_for(self, training: Training) -> bool:
        """Whether nothing that trains under another plan of the same training changes the states."""
        trained = set(training.trained)
        return (
            training.refusal is None
            and self.cut.boundary <= training.plan.boundary
            and trained.isdisjoint(names_below(training.anatomy, self.cut))
        )

    def change(self) -> str | None:
        """Say in one line that the model no longer gives the states in `cache`, as its weights or config changed."""
        try:
            now = Bottom(self.training, None, self.root).cache
        except (FrostlineError, ValueError) as error:
            return first_line(error)
        return None if now.folder == self.cache.folder else "the weights below the boundary have changed"

    def key(self, row: Features) -> str:
        return row_key(row, self.inputs)

    def bytes_of(self, row: Features) -> int:
        """The bytes of a row in the cache."""
        return row_bytes(self._streams, {stream: row_length(row, name) for stream, name in self.names.items()})

    @cached_property
    def _streams(self) -> dict[str, Stream]:
        return _streams_at(self.cut, self.passage)

    def _open(self, cut: Cut) -> ActivationCache:
        training = self.training
        model, anatomy = training.model, training.anatomy
        below = names_below(anatomy, cut)
        trained = sorted(set(below) & set(training.trained))
        if trained:
            raise Declined(f"blocks below the boundary read {trained[0]}, which trains")
        hashes = hashes_of(model, below) if self.streaming is None else self.streaming.hashes
        key = identity(
            model,
            cut,
            {name: hashes[name] for name in below} | buffers_below(model, anatomy, cut) | _forward(training.plan),
            inputs=self.inputs,
            autocast=training.autocast,
            device=training.device.type,
        )
        if self.levels and cut.boundary < self.cut.boundary:
            key["levels"] = self.levels
        name = str(getattr(model.config, "_name_or_path", "")).rstrip("/").rpartition("/")[2]
        return ActivationCache.open(self.root, key, _streams_at(cut, self.passage_at(cut)), label=name)


def wanted_boundary(training: Training) -> int:
    """The highest boundary below which nothing trains under this plan and all plans to come."""
    own = cut_boundary(training.plan, training.anatomy)
    return own if training.lowest is None else min(own, training.lowest)


def _boundary(training: Training) -> int:
    plan, anatomy, config = training.plan, training.anatomy, training.model.config
    if plan.boundary == 0:
        why = "nothing is frozen below the lowest trained block"
        if plan.embeddings.mode != "frozen" and plan.blocks[0].mode == "frozen":
            raise Declined(f"{why}: the embeddings train ({anatomy.embeddings[0].name})")
        raise NotNeeded(why)
    if training.lowest == 0:
        raise NotNeeded("later plans of the schedule may train every block")
    if training.refusal is not None:
        raise Declined(training.refusal)
    for name in ("output_hidden_states", "output_attentions"):
        if getattr(config, name, False):
            raise Declined(
                f"the model's config has {name}=true, which needs the outputs of the blocks below the boundary"
            )
    boundary = wanted_boundary(training)
    if (reason := plan.reads_below(boundary)) is not None:
        raise Declined(reason)
    return boundary


def _forward(plan: Plan) -> dict[str, str]:
    """What the plan changes in the forward pass of the blocks below the boundary."""
    residual = plan.forward.residual
    return {"forward.residual": residual.model_dump_json()} if plan.forward.interacts else {}


def _streams_at(cut: Cut, passage: Passage) -> dict[str, Stream]:
    return {name: Stream(cut.width, dtype) for name, dtype in passage.dtypes.items()}
