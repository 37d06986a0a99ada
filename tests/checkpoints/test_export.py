"""An ordinary LoRA folder: PEFT computes with it what the trained model computes, in a process without frostline.

The folder has one rank and one alpha, and no more than LoRA, because vLLM and llama.cpp read no more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from architectures import AUTO_CLASSES, batch_for, natural_task, tiny
from frostline.adapters import HybridConfig
from frostline.checkpoints import export_lora, load, save_delta
from frostline.core.errors import CheckpointError, PlanError
from frostline.plan import Bottleneck, Forward, Frozen, Full, Lora, Mixture, Partial, Peft, Plan, Prefix
from frostline.run import make_plan
from frostline.surgery import apply, change
from grids import slow_but
from hybrids import logits, stir
from tolerances import outputs, rounding

FAMILIES = ["llama", "opt", "gpt2", "qwen3", "gemma3", "t5", "bert", "gpt_neox"]
DTYPES = [torch.float32, torch.bfloat16]
FROZEN = {"final_norm": Frozen(), "head": Frozen()}


def mixed(blocks: int) -> Plan:
    """Frozen blocks between those with LoRA, and for each of these a rank, an alpha and targets of its own."""
    modes = [Frozen() for _ in range(blocks)]
    modes[1] = Lora(r=3, alpha=5, targets="all")
    modes[blocks - 1] = Lora(r=5, alpha=7, dropout=0.0)
    modes[blocks - 2] = Lora(r=2, alpha=0.3, targets="outputs") if blocks > 4 else Frozen()
    return Plan(blocks=tuple(modes), **FROZEN)


def alike(blocks: int) -> Plan:
    """Every other block has the same LoRA."""
    return Plan(blocks=tuple(Lora(r=4, alpha=6) if i % 2 else Frozen() for i in range(blocks)), **FROZEN)


def task_of(name: str) -> str:
    return "masked" if name == "bert" else natural_task(name)


def a_base(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> Any:
    tiny(name, task=task_of(name)).to(dtype).save_pretrained(folder)
    return AUTO_CLASSES[task_of(name)].from_pretrained(folder, dtype="auto").eval()


def learned(model: Any, plan: Plan | str) -> Any:
    apply(make_plan(model, plan) if isinstance(plan, str) else plan, model, seed=3)
    stir(model, std=0.2)
    return model.eval()


def blocks_of(name: str) -> int:
    return 7 if name == "t5" else 4


ELSEWHERE = """
import json, sys
class Block:
    def find_spec(self, name, *_):
        if name.split('.')[0] == 'frostline':
            raise ImportError('frostline is not installed here')
sys.meta_path.insert(0, Block())
import torch, transformers
from peft import PeftConfig, PeftModel
torch.set_num_threads(1)
for case in json.loads(sys.argv[1]):
    config = PeftConfig.from_pretrained(case["lora"])
    base = getattr(transformers, case["class"]).from_pretrained(config.base_model_name_or_path, dtype="auto")
    model = PeftModel.from_pretrained(base, case["lora"]).eval()
    with torch.no_grad():
        torch.save(model(**torch.load(case["batch"])).logits, case["logits"])
"""


def in_plain_peft(cases: list[dict[str, str]]) -> list[Tensor]:
    """The logits of each LoRA folder, on its base, in one process that cannot import frostline."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-c", ELSEWHERE, json.dumps(cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(case["logits"]) for case in cases]


def asked(lora: Path, model: Any) -> dict[str, str]:
    batch, model_class = lora.parent / f"{lora.name}.batch", type(model).__name__
    torch.save({key: value for key, value in batch_for(model).items() if key != "labels"} | decoder(model), batch)
    return {"lora": str(lora), "class": model_class, "batch": str(batch), "logits": f"{batch}.logits"}


def decoder(model: Any) -> dict[str, Tensor]:
    return {"decoder_input_ids": batch_for(model)["input_ids"]} if model.config.is_encoder_decoder else {}


