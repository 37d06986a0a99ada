"""Models that train as they were given: by PEFT, by `requires_grad`, by `model_init`; and plans by their name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import TrainingArguments

import frostline as fl
from architectures import tiny
from cache_cases import StopAt, arguments, collate, losses, rows_for
from frostline.anatomy import find_anatomy, text_model
from frostline.core.errors import ConfigError, PlanError, UnsupportedModel
from grids import grid, slow_but
from hybrids import stir
from tolerances import LOSS, after_sgd

QUERIES = {"llama": "q_proj", "bert": "query", "gpt2": "c_attn", "t5": "q"}
KIND = {"llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM", "bert": "SEQ_CLS", "t5": "SEQ_2_SEQ_LM"}


@pytest.fixture(autouse=True)
def cache_here(tmp_path: Path, own_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "cache"))


def with_lora(name: str, first: int = 2, **options: Any) -> Any:
    """A tiny model with PEFT's LoRA in its blocks from `first` on."""
    model = tiny(name)
    config = LoraConfig(
        task_type=KIND[name],
        r=2,
        target_modules=[QUERIES[name]],
        layers_to_transform=list(range(first, len(find_anatomy(model).blocks))),
        fan_in_fan_out=name == "gpt2",
        **options,
    )
    torch.manual_seed(0)
    peft_model = get_peft_model(model, config)
    for parameter_name, parameter in peft_model.named_parameters():
        if "lora_B" in parameter_name:
            parameter.data.normal_(std=0.1)
    return peft_model


def with_hybrid(name: str) -> Any:
    """A tiny model with frostline's own adapters in its upper half."""
    blocks = [
        {"index": 2, "mode": "lora", "r": 2, "gate": True, "dropout": 0.0},
        {"index": 3, "mode": "prefix", "length": 3},
    ]
    peft_model = get_peft_model(tiny(name), fl.HybridConfig(blocks=[{"index": "0-1", "mode": "frozen"}, *blocks]))
    stir(peft_model)
    return peft_model


def half_frozen(name: str) -> Any:
    """A tiny model whose lower half was frozen by hand, and parts of whose upper half."""
    model = tiny(name)
    anatomy = find_anatomy(model)
    frozen = {tensor.name for tensor in anatomy.embeddings}
    frozen |= {tensor.name for block in anatomy.blocks[:2] for tensor in block.tensors}
    frozen |= {tensor.name for tensor in anatomy.blocks[3].tensors if tensor.is_bias}
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter_name not in frozen)
    return model


GIVEN = {
    "lora-llama": lambda: with_lora("llama"),
    "lora-gpt2": lambda: with_lora("gpt2"),
    "lora-bert": lambda: with_lora("bert"),
    "lora-t5": lambda: with_lora("t5"),
    "hybrid-llama": lambda: with_hybrid("llama"),
    "hybrid-bert": lambda: with_hybrid("bert"),
    "by-hand-llama": lambda: half_frozen("llama"),
    "by-hand-bert": lambda: half_frozen("bert"),
}


OWN = ("plan", "schedule", "activation_cache", "model_init", "loss_positions")


def made(folder: Path, model: Any, kind: Any = fl.Trainer, **options: Any) -> Any:
    own = {name: options.pop(name) for name in OWN if name in options}
    rows = rows_for(text_model(model or tiny("llama")))
    args = arguments(folder, **options)
    return kind(model=model, args=args, train_dataset=rows, data_collator=collate, **own)


def trained(*given: Any, **options: Any) -> Any:
    trainer = made(*given, **options)
    trainer.train()
    return trainer


def with_dropout(model: Any) -> Any:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    return model


