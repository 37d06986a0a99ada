"""Every head that users have: training under a plan is plain training of the same tensors, with the cache and without.

`docs/heads.md` shows what these tests find: `python tests/engine/test_heads.py` prints its table.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cache_cases import arguments
from frostline.engine import Trainer
from frostline.run import make_plan
from heads import collate, model_of, rows_of

DOC = Path(__file__).resolve().parents[2] / "docs" / "heads.md"
HEADS: dict[str, tuple[str, ...]] = {
    "classes": ("bert", "modernbert", "llama", "gpt2"),
    "several labels": ("bert", "distilbert"),
    "a number": ("bert", "distilbert"),
    "token classes": ("bert", "llama"),
    "answers": ("bert", "distilbert"),
    "choices": ("bert", "distilbert"),
    "masked": ("bert", "modernbert"),
    "causal": ("llama", "gpt2"),
    "seq2seq": ("t5", "bart"),
}
CASES = [(name, head) for head, names in HEADS.items() for name in names]
NAMES = {
    "classes": "sequence classification",
    "several labels": "sequence classification, several labels",
    "a number": "sequence classification, regression",
    "token classes": "token classification",
    "answers": "question answering",
    "choices": "multiple choice",
    "masked": "masked LM",
    "causal": "causal LM",
    "seq2seq": "sequence to sequence",
}


def losses(trainer: Any) -> list[float]:
    transformers.set_seed(7)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def made(folder: Path, name: str, head: str, dropout: float, **options: Any) -> Trainer:
    model = model_of(name, head, dropout)
    args = arguments(
        folder,
        max_steps=6,
        per_device_train_batch_size=2,
        logging_steps=1,
        optim="sgd",
        learning_rate=0.1,
        gradient_accumulation_steps=options.pop("accumulation", 1),
        report_to="none",
    )
    return Trainer(
        model, args, plan=make_plan(model, "bot50"), train_dataset=rows_of(head), data_collator=collate, **options
    )


def plain(folder: Path, name: str, head: str) -> Any:
    """transformers' own trainer, with the same tensors frozen."""
    ours = made(folder, name, head, 0.0, activation_cache="off")
    trained = {key for key, parameter in ours.model.named_parameters() if parameter.requires_grad}
    model = model_of(name, head)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key in trained)
    return transformers.Trainer(model, ours.args, train_dataset=rows_of(head), data_collator=collate)


@pytest.mark.parametrize(("name", "head"), CASES)
def test_with_the_cache_it_is_plain_training(tmp_path: Path, name: str, head: str) -> None:
    ours = made(tmp_path, name, head, 0.0, activation_cache="auto")
    ours.session._training = _without_estimate(ours)  # the cache is used wherever training stays the same
    assert losses(ours) == pytest.approx(losses(plain(tmp_path, name, head)), abs=1e-4)


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize(("name", "head"), CASES)
def test_with_dropout_above_it_draws_the_same(tmp_path: Path, name: str, head: str, accumulation: int) -> None:
    options: dict[str, Any] = {"loss_positions": False, "accumulation": accumulation}
    ours = made(tmp_path, name, head, 0.1, **options)
    ours.session._training = _without_estimate(ours)
    off = made(tmp_path, name, head, 0.1, activation_cache="off", **options)
    assert losses(ours) == pytest.approx(losses(off), abs=1e-4)


def _without_estimate(trainer: Trainer) -> Any:
    from dataclasses import replace

    own = trainer.session._training
    return lambda: replace(own(), estimate=None)


class Seen(transformers.TrainerCallback):
    """What runs at the loss positions alone while training runs: the last block, the head."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.narrow = trainer, (False, False)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        positions = self.trainer.positions
        self.narrow = (positions is not None and (positions.last_block, positions.chunked_head)) or (False, False)


def table() -> str:
    """The table of `docs/heads.md`, measured now."""
    lines = ["| head | model | activation cache | loss positions | notice |", "|---|---|---|---|---|"]
    for name, head in CASES:
        with tempfile.TemporaryDirectory() as folder:
            trainer = made(Path(folder), name, head, 0.0, accumulation=4)
            trainer.session._training = _without_estimate(trainer)
            seen = Seen(trainer)
            trainer.add_callback(seen)
            trainer.train()
            report = trainer.cache_report
            cache = "yes" if report.used else f"no: {report.reason}"
            where = {(True, True): "last block and head", (True, False): "last block", (False, True): "head"}
            notices = "; ".join(trainer.notices)
            lines.append(f"| {NAMES[head]} | {name} | {cache} | {where.get(seen.narrow, 'no')} | {notices} |")
    return "\n".join(lines)


def test_the_table_in_the_docs_is_what_is_found() -> None:
    assert table() in DOC.read_text(encoding="utf-8"), "python tests/engine/test_heads.py prints the table"


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table())
