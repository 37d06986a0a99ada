"""With the checks before training and without them, the same random numbers: the same masks of a masked LM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from cache_cases import arguments
from frostline.engine import Trainer
from frostline.run import make_plan
from heads import collate, model_of, rows_of


class Masking:
    """Masks tokens at random: with torch's own generator, or with one that it owns."""

    def __init__(self, own: bool) -> None:
        self.generator = torch.Generator().manual_seed(7) if own else None
        self.drawn: list[torch.Tensor] = []

    def __call__(self, rows: Any) -> dict[str, torch.Tensor]:
        batch = collate([{"input_ids": row["input_ids"], "attention_mask": row["attention_mask"]} for row in rows])
        masked = (torch.rand(batch["input_ids"].shape, generator=self.generator) < 0.3) & batch["attention_mask"].bool()
        masked[:, 1] = True  # a batch without labels has no loss
        self.drawn.append(masked)
        batch["labels"] = batch["input_ids"].where(masked, -100)
        batch["input_ids"] = batch["input_ids"].where(~masked, 2)
        return batch


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("own", [False, True])
def test_random_masks(tmp_path: Path, own: bool, accumulation: int) -> None:
    drawn = []
    for trainer_class in (Trainer, transformers.Trainer):
        model, masking = model_of("bert", "masked"), Masking(own)
        options: dict[str, Any] = {"plan": make_plan(model, "bot50")} if trainer_class is Trainer else {}
        args = arguments(tmp_path, max_steps=6, per_device_train_batch_size=2, gradient_accumulation_steps=accumulation)
        trainer_class(model, args, train_dataset=rows_of("masked"), data_collator=masking, **options).train()
        drawn.append(masking.drawn)
    assert len(drawn[0]) == len(drawn[1]) >= 6
    assert all(torch.equal(ours, plain) for ours, plain in zip(*drawn, strict=True))
