"""States of announced batches: a row that is found to be damaged is missing in every batch, and never an error."""

from __future__ import annotations

import threading
from pathlib import Path

import torch

from frostline.bottom import ActivationCache, ReadAhead, Stream, row_key
from frostline.core import cache


def test_two_announced_batches_with_one_damaged_row(tmp_path: Path) -> None:
    rows = [{"input_ids": [5, 6, 7 + i]} for i in range(3)]
    keys = [row_key(row, ["input_ids"]) for row in rows]
    written = ActivationCache.open(tmp_path, {"of": "test"}, {"hidden": Stream(2, torch.float32)})
    written.write({key: {"hidden": torch.full((3, 2), float(i))} for i, key in enumerate(keys)})
    (path,) = cache.shards(written.folder)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # of the last row
    path.write_bytes(content)
    opened = ActivationCache.open(tmp_path, {"of": "test"}, {"hidden": Stream(2, torch.float32)})
    reader, go = ReadAhead(opened, ["input_ids"], {"hidden": "input_ids"}), threading.Event()
    reader._pool.submit(go.wait)
    batches = []
    for pair in ([0, 2], [1, 2], [0, 1]):
        batches.append({"input_ids": torch.tensor([rows[i]["input_ids"] for i in pair])})
        reader.expect([rows[i] for i in pair], batches[-1])
    go.set()
    found = [reader.take(batch) for batch in batches]
    assert found[:2] == [None, None] and found[2] is not None
    assert found[2]["hidden"].tolist() == [[[0.0] * 2] * 3, [[1.0] * 2] * 3]
    assert reader.take(batches[0]) is None and keys[2] not in opened
    reader.close()
