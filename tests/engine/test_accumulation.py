"""A step in several batches is the step of one batch of all their rows, for every head; or a notice says that not."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DataCollatorWithFlattening

from cache_cases import arguments
from frostline.checkpoints import trained_tensors
from frostline.engine import Trainer
from frostline.plan import Full, Plan
from frostline.run import make_plan
from grids import grid
from heads import collate, model_of, rows_of

CASES = [
    *[(name, head) for name in ("bert", "modernbert") for head in ("classes", "token classes", "masked")],
    *[(name, head) for name in ("bert", "distilbert") for head in ("answers", "several labels", "a number")],
    *[(name, head) for name in ("llama", "gpt2") for head in ("classes", "causal", "token classes")],
    ("t5", "seq2seq"),
    ("bart", "seq2seq"),
    ("bert", "choices"),
]
SPLITS = [(1, 8), (4, 2), (8, 1), (3, 3)]
RATE = 0.1
# A step of SGD is the rate times the gradient, whose sums come in another order: some 1e-6 of it.
CLOSE = {"atol": 1e-6, "rtol": 1e-4}


def plain_step(model: Any, rows: list[Any], trained: Any) -> dict[str, Tensor]:
    """One step of SGD on all rows as one batch, in a plain loop."""
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    model(**collate(rows)).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= RATE * parameter.grad
    return dict(model.named_parameters())


def trainer_of(folder: Path, model: Any, batch: int, parts: int, **options: Any) -> Trainer:
    own = {key: options.pop(key) for key in ("plan", "compute_loss_func", "activation_cache") if key in options}
    head = options.pop("head")
    args = arguments(
        folder,
        max_steps=1,
        optim="sgd",
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_grad_norm=options.pop("max_grad_norm", 0.0),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=parts,
        train_sampling_strategy="sequential",
        **options,
    )
    own = {"plan": Plan(blocks=(Full(),) * 4, embeddings=Full()), "activation_cache": "off", **own}
    return Trainer(model, args, train_dataset=rows_of(head), data_collator=collate, **own)


@pytest.mark.parametrize(("name", "head", "batch", "parts"), grid(CASES, SPLITS))
def test_the_step_of_one_batch(tmp_path: Path, name: str, head: str, batch: int, parts: int) -> None:
    model = model_of(name, head)
    trainer = trainer_of(tmp_path, model, batch, parts, head=head, plan=make_plan(model, "all"))
    trainer.train()
    got = trained_tensors(trainer.model)
    expected = plain_step(model_of(name, head), rows_of(head), got)
    for key, tensor in got.items():
        torch.testing.assert_close(tensor, expected[key].detach(), **CLOSE, msg=lambda text, key=key: f"{key}: {text}")
    assert not trainer.notices or "gradient_accumulation_steps" not in " ".join(trainer.notices)


def smoothed(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """A user's own loss, a mean over rows, which knows nothing of the step's size."""
    return torch.nn.functional.cross_entropy(outputs.logits, labels, label_smoothing=0.2)


@pytest.mark.parametrize(("batch", "parts"), [(4, 2), (3, 3)])
def test_a_loss_function_of_the_user(tmp_path: Path, batch: int, parts: int) -> None:
    trainers = [
        trainer_of(tmp_path, model_of("bert", "classes"), *split, head="classes", compute_loss_func=smoothed)
        for split in ((8, 1), (batch, parts))
    ]
    for trainer in trainers:
        trainer.train()
    whole, in_parts = (trained_tensors(trainer.model) for trainer in trainers)
    for key, tensor in whole.items():
        torch.testing.assert_close(in_parts[key], tensor, **CLOSE, msg=key)


@pytest.mark.parametrize("head", ["classes", "causal"])
def test_smoothed_labels(tmp_path: Path, head: str) -> None:
    name = "bert" if head == "classes" else "llama"
    trainers = [
        trainer_of(tmp_path, model_of(name, head), *split, head=head, label_smoothing_factor=0.1)
        for split in ((8, 1), (3, 3))
    ]
    for trainer in trainers:
        trainer.train()
    whole, in_parts = (trained_tensors(trainer.model) for trainer in trainers)
    for key, tensor in whole.items():
        torch.testing.assert_close(in_parts[key], tensor, **CLOSE, msg=key)


def contrast(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """In-batch negatives: a row's loss hangs on the rows beside it."""
    scores = outputs.logits @ outputs.logits.T
    return torch.nn.functional.cross_entropy(scores, torch.arange(len(scores)))


