"""A tokenizer with more tokens than the model: refused in one line, or the model gets embeddings for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from architectures import VOCABULARY, tiny
from command_line import frostline
from frostline.checkpoints import load, merge, resize_embeddings
from frostline.core.errors import ConfigError
from frostline.records import read_record
from frostline.run import RunConfig, evaluate_target, train
from grids import slow_but
from tiny_files import write_model

NEW = ["<new>", "<pad2>"]


def write_larger(folder: Path, name: str = "llama") -> Path:
    """A tiny model whose tokenizer has two tokens more; the pad token is the second of them."""
    write_model(folder, name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": NEW[:1]})
    tokenizer.add_special_tokens({"pad_token": NEW[1]})
    assert tokenizer.pad_token_id == VOCABULARY + 1
    tokenizer.save_pretrained(folder)
    rows = [{"text": f"the {('warm', 'cached')[i % 2]} <new> day is w{i % 5}", "label": "yn"[i % 2]} for i in range(16)]
    (folder.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = "".join(json.dumps({"text": "the warm day"}) + "\n" for _ in range(8))
    (folder.parent / "old.jsonl").write_text(plain)
    return folder


def settings(place: Path, **options: Any) -> RunConfig:
    given = {"model": str(place / "model"), "task": str(place / "rows.jsonl"), "strategy": "all", "max_steps": 4}
    given |= {"out": str(place / "run"), "resize_embeddings": True, "learning_rate": 1e-2, "bf16": False}
    return RunConfig(**{**given, "max_length": 16, "save_steps": 2, "data": {"eval": given["task"]}, **options})


def test_an_id_beyond_the_embeddings_is_one_line_before_training(tmp_path: Path) -> None:
    model = write_larger(tmp_path / "model")
    task = ("--task", tmp_path / "rows.jsonl")
    line = "the tokenizer has 130 tokens, and the model has embeddings for 128: token '<pad2>' has the id 129: use "
    for command in (
        ("train", "--model", model, *task, "--strategy", "all", "--out", tmp_path / "run"),
        ("evaluate", model, *task),
        ("probe", model, *task),
        ("generate", model, "--prompt", "the warm"),
    ):
        ended = frostline(*command)
        assert (ended.status, line in ended.error) == (2, True), ended.err
        assert ("resize_embeddings=true, or the model's own tokenizer" in ended.error) is (command[0] == "train")
    assert not (tmp_path / "run").exists()


def test_a_token_that_no_row_has_does_no_harm(tmp_path: Path) -> None:
    model = write_larger(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = "<pad>"
    tokenizer.save_pretrained(model)
    assert evaluate_target(str(model), str(tmp_path / "old.jsonl")).rows == 8
    ended = frostline("generate", model, "--prompt", "the <new>")
    assert ended.status == 2 and "token '<new>' has the id 128" in ended.error


@pytest.mark.parametrize("name", slow_but(["llama", "bert"], ["llama", "gemma", "gpt2", "bert"]))
def test_the_new_rows_train_and_are_in_the_delta(name: str, tmp_path: Path) -> None:
    write_larger(tmp_path / "model", name)
    config = settings(tmp_path, **({} if name == "bert" else {"task": str(tmp_path / "old.jsonl"), "data": {}}))
    if name != "bert":  # a language model, tied or not, learns the new token too
        text = "".join(json.dumps({"text": f"the <new> day w{i}"}) + "\n" for i in range(8))
        (tmp_path / "old.jsonl").write_text(text)
    record = train(config)
    assert any("130 embeddings in place of 128" in notice for notice in record.notices)
    model = load(config.folder)
    rows = model.get_input_embeddings().weight
    assert rows.shape[0] == model.config.vocab_size == 130
    assert record.metrics is not None
    again = evaluate_target(str(config.folder))
    assert again.metrics["loss"] == pytest.approx(record.metrics.after["loss"], rel=1e-5)
    merged = merge(config.folder, tmp_path / "merged").folder
    plain = AutoModel.from_pretrained(merged)
    assert plain.get_input_embeddings().weight.equal(rows)
    assert len(AutoTokenizer.from_pretrained(merged)) == 130
    assert not load(config.folder / "checkpoint-2").get_input_embeddings().weight[128].equal(rows[128]), "they train"


def test_the_new_rows_are_drawn_as_transformers_does() -> None:
    one, other = tiny("llama"), tiny("llama")
    torch.manual_seed(1)
    resize_embeddings(one, 131)
    torch.manual_seed(1)
    other.resize_token_embeddings(131)
    for (name, ours), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        assert ours.equal(theirs), name


def test_killed_and_resumed_is_as_never_killed(tmp_path: Path) -> None:
    write_larger(tmp_path / "model")
    train(settings(tmp_path))
    whole = load(tmp_path / "run").state_dict()
    record = tmp_path / "run" / "run.json"
    record.write_text(record.read_text().replace('"status": "finished"', '"status": "failed"'))
    (tmp_path / "run" / "checkpoint-4").rename(tmp_path / "gone")
    train(settings(tmp_path), resume=True)
    assert read_record(tmp_path / "run").status == "finished"
    for name, tensor in load(tmp_path / "run").state_dict().items():
        assert tensor.equal(whole[name]), name


def test_new_rows_that_would_stay_random_are_refused(tmp_path: Path) -> None:
    write_larger(tmp_path / "model")
    with pytest.raises(
        ConfigError, match=r"have to train, but strategy 'bot50' freezes model.embed_tokens.weight: use"
    ):
        train(settings(tmp_path, strategy="bot50"))
    with pytest.raises(ConfigError, match="streaming: new embeddings have to train"):
        train(settings(tmp_path, strategy="bot50", streaming=True))
    assert not (tmp_path / "run").exists()


def test_where_nothing_is_missing_it_says_so(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_larger(tmp_path / "other" / "model")
    record = train(settings(tmp_path, task=str(tmp_path / "other" / "rows.jsonl"), data={}, strategy="bot50"))
    assert "resize_embeddings: nothing to do, the model has 128 embeddings" in record.notices
    assert (
        AutoModelForSequenceClassification.from_pretrained(merge(tmp_path / "run", tmp_path / "m").folder).num_labels
        == 2
    )