def trained_values(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


@pytest.mark.parametrize(
    ("name", "accumulation"),
    slow_but([("lora-llama", 1), ("lora-t5", 2), ("hybrid-llama", 1), ("by-hand-bert", 2)], grid(list(GIVEN), [1, 2])),
)
def test_it_trains_as_plain_transformers_does(tmp_path: Path, name: str, accumulation: int) -> None:
    given = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    saving = made(tmp_path / "saving", GIVEN[name](), activation_cache="on", **given)
    frozen = {key: value.clone() for key, value in saving.model.named_parameters() if not value.requires_grad}
    saving.train()
    plain = made(tmp_path / "plain", GIVEN[name](), transformers.Trainer)
    plain.train()
    assert saving.cache_report.used and saving.cache_report.computed == 0
    assert losses(saving) == pytest.approx(losses(plain), rel=10 * LOSS)
    near = after_sgd(0.1, plain.state.global_step)
    for key, value in trained_values(plain.model).items():
        torch.testing.assert_close(trained_values(saving.model)[key], value, atol=near, rtol=0, msg=key)
    for key, value in saving.model.named_parameters():
        assert value.requires_grad or torch.equal(value, frozen[key])


@pytest.mark.parametrize(
    "name", slow_but(["hybrid-llama", "by-hand-bert"], ["lora-llama", "hybrid-llama", "by-hand-bert"])
)
def test_it_is_saved_as_transformers_saves_it_and_resumes_exactly(tmp_path: Path, name: str) -> None:
    whole = made(tmp_path / "whole", GIVEN[name](), save_strategy="steps", save_steps=4, max_steps=7)
    whole.train()
    stopped = made(tmp_path / "stopped", GIVEN[name](), save_strategy="steps", save_steps=4, max_steps=7)
    stopped.add_callback(StopAt(6))
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = made(tmp_path / "stopped", GIVEN[name](), save_strategy="steps", save_steps=4, max_steps=7)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.cache_report.used
    for key, value in trained_values(whole.model).items():
        assert torch.equal(trained_values(resumed.model)[key], value), key
    resumed.save_model(str(tmp_path / "saved"))
    for folder in (tmp_path / "saved", tmp_path / "stopped" / "checkpoint-7"):
        names = {path.name for path in folder.iterdir()}
        if name == "by-hand-bert":
            again = type(resumed.model).from_pretrained(folder)
        else:
            assert {"adapter_model.safetensors", "adapter_config.json"} <= names and "model.safetensors" not in names
            again = PeftModel.from_pretrained(tiny("llama"), folder)
        held = dict(again.named_parameters())
        for key, value in trained_values(whole.model).items():
            assert torch.equal(held[key], value), key


def test_dropout_of_a_given_model_acts_and_declines_the_cache(tmp_path: Path) -> None:
    # Where head and last block run at the loss positions alone, they draw other numbers.
    saving = trained(tmp_path / "saving", with_dropout(half_frozen("bert")), loss_positions=False)
    plain = trained(tmp_path / "plain", with_dropout(half_frozen("bert")), transformers.Trainer)
    assert losses(saving) == pytest.approx(losses(plain), rel=10 * LOSS)
    assert not saving.cache_report.used
    assert any("dropout acts below the boundary" in notice for notice in saving.notices)


def test_a_plan_may_keep_dropout_in_its_frozen_blocks(tmp_path: Path) -> None:
    plan = fl.make_plan(tiny("bert"), "bot50").model_copy(update={"frozen_dropout": True})
    keeping = trained(tmp_path / "keeping", with_dropout(tiny("bert")), plan=plan, loss_positions=False)
    by_hand = with_dropout(tiny("bert"))
    for mine, its in zip(by_hand.parameters(), keeping.model.parameters(), strict=True):
        mine.requires_grad_(its.requires_grad)
    plain = trained(tmp_path / "plain", by_hand, transformers.Trainer)
    assert losses(keeping) == pytest.approx(losses(plain), rel=10 * LOSS)
    assert "embeddings.dropout" in keeping.cache_report.reason and not keeping.cache_report.used
    without = trained(tmp_path / "without", with_dropout(tiny("bert")), plan="bot50", loss_positions=False)
    assert losses(without) != pytest.approx(losses(plain), rel=1e-3) and without.cache_report.used
    fl.save_plan(plan, tmp_path / "plan.yaml")
    assert fl.load_plan(tmp_path / "plan.yaml") == plan


def test_a_plan_and_a_schedule_by_their_names(tmp_path: Path) -> None:
    named = made(tmp_path / "named", tiny("llama"), plan="bot50")
    whole = made(tmp_path / "whole", tiny("llama"), plan=fl.make_plan(tiny("llama"), "bot50"))
    named.train()
    whole.train()
    assert named.applied.plan == whole.applied.plan and losses(named) == losses(whole)
    measured = made(tmp_path / "measured", tiny("llama"), plan="semantic")
    assert measured.applied.plan.strategy == "semantic"
    changing = made(tmp_path / "changing", tiny("llama"), schedule="adt-l50", max_steps=2)
    changing.train()
    assert changing.applied.plan.strategy.startswith("adt-l50")
    with pytest.raises(PlanError, match="make_schedule"):
        made(tmp_path / "wrong", tiny("llama"), plan="adt-l50")
    with pytest.raises(ConfigError, match="bto50"):
        made(tmp_path / "wrong", tiny("llama"), plan="bto50")


@pytest.mark.parametrize("given", slow_but(["schedule", "peft"], ["name", "plan", "schedule", "peft"]))
def test_model_init_makes_a_model_for_each_training(tmp_path: Path, given: str) -> None:
    options: dict[str, Any] = {
        "name": {"plan": "bot50"},
        "plan": {"plan": fl.make_plan(tiny("llama"), "bot50")},
        "schedule": {"schedule": "adt-l50", "logging_steps": 1},
        "peft": {},
    }[given]

    def model_init() -> Any:
        return with_lora("llama") if given == "peft" else tiny("llama")

    trainer = made(tmp_path / "init", None, model_init=model_init, activation_cache="auto", **options)
    trainer.train()
    first, model = losses(trainer), trainer.model
    trainer.train()
    assert trainer.model is not model and losses(trainer) == first
    kind = transformers.Trainer if given == "peft" else fl.Trainer
    init = {"model_init": model_init} if given == "peft" else {}
    once = made(tmp_path / "once", None if init else model_init(), kind, **options, **init)
    once.train()
    assert first == pytest.approx(losses(once), rel=10 * LOSS)
    assert trainer.cache_report.used == (given != "schedule")


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model_init"):
        made(tmp_path, None)
    with pytest.raises(ConfigError, match="no plan is given"):
        made(tmp_path, tiny("llama"))
    with pytest.raises(UnsupportedModel, match="already has PEFT adapters: train it as it is, without a plan"):
        made(tmp_path, with_lora("llama"), plan="bot50")
    trained_below = made(tmp_path, with_lora("llama", first=0), activation_cache="on")
    with pytest.raises(ConfigError, match="nothing is frozen below"):
        trained_below.train()


def test_an_adapter_below_the_boundary_declines_the_cache(tmp_path: Path) -> None:
    model = with_lora("llama", first=0)
    for name, parameter in model.named_parameters():
        if "layers.0" in name or "layers.1" in name:
            parameter.requires_grad_(False)
    trainer = made(tmp_path, model)
    trainer.train()
    assert not trainer.cache_report.used and "an adapter is on" in trainer.cache_report.reason
    assert isinstance(trainer.args, TrainingArguments)


def test_whole_merges_a_lora_of_peft(tmp_path: Path) -> None:
    trainer = trained(tmp_path / "run", with_lora("llama"))
    trainer.save_model(str(tmp_path / "whole"), whole=True)
    assert not (tmp_path / "whole" / "adapter_model.safetensors").exists()
    again = type(tiny("llama")).from_pretrained(tmp_path / "whole").eval()
    batch = collate(rows_for(tiny("llama"))[:3])
    with torch.no_grad():
        expected = trainer.model.eval()(**batch).logits
        torch.testing.assert_close(again(**batch).logits, expected, atol=1e-4, rtol=0)
    assert any("lora" in name for name, _ in trainer.model.named_parameters()), "the model itself stays as it is"
    trainer.save_model(str(tmp_path / "adapter"))
    for folder in (tmp_path / "whole", tmp_path / "adapter"):
        assert not [path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    gated = trained(tmp_path / "gated", with_hybrid("llama"))
    with pytest.raises(fl.FrostlineError, match="cannot be merged"):
        gated.save_model(str(tmp_path / "no"), whole=True)


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (lambda: fl.make_plan("model", "bot50"), "model: give a model, not str"),
        (lambda: fl.HybridConfig.of("hlpt"), "give a plan, not str"),
        (lambda: fl.train({"model": "a"}), "give a RunConfig, not dict"),
        (lambda: fl.load("nowhere"), "nowhere: there is no such folder"),
    ],
)
def test_things_of_the_wrong_kind_are_one_line(wrong: Any, line: str) -> None:
    with pytest.raises(fl.UserError, match=line) as caught:
        wrong()
    assert "\n" not in str(caught.value)


def test_a_strategy_measures_rows_to_which_the_collator_adds_labels() -> None:
    rows = [{"input_ids": row["input_ids"], "attention_mask": row["attention_mask"]} for row in rows_for(tiny("llama"))]

    def adding(some: Any) -> dict[str, torch.Tensor]:
        batch = collate(some)
        return batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}

    plan = fl.make_plan(tiny("llama"), "semantic", data=rows, data_collator=adding, frozen_dropout=True)
    assert plan.strategy == "semantic" and plan.frozen_dropout
