"""`attach` on trainers of TRL and sentence-transformers, and in Lightning: the losses are those without it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset, DatasetDict
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import frostline as fl
from cache_cases import frozen_by_hand
from grids import slow_but
from tolerances import LOSS

ROOT = Path(__file__).resolve().parents[2]
STORYTELLER = ROOT / "src" / "frostline" / "run" / "demo" / "storyteller"

trl = pytest.importorskip("trl", reason="trl is not installed")
# These libraries use what transformers 5 deprecates, and leave files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def cache_here(tmp_path: Path, own_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "cache"))


def tokenizer() -> Any:
    found = AutoTokenizer.from_pretrained(STORYTELLER)
    found.pad_token = found.pad_token or found.eos_token
    return found


def causal() -> Any:
    return AutoModelForCausalLM.from_pretrained(STORYTELLER, dtype=torch.float32)


def judge() -> Any:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(STORYTELLER, num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = tokenizer().pad_token_id
    return model


def settings(folder: Path, **options: Any) -> dict[str, Any]:
    given = {
        "output_dir": str(folder / "out"),
        "num_train_epochs": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.05,
        "optim": "sgd",
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return given | options


TEXTS = Dataset.from_dict(
    {"text": [f"Lily has {i} red apples and {'a dog' if i % 3 else 'two cats and a big tree'}." for i in range(16)]}
)
PAIRS = Dataset.from_dict(
    {
        "prompt": [f"Lily has {i}" for i in range(16)],
        "chosen": [" red apples.", " dogs and cats."] * 8,
        "rejected": [" no."] * 16,
    }
)


def sft(folder: Path, model: Any, peft_config: Any = None, **options: Any) -> Any:
    args = trl.SFTConfig(**settings(folder, **options))
    given = {"processing_class": tokenizer(), "peft_config": peft_config}
    return trl.SFTTrainer(model=model, args=args, train_dataset=TEXTS, **given)


def dpo(folder: Path, model: Any, peft_config: Any = None, **options: Any) -> Any:
    args = trl.DPOConfig(**settings(folder, **options))
    given = {"processing_class": tokenizer(), "peft_config": peft_config}
    return trl.DPOTrainer(model=model, args=args, train_dataset=PAIRS, **given)


def reward(folder: Path, model: Any, **options: Any) -> Any:
    args = trl.RewardConfig(**settings(folder, **options))
    return trl.RewardTrainer(model=model, args=args, train_dataset=PAIRS, processing_class=tokenizer())


def by_hand(model: Any, plan: str) -> Any:
    return frozen_by_hand(model, fl.make_plan(model, plan))


def losses(trainer: Any) -> list[float]:
    transformers.set_seed(3)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


CASES: dict[str, tuple[Callable[..., Any], Callable[[], Any], dict[str, Any], int]] = {
    "sft": (sft, causal, {}, 16),
    "sft, packed": (sft, causal, {"packing": True, "max_length": 64}, 16),
    "sft, without padding": (sft, causal, {"padding_free": True, "max_length": None}, 16),
    "sft, accumulation": (sft, causal, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}, 16),
    "dpo": (dpo, causal, {}, 32),
    "reward": (reward, judge, {}, 32),
}


@pytest.mark.parametrize("name", slow_but(["sft, packed", "reward"], CASES))
def test_trl(tmp_path: Path, name: str) -> None:
    make, model, options, rows = CASES[name]
    expected = losses(make(tmp_path, by_hand(model(), "bot50"), **options))
    trainer = make(tmp_path, model(), **options)
    kind = type(trainer)
    attached = fl.attach(trainer, plan="bot50")
    assert attached is trainer and type(attached) is kind
    assert losses(attached) == pytest.approx(expected, rel=10 * LOSS)
    assert attached.cache_report.rows == rows and attached.cache_report.computed == 0
    assert not attached.cache_report.given_up
    assert "loss positions are off: the trainer computes its loss itself" in attached.notices[0]


def test_policy_and_reference_of_dpo_read_the_same_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = fl.attach(dpo(tmp_path, causal(), num_train_epochs=1, per_device_train_batch_size=1), plan="bot50")
    policy, reference = (model.model.layers[0] for model in (trainer.model, trainer.ref_model))
    ran = {policy: 0, reference: 0}
    own = type(policy).forward

    def counted(block: Any, *args: Any, **kwargs: Any) -> Any:
        if block in ran:
            ran[block] += 1
        return own(block, *args, **kwargs)

    monkeypatch.setattr(type(policy), "forward", counted)  # a hook of a user's own would decline the cache
    trainer.train()
    assert trainer.state.global_step == 16
    assert trainer.cache_report.used and trainer.cache_report.rows == 32
    # The policy meets every row for the first time. The reference reads its states: it runs in its first call, which
    # tells its precision, and in the calls in which it is compared.
    assert ran[policy] >= 16 and ran[reference] <= 8, list(ran.values())


@pytest.mark.parametrize(("make", "rows"), slow_but([(dpo, 32)], [(sft, 16), (dpo, 32)]))
def test_a_lora_of_peft(tmp_path: Path, make: Callable[..., Any], rows: int) -> None:
    """In DPO the reference is the same model with its adapter switched off."""
    from peft import LoraConfig

    def made(folder: Path) -> Any:
        config = LoraConfig(target_modules=["q_proj"], layers_to_transform=[4, 5], task_type="CAUSAL_LM")
        transformers.set_seed(5)
        return make(folder, causal(), peft_config=config)

    attached = fl.attach(made(tmp_path / "ours"))
    assert losses(attached) == pytest.approx(losses(made(tmp_path / "plain")), rel=10 * LOSS)
    assert attached.cache_report.used and attached.cache_report.rows == rows and not attached.cache_report.given_up


ST: dict[str, tuple[dict[str, list[Any]], str, int]] = {
    "ranking": (
        {
            "anchor": [f"who has {i} apples" for i in range(16)],
            "positive": [f"Lily has {i} red apples and a {'dog' if i % 2 else 'very old cat'}" for i in range(16)],
            "negative": ["it rains", "it is night"] * 8,
        },
        "MultipleNegativesRankingLoss",
        34,
    ),
    "cosine": (
        {
            "sentence1": [f"a {i}" for i in range(16)],
            "sentence2": [f"b {i} c" for i in range(16)],
            "score": [i / 16 for i in range(16)],
        },
        "CosineSimilarityLoss",
        32,
    ),
}


@pytest.mark.parametrize("name", slow_but(["ranking"], ST))
def test_sentence_transformers(tmp_path: Path, models_dir: Path, name: str) -> None:
    st = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from sentence_transformers.sentence_transformer import losses as st_losses

    columns, loss, rows = ST[name]

    def made(folder: Path) -> Any:
        model = st.SentenceTransformer(str(models_dir / "all-MiniLM-L6-v2"), device="cpu")
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        args = st.SentenceTransformerTrainingArguments(**settings(folder, per_device_train_batch_size=8))
        data = Dataset.from_dict(columns)
        return st.SentenceTransformerTrainer(model, args, train_dataset=data, loss=getattr(st_losses, loss)(model))

    plain = made(tmp_path / "plain")
    (text,) = (module for module in plain.model.modules() if isinstance(module, transformers.PreTrainedModel))
    by_hand(text, "bot75")
    expected = losses(plain)
    attached = fl.attach(made(tmp_path / "ours"), plan="bot75")
    assert losses(attached) == pytest.approx(expected, rel=10 * LOSS)
    assert attached.cache_report.rows == rows and attached.cache_report.computed == 0
    assert not attached.cache_report.given_up


def test_sentence_transformers_with_a_loss_for_each_data_set(tmp_path: Path, models_dir: Path) -> None:
    st = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from sentence_transformers.sentence_transformer import losses as st_losses

    def made(folder: Path) -> Any:
        model = st.SentenceTransformer(str(models_dir / "all-MiniLM-L6-v2"), device="cpu")
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        args = st.SentenceTransformerTrainingArguments(**settings(folder, per_device_train_batch_size=8, max_steps=8))
        data = DatasetDict({name: Dataset.from_dict(columns) for name, (columns, _, _) in ST.items()})
        chosen = {name: getattr(st_losses, loss)(model) for name, (_, loss, _) in ST.items()}
        return st.SentenceTransformerTrainer(model, args, train_dataset=data, loss=chosen)

    plain = made(tmp_path / "plain")
    (text,) = (module for module in plain.model.modules() if isinstance(module, transformers.PreTrainedModel))
    by_hand(text, "bot75")
    attached = fl.attach(made(tmp_path / "ours"), plan="bot75")
    assert losses(attached) == pytest.approx(losses(plain), rel=10 * LOSS)
    assert attached.cache_report.used and not attached.cache_report.given_up


def test_dropout_in_frozen_blocks_is_off_although_forward_is_called_by_itself(tmp_path: Path, models_dir: Path) -> None:
    """sentence-transformers calls `forward`, not the model: hooks of the model do not run."""
    st = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    model = st.SentenceTransformer(str(models_dir / "all-MiniLM-L6-v2"), device="cpu")
    (text,) = (module for module in model.modules() if isinstance(module, transformers.PreTrainedModel))
    for module in text.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    fl.apply(fl.make_plan(text, "bot75"), text)
    model.train()
    ids = torch.tensor([[101, 2040, 2038, 102]])
    seen = []
    text.encoder.layer[3].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    for _ in range(2):
        text.forward(input_ids=ids, attention_mask=torch.ones_like(ids))
    first, second = (output[0] if isinstance(output, tuple) else output for output in seen)
    assert torch.equal(first, second)


def test_lightning(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")
    tokenize = tokenizer()
    rows = [dict(tokenize(text)) for text in TEXTS["text"]]
    collate = transformers.DataCollatorForLanguageModeling(tokenize, mlm=False)

    class Tuned(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = causal()
            fl.apply(fl.make_plan(self.model, "bot50"), self.model)
            self.found: list[float] = []

        def training_step(self, batch: Any, _index: int) -> Any:
            loss = self.model(**batch).loss
            self.found.append(float(loss.detach()))
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([p for p in self.model.parameters() if p.requires_grad], lr=0.05)

    def run(cached: bool) -> list[float]:
        module = Tuned()
        loader = torch.utils.data.DataLoader(rows, batch_size=4, collate_fn=collate)  # type: ignore[arg-type]
        trainer = lightning.Trainer(
            max_epochs=3,
            accelerator="cpu",
            accumulate_grad_batches=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            default_root_dir=str(tmp_path),
        )
        if not cached:
            trainer.fit(module, loader)
            return module.found
        with fl.activation_cache(module) as cache:
            trainer.fit(module, loader)
        assert cache.report.rows == 16 and cache.report.computed == 0 and cache.notices == ()
        return module.found

    assert run(True) == pytest.approx(run(False), rel=10 * LOSS)


EXAMPLES = ["sft", "dpo", "sentence_transformer", "plain_loop", "with_accelerate"]


@pytest.mark.parametrize("name", slow_but(["plain_loop"], EXAMPLES))
def test_the_examples_run(tmp_path: Path, request: pytest.FixtureRequest, name: str) -> None:
    model = STORYTELLER
    if name == "sentence_transformer":
        model = request.getfixturevalue("models_dir") / "all-MiniLM-L6-v2"
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), str(model)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "rows were stored" in done.stdout and " 0 calls" not in done.stdout
