"""The caching pass for a model that does not fit in memory: one block of the frozen bottom is in memory at a time.

The weights below the boundary lie on the meta device. They are read twice, block by block: once to hash them for the
identity of the cache, and, where rows are missing, once more to run all these rows through each block. The states
between two blocks are an activation cache too, which is removed when the next one is complete. So a pass that is killed
continues at the block where it stopped. One process at a time makes such a pass; those that fill other shards of the
cache have such states of their own (`Contents.levels`).

The whole model never runs, so training from the cache cannot be compared with plain training. Instead, at each block
the shortest row also runs alone, and must have the states that were stored for it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from frostline.anatomy import Anatomy, tensor_hash
from frostline.bottom._cache import ActivationCache
from frostline.bottom._caching_pass import CachingPass, Feed, Passage, pass_rows, same_states
from frostline.bottom._cut import CannotCut, Cut, find_cut, last_blocks
from frostline.bottom._feed import rows_in_batch, stored_states
from frostline.bottom._rows import Features
from frostline.bottom._standins import StandIns
from frostline.hooks import device_of

Load = Callable[[Iterable[str]], Mapping[str, Tensor]]
"""Reads the named tensors from the model's checkpoint."""


@dataclass
class Streaming:
    """A model whose bottom is read block by block.

    Attributes:
        model: its weights below the boundary lie on the meta device.
        anatomy: its blocks.
        load: reads tensors by name.
        hashes: name -> hash of each tensor below the boundary, once `read_hashes` has run.
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
            if held.name not in self.hashes:  # this one is always in memory
                self.hashes[held.name] = tensor_hash(self.model.get_parameter(held.name))

    @contextmanager
    def first_block(self) -> Iterator[str]:
        """Inside this context, the embeddings and block 0 are in memory. Gives the name of block 0."""
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
        cache_at: Callable[[Cut], ActivationCache],
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Write the boundary states of `rows` to the cache at `cut`.

        Args:
            cut: the cut at the boundary.
            rows: key -> features.
            passage_at: gives how a batch goes through the bottom up to a cut.
            cache_at: gives the cache of the states at a cut.
            progress: called with the number of passes of one row through one block, done so far and in total.
        """
        cuts = [find_cut(self.model, self.anatomy, index, weightless=True) for index in range(1, cut.boundary)]
        cuts.append(cut)
        level = self._begin(cuts, rows, cache_at)
        total = (cut.boundary - level) * len(rows)
        for index in range(level, cut.boundary):
            below = cuts[index - 1] if index else None
            before = (index - level) * len(rows)
            self._through(index, below, cuts[index], rows, passage_at, cache_at, _Offset(progress, before, total))
            if below is not None:
                shutil.rmtree(cache_at(below).folder, ignore_errors=True)

    def _begin(self, cuts: list[Cut], rows: Mapping[str, Features], cache_at: Callable[[Cut], ActivationCache]) -> int:
        """The first block that has to run: an earlier pass may have left the states of all rows after a lower block."""
        return next((i for i in range(len(cuts) - 1, 0, -1) if not cache_at(cuts[i - 1]).missing(rows)), 0)

    def _through(
        self,
        index: int,
        below: Cut | None,
        cut: Cut,
        rows: Mapping[str, Features],
        passage_at: Callable[[Cut], Passage],
        cache_at: Callable[[Cut], ActivationCache],
        progress: Callable[[int], None],
    ) -> None:
        """Run rows through block `index`, from the states at `below` (None: from the token ids) to those at `cut`."""
        cache, passage = cache_at(cut), passage_at(cut)
        missing = cache.missing(rows)
        running = () if below is None else below.running  # a stand-in calls these, for what only they compute
        names = self._names(index, *(i for i, block in enumerate(self.anatomy.blocks) if block.name in running))
        put_tensors(self.model, self.load(names))
        standins = feed = None
        if below is not None:
            standins = StandIns(self.model, below)
            feed = _feeder(standins, cache_at(below), passage_at(below), rows)
        try:
            CachingPass(self.model, last_blocks(cut), passage, rows, cache, feed).run(progress)
            if missing and not self._same_alone(cut, rows, missing, passage, cache, feed):
                shutil.rmtree(cache.folder, ignore_errors=True)
                block = self.anatomy.blocks[index].name
                raise CannotCut(f"the states of a row after {block} change with its padding")
        finally:
            if standins is not None:
                standins.remove()
            drop_tensors(self.model, names)

    def _same_alone(
        self,
        cut: Cut,
        rows: Mapping[str, Features],
        keys: Sequence[str],
        passage: Passage,
        cache: ActivationCache,
        feed: Feed | None,
    ) -> bool:
        """Whether the shortest of the `rows` with these `keys`, run alone, has the stored states, but for rounding."""
        key = min(keys, key=lambda key: passage.length(rows[key]))
        alone = pass_rows(self.model, last_blocks(cut), passage, {key: rows[key]}, feed)
        return same_states(alone[key], cache.read(key))

    def _names(self, *indices: int) -> tuple[str, ...]:
        """The tensors of some blocks that are not in memory; for block 0, also those of the embeddings."""
        tensors = [tensor for index in indices for tensor in self.anatomy.blocks[index].tensors]
        tensors += self.anatomy.embeddings if 0 in indices else ()
        return tuple(tensor.name for tensor in tensors if self.model.get_parameter(tensor.name).is_meta)


@dataclass(frozen=True)
class _Offset:
    """Reports the progress in one block as a part of the whole pass."""

    progress: Callable[[int, int], None]
    before: int
    total: int

    def __call__(self, done: int) -> None:
        self.progress(self.before + done, self.total)


def names_above(model: Any, anatomy: Anatomy, boundary: int) -> frozenset[str]:
    """The parameters of `model` that it needs in memory to train above block `boundary` from an activation cache.

    The weights may lie on the meta device. Raises `CannotCut` as `find_cut` does.
    """
    cut = find_cut(model, anatomy, boundary, weightless=True)
    covered = tuple(f"{path}." for stack in cut.stacks for path in (*stack.embeddings, *stack.blocks))
    running = tuple(f"{path}." for path in cut.running)
    names = (name for name, _ in model.named_parameters(remove_duplicate=False))
    return frozenset(name for name in names if name.startswith(running) or not name.startswith(covered))


def put_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give the named parameters of `model` these values, frozen and on the model's device."""
    device = device_of(model)
    for name, tensor in tensors.items():
        _replace(model, name, nn.Parameter(tensor.to(device), requires_grad=False))


def drop_tensors(model: nn.Module, names: Iterable[str]) -> None:
    """Move the named parameters to the meta device, which frees their memory."""
    for name in names:
        _replace(model, name, nn.Parameter(torch.empty_like(model.get_parameter(name), device="meta"), False))


def _replace(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    old = model.get_parameter(name)
    for module in model.modules():  # a tied tensor belongs to several modules
        for leaf, held in module._parameters.items():
            if held is old:
                module._parameters[leaf] = parameter


def _feeder(standins: StandIns, cache: ActivationCache, passage: Passage, rows: Mapping[str, Features]) -> Feed:
    def feed(keys: Any, batch: Mapping[str, Any]) -> None:
        states = stored_states(cache, rows_in_batch(keys, batch, [rows[key] for key in keys], passage.names))
        standins.feed({stream: value.to(passage.device) for stream, value in states.items()})

    return feed