def test_a_loss_that_hangs_on_the_rows_beside_is_the_mean_over_parts(tmp_path: Path) -> None:
    model = model_of("bert", "classes")
    trainer = trainer_of(tmp_path, model, 4, 2, head="classes", compute_loss_func=contrast)
    trainer.train()
    assert "a step is the mean over its 2 batches" in " ".join(trainer.notices)
    plain = model_of("bert", "classes").train()
    got = trained_tensors(trainer.model)
    rows = rows_of("classes")
    losses = []
    for part in (rows[:4], rows[4:]):
        batch = collate(part)
        labels = batch.pop("labels")
        losses.append(contrast(plain(**batch), labels))
    torch.stack(losses).mean().backward()
    for key, parameter in plain.named_parameters():
        if key in got and parameter.grad is not None:
            torch.testing.assert_close(got[key], parameter.detach() - RATE * parameter.grad, **CLOSE, msg=key)


@pytest.mark.parametrize("head", ["causal", "token classes"])
@pytest.mark.parametrize(("batch", "parts"), [(4, 2), (2, 4)])
def test_packed_rows(tmp_path: Path, head: str, batch: int, parts: int) -> None:
    rows = [{name: row[name] for name in ("input_ids", "labels")} for row in rows_of(head)]
    pack = DataCollatorWithFlattening(return_tensors="pt")

    def step(batch: int, parts: int) -> Trainer:
        trainer = trainer_of(tmp_path, model_of("llama", head), batch, parts, head=head)
        trainer.train_dataset, trainer.data_collator = rows, pack
        trainer.train()
        return trainer

    whole, in_parts = step(8, 1), step(batch, parts)
    assert not [notice for notice in in_parts.notices if "gradient_accumulation_steps" in notice]
    got = trained_tensors(in_parts.model)
    for key, tensor in trained_tensors(whole.model).items():
        torch.testing.assert_close(got[key], tensor, **CLOSE, msg=key)


class Stream(torch.utils.data.IterableDataset[Any]):
    def __init__(self, head: str) -> None:
        self.head = head

    def __iter__(self) -> Any:
        return iter(rows_of(self.head))


@pytest.mark.parametrize(("batch", "parts"), [(1, 8), (4, 2)])
def test_a_stream(tmp_path: Path, batch: int, parts: int) -> None:
    trainer = trainer_of(tmp_path, model_of("bert", "classes"), batch, parts, head="classes")
    trainer.train_dataset = Stream("classes")
    trainer.train()
    got = trained_tensors(trainer.model)
    expected = plain_step(model_of("bert", "classes"), rows_of("classes"), got)
    for key, tensor in got.items():
        torch.testing.assert_close(tensor, expected[key].detach(), **CLOSE, msg=key)


@pytest.mark.parametrize("head", ["several labels", "token classes"])
def test_a_stream_in_bf16(tmp_path: Path, head: str) -> None:
    trainer = trainer_of(tmp_path, model_of("bert", head), 3, 3, head=head, bf16=True)
    trainer.train_dataset = Stream(head)
    trainer.train()
    assert not [notice for notice in trainer.notices if "gradient_accumulation_steps" in notice]


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_the_end_of_a_stream_is_a_step(tmp_path: Path, name: str) -> None:
    head = "classes" if name == "bert" else "causal"

    def step(batch: int, parts: int) -> Trainer:
        trainer = trainer_of(tmp_path, model_of(name, head), batch, parts, head=head, max_grad_norm=1.0)
        trainer.args.max_steps = 4
        trainer.train_dataset = Stream(head)
        trainer.train()
        return trainer

    whole, in_parts = step(6, 1), step(2, 3)  # of 8 rows: 6 and 2, twice
    logged = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (whole, in_parts)]
    assert logged[1] == pytest.approx(logged[0], rel=1e-5) and len(logged[0]) == 4
    got = trained_tensors(in_parts.model)
    for key, tensor in trained_tensors(whole.model).items():
        torch.testing.assert_close(got[key], tensor, atol=1e-5, rtol=1e-4, msg=key)


TWO_PROCESSES = """
    import sys
    from pathlib import Path
    import torch
    from frostline.checkpoints import trained_tensors
    from frostline.run import make_plan
    from heads import model_of
    from test_accumulation import trainer_of

    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for name, head in (("bert", "classes"), ("llama", "causal"), ("gpt2", "token classes")):
        model = model_of(name, head)
        trainer = trainer_of(folder, model, 2, 2, head=head, plan=make_plan(model, "all"))
        trainer.train()
        assert not trainer.notices or "mean over" not in " ".join(trainer.notices)
        if trainer.args.process_index == 0:
            torch.save(trained_tensors(trainer.model), folder / f"{name}.pt")
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_make_the_step_of_one_batch(tmp_path: Path) -> None:
    script, tests = tmp_path / "train.py", Path(__file__).resolve().parents[1]
    script.write_text(textwrap.dedent(TWO_PROCESSES))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests / 'engine'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name, head in (("bert", "classes"), ("llama", "causal"), ("gpt2", "token classes")):
        got = torch.load(tmp_path / f"{name}.pt")
        expected = plain_step(model_of(name, head), rows_of(head), got)
        for key, tensor in got.items():
            torch.testing.assert_close(tensor, expected[key].detach(), **CLOSE, msg=f"{name}: {key}")