def own_logits(model: Any) -> Tensor:
    return logits(model, **{k: v for k, v in batch_for(model).items() if k != "labels"}, **decoder(model))


@pytest.mark.parametrize("dtype", slow_but([torch.float32], DTYPES), ids=["float32", "bfloat16"])
def test_plain_peft_computes_what_the_trained_model_computes(tmp_path: Path, dtype: torch.dtype) -> None:
    expected, cases, exact = [], [], []
    for name in FAMILIES:
        for plan in (alike, mixed):
            place = tmp_path / name / plan.__name__
            model = learned(a_base(place / "base", name, dtype), plan(blocks_of(name)))
            before = own_logits(AUTO_CLASSES[task_of(name)].from_pretrained(place / "base", dtype="auto"))
            save_delta(model, place / "run")
            export_lora(place / "run", place / "lora")
            expected.append(own_logits(model))
            assert (expected[-1] - before).abs().max() > 100 * outputs(before), "what it learned is seen"
            cases.append(asked(place / "lora", model))
            exact.append(plan is alike)
    for case, got, right, same in zip(cases, in_plain_peft(cases), expected, exact, strict=True):
        if same:
            assert torch.equal(got, right), case["lora"]
        else:  # scales are in B; a bfloat16 sum may be rounded to its other neighbour
            near = outputs(right) if dtype == torch.float32 else 2**-7 * float(right.abs().max())
            torch.testing.assert_close(got, right, atol=near, rtol=0, msg=lambda text, at=case: f"{at['lora']}: {text}")


