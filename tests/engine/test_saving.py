"""What a trainer saves: a delta that says what it is, or an ordinary checkpoint; a complete checkpoint, or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from cache_cases import arguments
from frostline.core.errors import CheckpointError, PlanError
from frostline.engine import Trainer
from frostline.run import make_plan
from grids import grid
from heads import collate, model_of, rows_of


def trainer_of(folder: Path, strategy: str, model: Any = None, **options: Any) -> Trainer:
    model = model_of("bert", "classes") if model is None else model
    args = arguments(
        folder,
        **{"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 4, **options},
    )
    plan = make_plan(model, strategy)
    return Trainer(model, args, plan=plan, train_dataset=rows_of("classes"), data_collator=collate)


@pytest.mark.parametrize("strategy", ["bot50", "lora", "bot50+lora", "bitfit", "head"])
def test_a_whole_model_is_an_ordinary_folder(tmp_path: Path, strategy: str) -> None:
    trainer = trainer_of(tmp_path / "run", strategy)
    trainer.train()
    trainer.save_model(str(tmp_path / "whole"), whole=True)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole").eval()
    batch = collate(rows_of("classes"))
    with torch.no_grad():
        expected = trainer.model.eval()(**batch).logits
        torch.testing.assert_close(plain(**batch).logits, expected, atol=1e-5, rtol=1e-4)
    assert trainer.applied.plan == make_plan(model_of("bert", "classes"), strategy), "the trained model keeps its plan"


def test_gates_cannot_be_merged_into_a_whole_model(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path / "run", "hlpt(2,2)")
    with pytest.raises(PlanError, match="cannot be merged"):
        trainer.save_model(str(tmp_path / "whole"), whole=True)
    assert not (tmp_path / "whole").exists()


def test_a_delta_s_folder_says_what_it_is_and_keeps_a_user_s_readme(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path / "run", "bot50")
    trainer.save_model(str(tmp_path / "out"))
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert 'frostline.load("out")' in text and "frostline merge out" in text
    (tmp_path / "out" / "README.md").write_text("mine", encoding="utf-8")
    trainer.save_model(str(tmp_path / "out"))
    assert (tmp_path / "out" / "README.md").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("whole", [False, True])
def test_the_collator_s_tokenizer_is_saved(tmp_path: Path, models_dir: Path, whole: bool) -> None:
    trainer = trainer_of(tmp_path / "run", "bot50")
    trainer.data_collator = DataCollatorWithPadding(AutoTokenizer.from_pretrained(models_dir / "all-MiniLM-L6-v2"))
    trainer.save_model(str(tmp_path / "out"), whole=whole)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("a word")["input_ids"]


@pytest.mark.parametrize(
    ("missing", "why"),
    [
        ("optimizer.json", r"save_only_model=true"),
        ("optimizer.safetensors", ""),
        ("scheduler.json", ""),
        ("schedule.json", ""),
        ("trainer_state.json", ""),
        ("rng_0.json", ""),
    ],
)
def test_an_incomplete_checkpoint_is_refused(tmp_path: Path, missing: str, why: str) -> None:
    trainer_of(tmp_path, "bot50").train()
    (tmp_path / "checkpoint-2" / missing).unlink()
    (tmp_path / "checkpoint-2" / "rng_1.json").touch()
    with pytest.raises(CheckpointError, match=rf"checkpoint-2: it has no {missing}.*{why}"):
        trainer_of(tmp_path, "bot50").train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize("given", [True, "checkpoint-2"])
def test_resuming_needs_a_checkpoint(tmp_path: Path, given: Any) -> None:
    trainer = trainer_of(tmp_path, "bot50")
    with pytest.raises(CheckpointError, match="valid checkpoint"):
        trainer.train(resume_from_checkpoint=given if given is True else str(tmp_path / given))
    assert trainer.state.global_step == 0, "it does not begin anew"


@pytest.mark.parametrize(("save_steps", "best"), [(1, "checkpoint-3"), (2, None), (3, "checkpoint-3")])
def test_the_best_checkpoint_is_one_that_was_saved(tmp_path: Path, save_steps: int, best: str | None) -> None:
    model, rows = model_of("bert", "classes"), rows_of("classes")
    best_is_first = {"metric_for_best_model": "loss", "greater_is_better": True}  # because the loss falls
    when = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": save_steps}
    args = arguments(tmp_path, **{"max_steps": 6, **when, **best_is_first})
    plan = make_plan(model, "bot50")
    trainer = Trainer(model, args, plan=plan, train_dataset=rows, eval_dataset=rows, data_collator=collate)
    trainer.train()
    assert trainer.state.best_global_step == 3
    assert trainer.state.best_model_checkpoint == (best and str(tmp_path / best))


@pytest.mark.parametrize(("name", "strategy"), grid(["bert", "llama"], ["bot50", "lora", "all"]))
def test_noise_on_the_embeddings_acts(tmp_path: Path, name: str, strategy: str) -> None:
    losses = []
    for noise, plain in ((None, False), (5.0, False), (5.0, True)):
        model = model_of(name, "classes")
        args = arguments(
            tmp_path, max_steps=4, logging_steps=1, per_device_train_batch_size=4, neftune_noise_alpha=noise
        )
        given: dict[str, Any] = {"train_dataset": rows_of("classes"), "data_collator": collate}
        trainer: Any = Trainer(model, args, plan=make_plan(model, strategy), **given)
        if plain:
            trainer = transformers.Trainer(model, args, **given)
        trainer.train()
        if noise and not plain:
            assert not trainer.cache_report.used
            assert strategy != "bot50" or "NEFTune" in trainer.cache_report.reason
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    same = 1 if strategy == "lora" else 4  # transformers.Trainer does not know the learning-rate scale of LoRA
    assert losses[1][:same] == pytest.approx(losses[2][:same], abs=1e-5)
    assert losses[0] != pytest.approx(losses[1], abs=1e-4)
