"""Write a checkpoint part by part, so that the whole model is never in memory.

A part is some consecutive blocks, or the tensors outside the blocks. transformers' own `save_pretrained` saves each
part, with the tensor names and shapes of an ordinary checkpoint. Each part becomes one shard.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from frostline.anatomy import Anatomy
from frostline.core.files import write_json

PART_BYTES = 2**29


def parts_of(anatomy: Anatomy) -> Iterator[frozenset[str]]:
    """The names of all tensors, part by part.

    A part has at most `PART_BYTES` in float32, unless it is a single block. The tensors outside the blocks come first,
    together with the first blocks if these fit.
    """
    around = (*anatomy.embeddings, *anatomy.final_norm, *anatomy.head)
    part: set[str] = set()
    size = 0
    for tensors in (around, *(block.tensors for block in anatomy.blocks)):
        own = sum(4 * tensor.numel for tensor in tensors)
        if part and size + own > PART_BYTES:
            yield frozenset(part)
            part, size = set(), 0
        part |= {tensor.name for tensor in tensors}
        size += own
    yield frozenset(part)


class Shards:
    """Collects the parts of one checkpoint in `folder`; `finish` makes one checkpoint of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: list[Path] = []
        self._parameters = 0

    def add(self, model: Any) -> None:
        """Save the tensors of `model` that are in memory. The first part also has its config and buffers."""
        state = {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_meta}
        if self._files:
            buffers = {name for name, _ in model.named_buffers()}
            state = {name: tensor for name, tensor in state.items() if name not in buffers}
        model.save_pretrained(self._folder, state_dict=state, max_shard_size="1000TB")
        number = len(self._files) + 1
        self._files.append((self._folder / SAFE_WEIGHTS_NAME).rename(self._folder / f"part-{number}"))
        self._parameters = model.num_parameters()

    def finish(self) -> None:
        """Name the shards as transformers does, and write the index if there are several."""
        if len(self._files) == 1:
            self._files[0].rename(self._folder / SAFE_WEIGHTS_NAME)
            return
        places: dict[str, str] = {}
        size = 0
        for number, file in enumerate(self._files, start=1):
            shard = f"model-{number:05d}-of-{len(self._files):05d}.safetensors"
            names, own = _contents(file)
            places |= dict.fromkeys(names, shard)
            size += own
            file.rename(self._folder / shard)
        facts = {"total_parameters": self._parameters, "total_size": size}
        write_json(
            self._folder / SAFE_WEIGHTS_INDEX_NAME, {"metadata": facts, "weight_map": dict(sorted(places.items()))}
        )


def _contents(file: Path) -> tuple[list[str], int]:
    """The names of the tensors in a shard, and their size in bytes."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    header.pop("__metadata__", None)
    return list(header), sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in header.values())
