"""Delta + base = the trained model, bit for bit; a delta refuses a base that is not its own; merge."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BertForSequenceClassification

from architectures import batch_for, tiny
from frostline.checkpoints import load, load_config, load_delta, load_weights, merge, save_delta
from frostline.core.errors import CheckpointError, ConfigError, UnsupportedModel
from frostline.plan import Frozen, Full, Lora, Partial, Plan
from frostline.run import make_plan
from frostline.surgery import apply
from tolerances import outputs

CASES: dict[str, tuple[str, Plan | str, dict[str, Any]]] = {
    "all": ("llama", "all", {"tied": True}),
    "bot50": ("llama", "bot50", {"tied": True}),
    "int50-gpt2": ("gpt2", "int50", {}),
    "head-untied": ("llama", "head", {"tied": True}),
    "lora": ("llama", "lora", {}),
    "lora-gpt2": ("gpt2", "lora", {}),
    "rows": ("llama", Plan(blocks=(Frozen(), Frozen(), Partial(rows=0.5), Full())), {}),
    "mixed": ("llama", Plan(blocks=(Frozen(), Lora(r=2), Lora(r=4, alpha=3), Full())), {}),
    "t5": ("t5", "bot50", {}),
    "bert": ("bert", "bot50", {}),
    "mixtral": ("mixtral", "top50", {}),
    "gemma3": ("gemma3", "bot50", {}),
}


def train(model: Any, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for seed in range(steps):
        model(**batch_for(model, seed=seed)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def trained_run(tmp_path: Path, case: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Path, Path]:
    name, strategy, options = CASES[case]
    base, run = tmp_path / "base", tmp_path / "run"
    tiny(name, **options).to(dtype).save_pretrained(base)
    model = type(tiny(name, **options)).from_pretrained(base, dtype="auto")
    plan = make_plan(model, strategy) if isinstance(strategy, str) else strategy
    apply(plan, model, seed=3)
    train(model)
    save_delta(model, run)
    return model, base, run


@pytest.mark.parametrize("case", CASES)
def test_loading_gives_the_trained_model_bit_for_bit(tmp_path: Path, case: str) -> None:
    model, _, run = trained_run(tmp_path, case)
    again = load(run)
    ours, theirs = dict(model.named_parameters()), dict(again.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(p, theirs[n]) and p.dtype == theirs[n].dtype for n, p in ours.items())
    batch = batch_for(model)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, again(**batch).logits)


@pytest.mark.parametrize("case", CASES)
def test_merging_gives_an_ordinary_checkpoint(tmp_path: Path, case: str) -> None:
    model, _, run = trained_run(tmp_path, case)
    out = merge(run, tmp_path / "merged").folder
    plain = type(tiny(CASES[case][0])).from_pretrained(out, dtype="auto")
    batch = batch_for(model)
    with torch.no_grad():
        expected, got = model(**batch).logits, plain(**batch).logits
    if "lora" in case or case == "mixed":
        torch.testing.assert_close(got, expected, atol=outputs(expected), rtol=0)
    else:
        assert torch.equal(got, expected)
        trained = dict(model.named_parameters())
        for name, tensor in plain.named_parameters():
            if name in trained:
                assert torch.equal(tensor, trained[name]), name


def test_lora_merges_as_peft_merges_it(tmp_path: Path) -> None:
    _, base, run = trained_run(tmp_path, "lora")
    out = merge(run, tmp_path / "merged").folder
    reference = AutoModelForCausalLM.from_pretrained(base)
    wrapped = get_peft_model(reference, LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"]))
    tensors = load_file(run / "delta.safetensors")
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if name in tensors:
                parameter.copy_(tensors[name])
    merged = wrapped.merge_and_unload()
    ours = AutoModelForCausalLM.from_pretrained(out)
    assert all(torch.equal(p, ours.get_parameter(n)) for n, p in merged.named_parameters())


def test_the_merged_folder_loads_where_frostline_is_not(tmp_path: Path) -> None:
    model, _, run = trained_run(tmp_path, "bot50")
    out = merge(run, tmp_path / "merged").folder
    batch = batch_for(model)
    torch.save({k: v for k, v in batch.items() if k != "labels"}, tmp_path / "batch.pt")
    code = f"""
import sys
class Block:
    def find_spec(self, name, *_):
        if name.split('.')[0] == 'frostline':
            raise ImportError('frostline is not installed here')
sys.meta_path.insert(0, Block())
import torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained({str(out)!r})
with torch.no_grad():
    torch.save(model(**torch.load({str(tmp_path / "batch.pt")!r})).logits, {str(tmp_path / "logits.pt")!r})
assert not any(name.split('.')[0] == 'frostline' for name in sys.modules)
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "logits.pt"), model(**batch).logits)


