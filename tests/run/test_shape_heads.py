"""Which head a task needs, and what is said where a model does not have it, or has another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoModelForQuestionAnswering,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
)

from architectures import ARCHITECTURES
from frostline.anatomy import find_anatomy, skeleton
from frostline.core.errors import UserError
from frostline.cost import Workload
from frostline.run import anatomy_of, class_for, evaluate_target, plan_model, probe_model, read_config, train
from frostline.tasks import TaskKind
from shapes import shapes as shapes  # a fixture

ENCODER, DECODER = "all-MiniLM-L6-v2", "stories260K"


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch, models_dir: Path, shapes: None) -> None:
    monkeypatch.setenv("FROSTLINE_MODELS", str(models_dir))


@pytest.mark.parametrize(
    ("model_type", "kind", "message"),
    [
        ("llama", TaskKind.EXTRACTION, "a llama model is a decoder and cannot do an extraction task: use an encoder"),
        ("t5", TaskKind.TAGGING, "a t5 model is an encoder-decoder and cannot do a tagging task: use an encoder or a"),
        (
            "bert",
            TaskKind.GENERATION,
            "a bert model is an encoder and cannot do a generation task: use a decoder or an",
        ),
        ("opt", TaskKind.TAGGING, "transformers has no ForTokenClassification for an opt model, which tagging tasks"),
    ],
)
def test_a_model_without_the_head_is_one_line(model_type: str, kind: TaskKind, message: str) -> None:
    with pytest.raises(UserError) as caught:
        class_for(ARCHITECTURES[model_type](), kind)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value) and len(str(caught.value)) <= 300


def test_the_head_of_a_trained_folder_is_its_own(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertForQuestionAnswering(BertConfig(**sizes)).save_pretrained(tmp_path)
    anatomy = anatomy_of(str(tmp_path))
    assert anatomy.model_class == "BertForQuestionAnswering"
    assert anatomy.head == find_anatomy(skeleton(BertConfig(**sizes), AutoModelForQuestionAnswering)).head


def test_a_classifier_of_three_labels_extracts_with_two_logits(tmp_path: Path, models_dir: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertForSequenceClassification(BertConfig(**sizes, num_labels=3)).save_pretrained(tmp_path)
    planned = plan_model(str(tmp_path), "bot50", task="small-extraction", workload=Workload())
    assert planned.anatomy.head_linears[-1].out_features == 2
    planned = plan_model(str(tmp_path), "bot50", task="small-regression", workload=Workload())
    assert planned.anatomy.head_linears[-1].out_features == 1


def test_choices_are_planned_as_several_texts() -> None:
    planned = plan_model(ENCODER, "bot50", task="small-multiple-choice", workload=Workload(length=16))
    assert planned.document()["assumes"]["texts"] == 3
    with pytest.raises(UserError, match="activation_cache: a row of several texts is not stored"):
        plan_model(ENCODER, "bot50", task="small-multiple-choice", workload=Workload(activation_cache=True))


@pytest.mark.parametrize(
    ("task", "message"),
    [("extraction", "a row has no labels, as in question answering"), ("multiple-choice", "a row holds several texts")],
)
def test_signals_work_or_say_why_not(task: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        probe_model(ENCODER, f"small-{task}", rows=8)


def test_signals_read_where_the_head_reads() -> None:
    places = {
        task: probe_model(ENCODER, f"small-{task}", rows=8).read for task in ("regression", "multi-label", "tagging")
    }
    assert places == {
        "regression": "the first token, where the head reads",
        "multi-label": "the first token, where the head reads",
        "tagging": "the first tagged token",
    }


def _trained(tmp_path: Path, task: str, model: str = ENCODER, **given: Any) -> str:
    config = read_config(
        None, model=model, task=f"small-{task}", out=str(tmp_path / task), strategy="head", max_steps=1,
        per_device_train_batch_size=2, max_length=24, bf16=False, threads=1, max_new_tokens=2, **given,
    )  # fmt: skip
    train(config)
    return str(tmp_path / task)


def test_a_run_is_evaluated_on_its_own_kind_of_task_alone(tmp_path: Path) -> None:
    run = _trained(tmp_path, "regression")
    for task, said in (("multi-label", r"BertForSequenceClassification \(regression\)"), ("tagging", "Bert")):
        with pytest.raises(UserError, match=f"{said}.*, which was not trained for {task} tasks such as 'small-{task}'"):
            evaluate_target(run, f"small-{task}")


def test_streaming_does_not_choose_by_loss(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="streaming: this model chooses by the loss of each choice"):
        _trained(tmp_path, "multiple-choice", DECODER, streaming=True)


def test_packing_is_for_models_that_write(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"packing: .* \(this is a decoder on a tagging task\)"):
        _trained(tmp_path, "tagging", DECODER, packing=True)


def test_tagging_streams_and_gives_the_same_model(tmp_path: Path) -> None:
    given = {"strategy": "bot50", "learning_rate": 1e-3, "max_steps": 3}
    whole = read_config(
        None, model=ENCODER, task="small-tagging", out=str(tmp_path / "a"), bf16=False, threads=1, **given
    )
    streamed = whole.model_copy(update={"out": str(tmp_path / "b"), "streaming": True})
    first, second = train(whole), train(streamed)
    assert first.metrics and second.metrics
    assert second.metrics.after == pytest.approx(first.metrics.after, rel=1e-3)
