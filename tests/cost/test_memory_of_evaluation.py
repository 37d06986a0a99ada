"""Peak memory of an evaluation, against torch's allocator."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cost_cases import base16, named_plans, whole_batch

from allocator import live_bytes_at_peak
from frostline.anatomy import find_anatomy
from frostline.cost import EvaluationWork, Workload, evaluation_memory, memory
from frostline.processes import ALONE
from frostline.surgery import apply
from frostline.tasks._predict import Batches, token_losses


@pytest.mark.parametrize("name", ["all", "bot50", "head"])
def test_the_loss_of_tokens(models_dir: Path, name: str) -> None:
    model = base16(models_dir, "sdpa").eval()
    anatomy = find_anatomy(model)
    plan = named_plans(anatomy)[name]
    apply(plan, model)
    batch = {**whole_batch(model, 8, 128), "example_id": [str(row) for row in range(8)]}
    model.config.use_cache = True  # as in a model that is loaded

    def evaluate() -> None:
        with torch.inference_mode():
            list(token_losses(model, Batches([list(range(8))], lambda _: dict(batch), ALONE), "decoder"))

    found = live_bytes_at_peak(evaluate) + sum(p.nbytes for p in model.parameters())
    workload = Workload(per_device_train_batch_size=4, length=64, activation_cache=True)
    predicted = evaluation_memory(plan, anatomy, workload, EvaluationWork(8, 128, 128, anatomy.vocab_size, keeps=True))
    assert predicted - memory(plan, anatomy, workload).optimizer == pytest.approx(found, rel=0.03)


def test_generation(models_dir: Path) -> None:
    model = base16(models_dir, "sdpa").eval()
    anatomy = find_anatomy(model)
    plan = named_plans(anatomy)["lora"]
    ids = torch.randint(5, anatomy.vocab_size, (16, 96))

    def write() -> None:
        with torch.inference_mode():
            model.generate(ids, max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0)

    found = live_bytes_at_peak(write) + sum(p.nbytes for p in model.parameters())
    work = EvaluationWork(1, 96, 1, anatomy.vocab_size, prompts=16, new_tokens=8)
    workload = Workload()
    own = memory(plan, anatomy, workload)
    added = own.weights - sum(p.nbytes for p in model.parameters())
    predicted = evaluation_memory(plan, anatomy, workload, work) - own.optimizer - added
    assert predicted == pytest.approx(found, rel=0.1)
