"""Every shape of task on real small models: trained, recorded, evaluated again, merged, loaded without frostline."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoTokenizer

from frostline.checkpoints import merge
from frostline.core.errors import UserError
from frostline.records import RunRecord
from frostline.run import RunConfig, evaluate_target, read_config, train
from frostline.tasks import METRICS, Collator, TaskKind, encode, evaluate, model_kind, prepare_tokenizer
from grids import slow_but
from shapes import shape
from shapes import shapes as shapes  # a fixture

ENCODER, DECODER = "all-MiniLM-L6-v2", "stories260K"
ON = [
    (TaskKind.REGRESSION, ENCODER, "AutoModelForSequenceClassification"),
    (TaskKind.REGRESSION, DECODER, "AutoModelForSequenceClassification"),
    (TaskKind.MULTI_LABEL, ENCODER, "AutoModelForSequenceClassification"),
    (TaskKind.MULTI_LABEL, DECODER, "AutoModelForSequenceClassification"),
    (TaskKind.TAGGING, ENCODER, "AutoModelForTokenClassification"),
    (TaskKind.TAGGING, DECODER, "AutoModelForTokenClassification"),
    (TaskKind.EXTRACTION, ENCODER, "AutoModelForQuestionAnswering"),
    (TaskKind.CHOICE, ENCODER, "AutoModelForMultipleChoice"),
    (TaskKind.CHOICE, DECODER, "AutoModelForCausalLM"),
    (TaskKind.GENERATION, DECODER, "AutoModelForCausalLM"),
]


def each(fast: list[Any]) -> Any:
    ids = [f"{kind}-{model}" for kind, model, _ in ON]
    return pytest.mark.parametrize(("kind", "model", "auto"), slow_but(fast, ON), ids=ids)


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch, models_dir: Path, shapes: None) -> None:
    monkeypatch.setenv("FROSTLINE_MODELS", str(models_dir))


def config(kind: TaskKind, model: str, out: Path, **given: Any) -> RunConfig:
    settings = {
        "strategy": "bot50",
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "max_length": 48,
        "learning_rate": 1e-3,
        "bf16": False,
        "threads": 1,
        "logging_steps": 1,
        "max_new_tokens": 8,
        "activation_cache": "off",
    }
    return read_config(None, **(settings | {"model": model, "task": f"small-{kind}", "out": str(out)} | given))


@pytest.fixture
def calm(models_dir: Path, tmp_path: Path) -> Callable[[str], str]:
    """A copy of a model without dropout."""

    def copied(name: str) -> str:
        folder = tmp_path / "calm" / name
        folder.mkdir(parents=True)
        for file in (models_dir / name).iterdir():
            if file.is_file() and file.name != "config.json":
                (folder / file.name).symlink_to(file)
        settings = json.loads((models_dir / name / "config.json").read_text())
        off = {key: 0.0 for key in (*settings, "classifier_dropout") if "dropout" in key}
        (folder / "config.json").write_text(json.dumps(settings | off))
        return str(folder)

    return copied


def losses(record: RunRecord) -> list[float]:
    assert record.metrics is not None
    return [entry["loss"] for entry in record.metrics.history if "loss" in entry]


@each([ON[i] for i in (0, 3, 4, 6, 7, 9)])  # one of each kind
def test_a_run_is_trained_recorded_evaluated_and_merged(kind: TaskKind, model: str, auto: str, tmp_path: Path) -> None:
    task = shape(kind)
    record = train(config(kind, model, tmp_path / "run"))
    assert record.metrics is not None and record.data.labels == task.labels
    assert record.model.model_class.endswith(auto.removeprefix("AutoModel"))
    assert record.metrics.after["loss"] < record.metrics.before["loss"]
    assert {*METRICS[kind]} <= {*record.metrics.after}
    assert record.data.metric in record.metrics.after
    answers = [json.loads(line) for line in (tmp_path / "run/predictions.jsonl").read_text().splitlines()]
    assert len(answers) == (4 if kind is TaskKind.GENERATION else len(task.eval))
    given = {"per_device_eval_batch_size": 3, "max_length": 48, "max_new_tokens": 8, "bf16": False}
    again = evaluate_target(str(tmp_path / "run"), **given)
    assert again.metrics == pytest.approx(record.metrics.after, rel=1e-4, abs=1e-5)
    merge(tmp_path / "run", tmp_path / "merged")
    plain = getattr(transformers, auto).from_pretrained(tmp_path / "merged")
    assert type(plain).__name__ == record.model.model_class
    if task.labels:
        assert tuple(plain.config.id2label.values()) == task.labels
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(tmp_path / "merged"), plain)
    metrics = evaluate(plain, tokenizer, task, max_length=48, max_new_tokens=8).metrics
    assert metrics == pytest.approx(record.metrics.after, rel=1e-4, abs=1e-5)
    by_name = evaluate_target(str(tmp_path / "merged"), f"small-{kind}", **given)
    assert by_name.metrics == pytest.approx(record.metrics.after, rel=1e-4, abs=1e-5)


@each(ON[6::3])
def test_the_activation_cache_gives_the_same_losses(
    kind: TaskKind, model: str, auto: str, calm: Callable[[str], str], tmp_path: Path
) -> None:
    model = calm(model)
    plain = train(config(kind, model, tmp_path / "off"))
    if auto == "AutoModelForMultipleChoice":
        with pytest.raises(UserError, match="a row holds several texts"):
            train(config(kind, model, tmp_path / "on", activation_cache="on"))
        return
    cached = train(config(kind, model, tmp_path / "on", activation_cache="on"))
    # The loss of extracted answers reads padding too, for which the cache has zeros: it is declined in one line.
    declined = any("loss is" in notice for notice in cached.notices)
    assert declined == (kind is TaskKind.EXTRACTION), cached.notices
    assert losses(cached) == pytest.approx(losses(plain), abs=1e-4)


@each(ON[1::3])
def test_training_is_that_of_a_plain_loop(
    kind: TaskKind, model: str, auto: str, calm: Callable[[str], str], tmp_path: Path
) -> None:
    model = calm(model)
    wanted = config(kind, model, tmp_path / "run", train_sampling_strategy="sequential", lr_scheduler_type="constant")
    record = train(wanted.model_copy(update={"max_grad_norm": 0.0}))
    task = shape(kind)
    options: dict[str, Any] = {}
    if kind in (TaskKind.REGRESSION, TaskKind.MULTI_LABEL):
        problem = "regression" if kind is TaskKind.REGRESSION else "multi_label_classification"
        options = {"num_labels": len(task.labels) or 1, "problem_type": problem}
    elif kind is TaskKind.TAGGING:
        options = {"num_labels": len(task.labels)}
    tokenizer = AutoTokenizer.from_pretrained(model)
    torch.manual_seed(wanted.seed)
    by_hand = getattr(transformers, auto).from_pretrained(model, **options).eval()
    prepare_tokenizer(tokenizer, by_hand)
    rows = encode(task, "train", tokenizer, 48, model_kind(by_hand.config)).rows
    frozen = {name for name, _ in by_hand.named_parameters()} - trained_names(record, by_hand)
    for name, parameter in by_hand.named_parameters():
        parameter.requires_grad = name not in frozen
    optimizer = torch.optim.AdamW([p for p in by_hand.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
    expected = []
    for step in range(6):
        loss = by_hand(**Collator(tokenizer)(rows[step * 4 : step * 4 + 4])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert losses(record) == pytest.approx(expected, rel=0, abs=1e-4)


def trained_names(record: RunRecord, model: Any) -> set[str]:
    """What `bot50` trains: the upper half of the blocks, and the head."""
    blocks = len(record.plan["blocks"])
    lower = [f"layer.{i}." for i in range(blocks // 2 + blocks % 2)] + [
        f"layers.{i}." for i in range(blocks // 2 + blocks % 2)
    ]
    return {
        name
        for name, _ in model.named_parameters()
        if "embed" not in name and not any(f".{part}" in name for part in lower)
    }
