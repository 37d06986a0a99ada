"""The streaming caching pass: one block of the frozen bottom in memory at a time, the whole data set through each.

For a model that does not fit in memory. The weights below the boundary lie on the meta device; each block's are
read, hashed and dropped to know the store's identity, and where rows are missing they are read once more to let
the rows through. The states between two blocks are an activation cache of their own, removed when the next is whole, so
that a pass that is killed goes on at the block where it stopped. The whole model never runs, so nothing can be
compared with it; but at each block the shortest row passes alone too, and has to have the states that are stored.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from frostline.anatomy import Anatomy, tensor_hash
from frostline.bottom._cache import ActivationCache
from frostline.bottom._caching_pass import Feed, Passage, caching_pass, pass_rows, same_states
from frostline.bottom._cut import CannotCut, Cut, crossing, find_cut
from frostline.bottom._feed import rows_in_batch, stored_states
from frostline.bottom._rows import Features
from frostline.bottom._standins import StandIns
from frostline.hooks import device_of

Load = Callable[[Iterable[str]], Mapping[str, Tensor]]
"""Reads the named tensors from where the model came from."""


@dataclass
class Streaming:
    """A model whose bottom is read block by block. `load` reads tensors by name.

    `hashes` fills as blocks are read: name -> hash of each tensor below the boundary.
    """

    model: Any
    anatomy: Anatomy
    load: Load
    hashes: dict[str, str] = field(default_factory=dict)

    def read_hashes(self, boundary: int) -> None:
        """Hash every tensor below block `boundary`, one block in memory at a time."""
        for index in range(boundary):
            for name, tensor in self.load(self._names(index)).items():
                self.hashes[name] = tensor_hash(tensor)
        below = (t for block in self.anatomy.blocks[:boundary] for t in block.tensors)
        for held in (*self.anatomy.embeddings, *below, *self.anatomy.final_norm):
            if held.name not in self.hashes:  # in memory all the time
                self.hashes[held.name] = tensor_hash(self.model.get_parameter(held.name))

    @contextmanager
    def first_block(self) -> Iterator[str]:
        """Inside, the embeddings and block 0, whose name is given, are in memory."""
        names = self._names(0)
        put_tensors(self.model, self.load(names))
        try:
            yield self.anatomy.blocks[0].name
        finally:
            drop_tensors(self.model, names)

    def caching_pass(
        self,
        cut: Cut,
        rows: Mapping[str, Features],
        passage_at: Callable[[Cut], Passage],
        store_at: Callable[[Cut], ActivationCache],
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Put the boundary states of `rows` (key -> features) into the store at `cut`.

        `progress` is called with how many passages of a row through a block are done, and of how many.
        """
        cuts = [find_cut(self.model, self.anatomy, index, weightless=True) for index in range(1, cut.boundary)]
        cuts.append(cut)
        level = self._begin(cuts, rows, store_at)
        total = (cut.boundary - level) * len(rows)
        for index in range(level, cut.boundary):
            below = cuts[index - 1] if index else None
            before = (index - level) * len(rows)
            self._through(index, below, cuts[index], rows, passage_at, store_at, _Offset(progress, before, total))
            if below is not None:
                shutil.rmtree(store_at(below).folder, ignore_errors=True)

    def _begin(self, cuts: list[Cut], rows: Mapping[str, Features], store_at: Callable[[Cut], ActivationCache]) -> int:
        """The first block that rows have to pass: an earlier pass may have left the states after a lower one."""
        return next((i for i in range(len(cuts) - 1, 0, -1) if not store_at(cuts[i - 1]).missing(rows)), 0)

    def _through(
        self,
        index: int,
        below: Cut | None,
        cut: Cut,
        rows: Mapping[str, Features],
        passage_at: Callable[[Cut], Passage],
        store_at: Callable[[Cut], ActivationCache],
        progress: Callable[[int], None],
    ) -> None:
        store, passage = store_at(cut), passage_at(cut)
        missing = {key: rows[key] for key in store.missing(rows)}
        names = self._names(index)
        put_tensors(self.model, self.load(names))
        standins = feed = None
        if below is not None:
            standins = StandIns(self.model, below)
            feed = _feeder(standins, store_at(below), passage_at(below), missing)
        try:
            caching_pass(self.model, crossing(cut), passage, missing, store, feed=feed, progress=progress)
            if missing and not self._same_alone(cut, missing, passage, store, feed):
                shutil.rmtree(store.folder, ignore_errors=True)
                block = self.anatomy.blocks[index].name
                raise CannotCut(f"what {block} makes of an example changes with the padding beside it")
        finally:
            if standins is not None:
                standins.remove()
            drop_tensors(self.model, names)

    def _same_alone(
        self, cut: Cut, rows: Mapping[str, Features], passage: Passage, store: ActivationCache, feed: Feed | None
    ) -> bool:
        """Whether the shortest of `rows`, alone in a batch, has the states that are stored, but for rounding."""
        key = min(rows, key=lambda key: passage.length(rows[key]))
        alone = pass_rows(self.model, crossing(cut), passage, {key: rows[key]}, feed)
        return same_states(alone[key], store.read(key))

    def _names(self, index: int) -> tuple[str, ...]:
        """The tensors that block `index` needs and are not in memory; the embeddings' come with the first."""
        tensors = [*self.anatomy.blocks[index].tensors, *(self.anatomy.embeddings if index == 0 else ())]
        return tuple(tensor.name for tensor in tensors if self.model.get_parameter(tensor.name).is_meta)


@dataclass(frozen=True)
class _Offset:
    """Tells of the passages through one block as a part of all."""

    progress: Callable[[int, int], None]
    before: int
    total: int

    def __call__(self, done: int) -> None:
        self.progress(self.before + done, self.total)


def names_above(model: Any, anatomy: Anatomy, boundary: int) -> frozenset[str]:
    """The parameters of `model` that stay while it trains above block `boundary` from an activation cache.

    The weights may lie on the meta device. Raises `CannotCut`.
    """
    cut = find_cut(model, anatomy, boundary, weightless=True)
    covered = tuple(f"{path}." for stack in cut.stacks for path in (*stack.embeddings, *stack.blocks))
    running = tuple(f"{path}." for path in cut.running)
    names = (name for name, _ in model.named_parameters(remove_duplicate=False))
    return frozenset(name for name in names if name.startswith(running) or not name.startswith(covered))


def put_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Make the named parameters of `model` frozen ones that hold `tensors`, on the model's device."""
    device = device_of(model)
    for name, tensor in tensors.items():
        _replace(model, name, nn.Parameter(tensor.to(device), requires_grad=False))


def drop_tensors(model: nn.Module, names: Iterable[str]) -> None:
    """Put the named parameters on the meta device: their memory is free."""
    for name in names:
        _replace(model, name, nn.Parameter(torch.empty_like(model.get_parameter(name), device="meta"), False))


def _replace(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    old = model.get_parameter(name)
    for module in model.modules():  # a tied tensor has several places
        for leaf, held in module._parameters.items():
            if held is old:
                module._parameters[leaf] = parameter


def _feeder(standins: StandIns, store: ActivationCache, passage: Passage, rows: Mapping[str, Features]) -> Feed:
    def feed(keys: Any, batch: Mapping[str, Any]) -> None:
        states = stored_states(store, rows_in_batch(keys, batch, [rows[key] for key in keys], passage.names))
        standins.feed({stream: value.to(passage.device) for stream, value in states.items()})

    return feed
