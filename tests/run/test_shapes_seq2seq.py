"""The shapes of tasks that encoder-decoders can do, on tiny random T5 and BART models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from frostline.checkpoints import merge
from frostline.core.errors import UserError
from frostline.records import RunRecord
from frostline.run import evaluate_target, read_config, train
from frostline.tasks import TaskKind, encode, prepare_tokenizer
from shapes import shape
from shapes import shapes as shapes  # a fixture

T5 = {"d_ff": 48, "d_kv": 16, "num_layers": 3, "num_heads": 2, "dropout_rate": 0.0}
BART = {f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in (("ffn_dim", 48), ("layers", 2))}
BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 128}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
QUIET = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "forced_eos_token_id": None}


@pytest.fixture
def model(request: pytest.FixtureRequest, models_dir: Path, tmp_path: Path) -> str:
    tokenizer = AutoTokenizer.from_pretrained(models_dir / "stories260K")
    tokenizer.pad_token = "<unk>"
    made: Any
    if request.param == "t5":
        made = T5ForConditionalGeneration(T5Config(vocab_size=512, d_model=32, decoder_start_token_id=0, **T5, **ENDS))
    else:
        config = BartConfig(vocab_size=512, d_model=32, decoder_start_token_id=2, **BART, **ENDS, **QUIET)
        made = BartForConditionalGeneration(config)
    made.save_pretrained(tmp_path / request.param)
    tokenizer.save_pretrained(tmp_path / request.param)
    return str(tmp_path / request.param)


def _losses(record: RunRecord) -> list[float]:
    assert record.metrics is not None
    return [entry["loss"] for entry in record.metrics.history if "loss" in entry]


@pytest.mark.usefixtures("shapes")
@pytest.mark.parametrize(
    ("model", "kind", "head"),
    [
        ("t5", TaskKind.GENERATION, "T5ForConditionalGeneration"),
        ("t5", TaskKind.CHOICE, "T5ForConditionalGeneration"),
        pytest.param("t5", TaskKind.REGRESSION, "T5ForSequenceClassification", marks=pytest.mark.slow),
        ("bart", TaskKind.MULTI_LABEL, "BartForSequenceClassification"),
        pytest.param("bart", TaskKind.GENERATION, "BartForConditionalGeneration", marks=pytest.mark.slow),
    ],
    indirect=["model"],
)
def test_trained_evaluated_and_merged_with_the_losses_of_plain_training(
    model: str, kind: TaskKind, head: str, tmp_path: Path
) -> None:
    config = read_config(
        None, model=model, task=f"small-{kind}", out=str(tmp_path / "off"), strategy="bot50", max_steps=3, threads=1,
        per_device_train_batch_size=4, max_length=48, bf16=False, logging_steps=1, max_new_tokens=4,
        learning_rate=1e-3, activation_cache="off",
    )  # fmt: skip
    plain = train(config)
    cached = train(config.model_copy(update={"out": str(tmp_path / "on"), "activation_cache": "on"}))
    assert cached.model.model_class == head
    assert any("passed the frozen bottom" in notice for notice in cached.notices)
    assert _losses(cached) == pytest.approx(_losses(plain), abs=1e-4)
    merge(tmp_path / "on", tmp_path / "merged")
    given = {"max_length": 48, "max_new_tokens": 4, "bf16": False}
    again = evaluate_target(str(tmp_path / "merged"), f"small-{kind}", **given)
    assert cached.metrics is not None
    assert again.metrics == pytest.approx(cached.metrics.after, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("model", ["t5"], indirect=True)
def test_the_head_reads_an_end_token_that_every_row_has_once(model: str) -> None:
    task = shape(TaskKind.REGRESSION)
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(model))
    for length in (64, 6):
        encoded = encode(task, "train", tokenizer, length, "encoder-decoder")
        assert all(row["input_ids"].count(2) == 1 and row["input_ids"][-1] == 2 for row in encoded)
        assert max(encoded.lengths) <= length
        assert encoded.truncated == (0 if length == 64 else len(task.train))
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(UserError, match="this model's head reads the end token"):
        encode(task, "train", tokenizer, 64, "encoder-decoder")


@pytest.mark.parametrize("model", ["t5", "bart"], indirect=True)
def test_rows_without_the_end_token_of_the_head_are_refused(model: str) -> None:
    task = shape(TaskKind.REGRESSION)
    tokenizer, config = prepare_tokenizer(AutoTokenizer.from_pretrained(model)), AutoConfig.from_pretrained(model)
    encode(task, "train", tokenizer, 64, "encoder-decoder").check_ids(tokenizer, config)
    first, second, *others = task.train
    marked = replace(task, train=(first, replace(second, text=f"{second.text}</s> </s>"), *others))
    encoded = encode(marked, "train", tokenizer, 64, "encoder-decoder")
    with pytest.raises(UserError, match=r"row 2 has [23] end tokens \('</s>'\) and others 1"):
        encoded.check_ids(tokenizer, config)
    config.eos_token_id = 3
    with pytest.raises(UserError, match=r"reads the end token 3 \(config.json: eos_token_id\), and the tokenizer ends"):
        encode(task, "train", tokenizer, 64, "encoder-decoder").check_ids(tokenizer, config)