def test_a_bfloat16_base_keeps_its_frozen_tensors(tmp_path: Path) -> None:
    _model, base, run = trained_run(tmp_path, "bot50", torch.bfloat16)
    saved = load_file(run / "delta.safetensors")
    assert {t.dtype for t in saved.values()} == {torch.float32}
    out = merge(run, tmp_path / "merged").folder
    merged = load_file(out / "model.safetensors")
    original = load_file(base / "model.safetensors")
    trained = set(saved)
    assert {t.dtype for t in merged.values()} == {torch.float32}
    assert all(torch.equal(merged[n], original[n].float()) for n in merged if n not in trained)
    assert all(torch.equal(merged[n], saved[n]) for n in trained)
    rounded = load_file(merge(run, tmp_path / "rounded", dtype="bfloat16").folder / "model.safetensors")
    assert {t.dtype for t in rounded.values()} == {torch.bfloat16}


@pytest.mark.parametrize("case", ["all", "bot50", "lora"])
def test_another_base_is_refused(tmp_path: Path, case: str) -> None:
    _, base, run = trained_run(tmp_path, case)
    tiny("llama", seed=1, tied=CASES[case][2].get("tied")).save_pretrained(base)
    with pytest.raises(CheckpointError, match="belongs to another base"):
        load(run)


def test_one_changed_number_in_the_base_is_refused(tmp_path: Path) -> None:
    _, base, run = trained_run(tmp_path, "bot50")
    other = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    with pytest.raises(CheckpointError, match=r"1 of \d+ tensors differ, first model.layers.0.mlp.up_proj.weight"):
        load_delta(other, run)


def test_a_new_task_head_drawn_otherwise_is_no_other_base(tmp_path: Path) -> None:
    model, _, run = trained_run(tmp_path, "bert")
    fresh = tiny("bert")
    torch.nn.init.normal_(fresh.classifier.weight)
    load_delta(fresh, run)
    assert torch.equal(fresh.classifier.weight, model.classifier.weight)


def test_a_new_task_head_that_stays_frozen_is_drawn_again(tmp_path: Path) -> None:
    tiny("bert", task="masked").save_pretrained(tmp_path / "base")
    torch.manual_seed(5)
    model = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    apply(Plan(blocks=(Frozen(), Frozen(), Frozen(), Full()), head=Frozen()), model, seed=5)
    train(model)
    save_delta(model, tmp_path / "run")
    state = torch.get_rng_state()
    again = load(tmp_path / "run")
    assert all(torch.equal(tensor, again.get_parameter(name)) for name, tensor in model.named_parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_a_base_that_has_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, base, run = trained_run(tmp_path, "bot50")
    (tmp_path / "elsewhere").mkdir()
    moved = base.rename(tmp_path / "elsewhere" / "base")
    monkeypatch.setenv("FROSTLINE_MODELS", str(moved.parent))
    with pytest.raises(CheckpointError, match=r"base of .*run: .*no such folder.*if it has moved"):
        load(run)
    assert load(run, base=str(moved)).config.model_type == "llama"
    assert load(run, base="owner/base").config.model_type == "llama"


def test_a_folder_without_a_delta_of_its_own_points_to_its_checkpoint(tmp_path: Path) -> None:
    _, _, run = trained_run(tmp_path, "bot50")
    run.rename(tmp_path / "checkpoint-7")
    with pytest.raises(CheckpointError, match=r"holds no delta.*last checkpoint, .*checkpoint-7"):
        load(tmp_path)
    (tmp_path / "checkpoint-7" / "delta.json").write_text('{"version": 1}')
    with pytest.raises(CheckpointError, match=r"not a delta card of version 1: base_name: this key is missing$"):
        load(tmp_path / "checkpoint-7")


def test_a_delta_is_no_model_to_train(tmp_path: Path) -> None:
    _, _, run = trained_run(tmp_path, "bot50")
    with pytest.raises(UnsupportedModel, match="a run's delta, not a model: use frostline merge"):
        load_weights(str(run), AutoModelForCausalLM, load_config(str(run)))


def test_a_head_of_another_size_is_refused(tmp_path: Path) -> None:
    tiny("bert").save_pretrained(tmp_path / "base")
    with pytest.raises(UnsupportedModel, match="as many labels as that head was made for") as caught:
        load_weights(
            str(tmp_path / "base"), BertForSequenceClassification, load_config(str(tmp_path / "base"), num_labels=5)
        )
    assert "\n" not in str(caught.value)


def test_torn_and_foreign_deltas(tmp_path: Path) -> None:
    _, _, run = trained_run(tmp_path, "bot50")
    whole = (run / "delta.safetensors").read_bytes()
    (run / "delta.safetensors").write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="delta file cannot be read"):
        load(run)
    (run / "delta.safetensors").write_bytes(whole)
    card = json.loads((run / "delta.json").read_text())
    card["plan"]["blocks"][3] = {"mode": "frozen"}
    (run / "delta.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="does not hold the tensors that its plan trains"):
        load(run)
    with pytest.raises(CheckpointError, match="holds no delta"):
        load(tmp_path)


def test_merge_does_not_overwrite(tmp_path: Path) -> None:
    _, _, run = trained_run(tmp_path, "bot50")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("x")
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        merge(run, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["precious.txt"]
    with pytest.raises(ConfigError, match="unknown dtype 'int8'"):
        merge(run, tmp_path / "other", dtype="int8")
    assert not (tmp_path / "other").exists()
