"""Batches grouped by length: little padding, every row once an epoch, the same after a resume."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from test_trainer import arguments

from architectures import tiny
from cache_cases import StopAt
from frostline.checkpoints import trained_tensors
from frostline.engine import GroupedByLength, Trainer
from frostline.run import make_plan

LENGTHS = random.Random(0).choices(range(1, 50), k=203)


def test_groups_hold_rows_of_about_equal_length() -> None:
    sampler = GroupedByLength(8, LENGTHS, seed=1)
    order = list(sampler)
    assert sorted(order) == list(range(203))
    batches = [[LENGTHS[row] for row in order[i : i + 8]] for i in range(0, 203, 8)]
    padded = sum(len(batch) * max(batch) for batch in batches)
    assert padded < 1.2 * sum(LENGTHS)


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        torch.rand(epoch + 1)  # as training does in between
        sampler = GroupedByLength(8, LENGTHS, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(*case)) for case in ((1, 0), (1, 1), (2, 0))}) == 3


@pytest.mark.parametrize("stop", [2, 7])
def test_killed_and_resumed_sees_the_batches_of_a_run_never_killed(tmp_path: Path, stop: int) -> None:
    def made(folder: str) -> tuple[Trainer, list[tuple[int, ...]]]:
        model = tiny("llama", dropout=0.1)
        generator = torch.Generator().manual_seed(0)
        rows = [torch.randint(3, 128, (length % 12 + 2,), generator=generator) for length in LENGTHS[:20]]
        seen: list[tuple[int, ...]] = []

        def collate(batch: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
            ids = [row["input_ids"] for row in batch]
            padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
            seen.append(tuple(len(row) for row in ids))
            return {"input_ids": padded, "labels": padded.masked_fill(padded == 0, -100)}

        options = {"train_sampling_strategy": "group_by_length", "save_steps": 1, "max_steps": 12}
        trainer = Trainer(
            model,
            arguments(tmp_path / folder, **options),
            plan=make_plan(model, "bot50"),
            train_dataset=[{"input_ids": row, "labels": row} for row in rows],  # 5 batches an epoch
            data_collator=collate,
            activation_cache="off",
        )
        return trainer, seen

    whole, batches = made("whole")
    whole.train()
    assert len(set(batches[:5])) == 5 and batches[:5] != batches[5:10]
    killed, _ = made("killed")
    killed.add_callback(StopAt(stop))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed, again = made("killed")
    torch.rand(3)
    resumed.train(resume_from_checkpoint=True)
    rest = 12 - (stop - 1)
    assert again[-rest:] == batches[-rest:]
    got = trained_tensors(resumed.model)
    assert all(torch.equal(tensor, got[name]) for name, tensor in trained_tensors(whole.model).items())