@pytest.mark.parametrize("strategy", slow_but(["int50+lora"], ["lora", "int50+lora"]))
def test_base16(tmp_path: Path, models_dir: Path, strategy: str) -> None:
    cases, expected = [], []
    for dtype in DTYPES:
        base = AutoModelForCausalLM.from_pretrained(models_dir / "base16", dtype=dtype).eval()
        model = learned(base, strategy)
        lora = tmp_path / str(dtype)
        export_lora(model, lora)
        config = json.loads((lora / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(models_dir / "base16")
        expected.append(own_logits(model))
        cases.append(asked(lora, model))
    got = in_plain_peft([cases[1]])  # the checkpoint is in bfloat16
    assert torch.equal(got[0], expected[1])
    wide = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(models_dir / "base16", dtype="float32"), lora)
    torch.testing.assert_close(own_logits(wide), expected[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_one_rank_one_alpha_and_the_update_that_was_learned(tmp_path: Path, name: str) -> None:
    model = learned(a_base(tmp_path / "base", name), mixed(4))
    done = export_lora(model, tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (5, 5, {}, {})
    assert (config["modules_to_save"], config["bias"], config["use_rslora"]) == (None, "none", False)
    assert config["fan_in_fan_out"] == (name == "gpt2")
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    layers = {path: layer for path, layer in model.named_modules() if hasattr(layer, "lora_A")}
    assert sorted(layers) == config["target_modules"] == list(done.modules)
    assert {key.rpartition(".lora_")[0] for key in tensors} == {f"base_model.model.{path}" for path in layers}
    for path, layer in layers.items():
        a, b = (tensors[f"base_model.model.{path}.lora_{side}.weight"] for side in "AB")
        assert len(a) == b.shape[1] == 5 and a.dtype == b.dtype == torch.float32
        update = layer.get_delta_weight("default").double()
        ours = (b.double() @ a.double()).T if name == "gpt2" else b.double() @ a.double()
        torch.testing.assert_close(ours, update, atol=rounding(5, update), rtol=0)


def test_equal_scales_are_not_touched(tmp_path: Path) -> None:
    blocks = (Lora(r=2, alpha=3), Frozen(), Lora(r=4, alpha=6), Frozen())
    model = learned(a_base(tmp_path / "base", "llama"), Plan(blocks=blocks, **FROZEN))
    done = export_lora(model, tmp_path / "lora")
    assert (done.r, done.alpha) == (4, 6)
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            written = tensors[f"base_model.model.{name.replace('.default', '')}"]
            inner, outer = tuple(slice(n) for n in parameter.shape), written.clone()
            assert torch.equal(written[inner], parameter)
            outer[inner] = 0
            assert not outer.any(), "the rest is zeros"


def test_the_folder_has_the_runs_tokenizer_and_says_how_to_load_it(tmp_path: Path, models_dir: Path) -> None:
    from transformers import AutoTokenizer

    model = learned(AutoModelForCausalLM.from_pretrained(models_dir / "stories260K"), "bot50+lora")
    save_delta(model, tmp_path / "run")
    export_lora(tmp_path / "run", tmp_path / "bare")
    assert not (tmp_path / "bare" / "tokenizer.json").exists()
    AutoTokenizer.from_pretrained(models_dir / "stories260K").save_pretrained(tmp_path / "run")
    export_lora(tmp_path / "run", tmp_path / "lora")
    assert (tmp_path / "lora" / "tokenizer.json").is_file()
    text = (tmp_path / "lora" / "README.md").read_text()
    for piece in (str(models_dir / "stories260K"), "--max-lora-rank 8", "convert_lora_to_gguf.py", 'dtype="float32"'):
        assert piece in text
    source = text.partition("```python\n")[2].partition("```")[0].replace('"lora"', f'"{tmp_path}/lora"')
    scope: dict[str, Any] = {}
    exec(compile(source, "README.md", "exec"), scope)
    ids = {"input_ids": torch.arange(3, 40)[None]}
    assert torch.equal(logits(scope["model"], **ids), logits(model, **ids))


def test_a_schedule_that_froze_lora_keeps_what_it_learned(tmp_path: Path) -> None:
    model = a_base(tmp_path / "base", "llama")
    lora = Lora(r=2, dropout=0.0)
    apply(Plan(blocks=(lora, lora, lora, Frozen()), **FROZEN), model, seed=3)
    stir(model, std=0.2)
    change(Plan(blocks=(Frozen(), lora, lora, Frozen()), **FROZEN), model)
    save_delta(model, tmp_path / "run")
    export_lora(tmp_path / "run", tmp_path / "lora")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert torch.equal(logits(PeftModel.from_pretrained(plain, tmp_path / "lora")), logits(model.eval()))


def test_what_trained_under_an_earlier_plan_is_refused(tmp_path: Path) -> None:
    model = a_base(tmp_path / "base", "llama")
    lora = Lora(r=2)
    apply(Plan(blocks=(lora, lora, Frozen(), Frozen()), **FROZEN), model)
    change(Plan(blocks=(lora, lora, Frozen(), Full()), **FROZEN), model)
    change(Plan(blocks=(lora, lora, Frozen(), Frozen()), **FROZEN), model)
    save_delta(model, tmp_path / "run")
    for source in (model, tmp_path / "run"):
        with pytest.raises(PlanError, match=r"model\.layers\.3\..* has trained too, .*: use frostline merge"):
            export_lora(source, tmp_path / "out")


def of(*blocks: Any, **others: Any) -> Plan:
    return Plan(blocks=(*(Frozen() for _ in range(4 - len(blocks))), *blocks), **{**FROZEN, **others})


REFUSED: dict[str, tuple[Plan, str]] = {
    "head": (of(Lora(), head=Full()), r"head trains, .*: use frostline merge, or a plan in which it is frozen"),
    "norm": (of(Lora(), final_norm=Full()), "final_norm trains, .*: use frostline merge"),
    "embeddings": (of(Lora(), embeddings=Full()), "embeddings trains, .*: use frostline merge"),
    "full": (of(Lora(), Full()), "block 3 has full, .*: use frostline merge$"),
    "partial": (of(Partial(train="biases"), Lora()), "block 2 has partial, .*: use frostline merge$"),
    "dora": (of(Lora(), Peft(method="dora")), "block 3 has dora, .*: use frostline merge$"),
    "ia3": (of(Lora(), Peft(method="ia3")), "block 3 has ia3, .*: use frostline merge$"),
    "gate": (of(Lora(), Lora(gate=True)), r"block 3 has lora with a gate, .*: use frostline\.load \("),
    "prefix": (of(Lora(), Prefix(length=2)), r"block 3 has prefix, .*: use frostline\.load \("),
    "series": (of(Bottleneck(kind="series")), r"block 3 has series adapter, .*: use frostline\.load \("),
    "mixture": (of(Mixture(experts=2, r=2), Full()), r"block 2 has mixture.*: use frostline\.load \("),
    "residual": (of(Lora(), forward=Forward(residual={"alpha": 0.1})), r"forward\.residual.*: use frostline\.load"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_anything_but_lora_is_one_line_that_names_the_way(tmp_path: Path, case: str) -> None:
    plan, message = REFUSED[case]
    name = "opt" if case == "partial" else "llama"
    model = a_base(tmp_path / "base", name)
    apply(plan, model)
    save_delta(model, tmp_path / "run")
    for source in (model, tmp_path / "run"):
        with pytest.raises(PlanError, match=message) as error:
            export_lora(source, tmp_path / "out")
        assert len(str(error.value).replace(str(tmp_path), "")) <= 300 and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_head_of_a_classifier_is_refused(tmp_path: Path) -> None:
    model = tiny("bert")
    apply(make_plan(model, "lora"), model)
    with pytest.raises(PlanError, match=r"head trains, .*vLLM and llama\.cpp read no more\): use frostline merge"):
        export_lora(model, tmp_path / "out")


def test_wrong_sources_and_damaged_runs(tmp_path: Path) -> None:
    model = a_base(tmp_path / "base", "llama")
    with pytest.raises(PlanError, match=r"no LoRA of a plan: use .*frostline\.apply"):
        export_lora(model, tmp_path / "out")
    with pytest.raises(CheckpointError, match="holds no delta"):
        export_lora(tmp_path / "base", tmp_path / "out")
    own = get_peft_model(tiny("llama"), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(PlanError, match=r"one of PEFT's own \(LoraConfig\): use its save_pretrained"):
        export_lora(own, tmp_path / "out")
    apply(alike(4), model)
    save_delta(model, tmp_path / "run")
    card = json.loads((tmp_path / "run" / "delta.json").read_text())
    card["plan"]["blocks"][1]["r"] = 3
    (tmp_path / "run" / "delta.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="does not have the shapes of its plan"):
        export_lora(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("x")
    with pytest.raises(CheckpointError, match="not empty"):
        export_lora(model, tmp_path / "out")


LORA = {"mode": "lora", "dropout": 0.0}
ORDINARY = [{"index": 0, **LORA, "r": 3, "alpha": 5}, {"index": "2-3", **LORA, "r": 2, "targets": "all"}]


HYBRIDS = ["llama", "gpt2", "bert"]


def of_lora(folder: Path, name: str) -> Any:
    model = get_peft_model(a_base(folder / "base", name), HybridConfig(blocks=ORDINARY))
    stir(model, std=0.2)
    model.save_pretrained(folder / "own")
    return model


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_hybrid_config_of_lora_saves_an_ordinary_folder(tmp_path: Path, name: str) -> None:
    model = of_lora(tmp_path, name)
    assert json.loads((tmp_path / "own" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert "mport frostline" not in (tmp_path / "own" / "README.md").read_text()
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    stir(model, std=0.1, seed=7)
    model.load_adapter(tmp_path / "own", "default")  # as a trainer resumes
    assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())


@pytest.mark.slow
def test_plain_peft_computes_what_a_hybrid_config_of_lora_computes(tmp_path: Path) -> None:
    rights, cases = [], []
    for name in HYBRIDS:
        model = of_lora(tmp_path / name, name)
        export_lora(model, tmp_path / name / "exported")
        base = model.get_base_model()
        rights.append(own_logits(base))
        cases += [asked(tmp_path / name / folder, base) for folder in ("own", "exported")]
    found = in_plain_peft(cases)
    for right, own, exported in zip(rights, found[::2], found[1::2], strict=True):
        # Sums in another order, LoRA's too: an exported one has scales in B and its ranks padded to one.
        near = 4 * outputs(right)
        torch.testing.assert_close(own, right, atol=near, rtol=0)
        torch.testing.assert_close(exported, own, atol=near, rtol=0)


@pytest.mark.parametrize(
    ("blocks", "way"),
    [
        ([{"index": 0, **LORA, "gate": True}], "save_pretrained and frostline"),
        ([{"index": 0, **LORA}, {"index": 1, "mode": "prefix"}], "save_pretrained and frostline"),
    ],
)
def test_another_hybrid_config_says_that_it_needs_frostline(tmp_path: Path, blocks: Any, way: str) -> None:
    model = get_peft_model(a_base(tmp_path / "base", "llama"), HybridConfig(blocks=blocks))
    for _ in range(2):
        model.save_pretrained(tmp_path / "own")
    text = (tmp_path / "own" / "README.md").read_text()
    head, note, _ = text.partition("> **Import frostline before you load this adapter.**")
    assert note and head.endswith("---\n") and text.count("Import frostline") == 1
    with pytest.raises(PlanError, match=f"block . has .*: use {way}"):
        export_lora(model, tmp_path / "out")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "own")
    assert isinstance(loaded.peft_config["default"], HybridConfig)


def test_lora_that_differs_in_dropout_stays_a_hybrid_config(tmp_path: Path) -> None:
    blocks = [{"index": 0, "mode": "lora", "dropout": 0.1}, {"index": 1, "mode": "lora", "dropout": 0.2}]
    model = get_peft_model(a_base(tmp_path / "base", "llama"), HybridConfig(blocks=blocks))
    model.save_pretrained(tmp_path / "own")
    assert json.loads((tmp_path / "own" / "adapter_config.json").read_text())["peft_type"] == "HYBRID"
    export_lora(model, tmp_path / "exported")


def test_a_head_that_peft_trains_beside_lora(tmp_path: Path) -> None:
    tiny("bert", task="classification").save_pretrained(tmp_path / "base")
    model = tiny("bert", task="classification")
    model = get_peft_model(model, HybridConfig(blocks=[{"index": 3, **LORA}], task_type="SEQ_CLS"))
    stir(model)
    model.save_pretrained(tmp_path / "own")
    plain = PeftModel.from_pretrained(tiny("bert", task="classification", seed=0), tmp_path / "own")
    assert isinstance(plain.peft_config["default"], LoraConfig)
    assert torch.equal(logits(plain), logits(model))
    with pytest.raises(PlanError, match=r"classifier.* has trained too, .*: use merge_and_unload"):
        export_lora(model, tmp_path / "out")


def test_the_run_is_read_without_its_base(tmp_path: Path) -> None:
    model = learned(a_base(tmp_path / "base", "llama"), alike(4))
    save_delta(model, tmp_path / "run")
    (tmp_path / "base").rename(tmp_path / "moved")
    export_lora(tmp_path / "run", tmp_path / "lora")
    loaded = load(tmp_path / "run", base=str(tmp_path / "moved"))
    export_lora(loaded, tmp_path / "again")
    files = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("lora", "again")]
    assert files[0].keys() == files[1].keys() and all(torch.equal(files[1][k], v) for k, v in files[0].items())
    assert AutoConfig.from_pretrained(tmp_path / "moved").model_type == "llama"


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    model = root / "src" / "frostline" / "run" / "demo" / "storyteller"
    command = [sys.executable, str(root / "examples" / "export_lora.py"), str(model)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "rank 8, alpha 32, 28 matrices; same logits: True" in done.stdout
    assert (tmp_path / "out" / "lora" / "folder" / "adapter_model.safetensors").is_file()
