"""Evaluation of the shapes of tasks: losses, answers and metrics from the model's own outputs."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)

from frostline.tasks import Collator, Example, Task, TaskKind, encode, evaluate, generate_texts, generation_examples
from frostline.tasks._predict import best_span
from frostline.tasks._words import Window, windows
from shapes import LABELS, shape
from tolerances import LOSS

HEADS: dict[TaskKind, Any] = {
    TaskKind.REGRESSION: BertForSequenceClassification,
    TaskKind.MULTI_LABEL: BertForSequenceClassification,
    TaskKind.TAGGING: BertForTokenClassification,
    TaskKind.EXTRACTION: BertForQuestionAnswering,
    TaskKind.CHOICE: BertForMultipleChoice,
}
PROBLEMS = {TaskKind.REGRESSION: "regression", TaskKind.MULTI_LABEL: "multi_label_classification"}
OUTPUTS = {TaskKind.REGRESSION: 1, TaskKind.MULTI_LABEL: 3, TaskKind.TAGGING: 4}
LENGTH = 40


@pytest.fixture(scope="module")
def bert(models_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(models_dir / "all-MiniLM-L6-v2")


def model_for(kind: TaskKind) -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(**sizes, num_labels=OUTPUTS.get(kind, 2), problem_type=PROBLEMS.get(kind))
    torch.manual_seed(0)
    model = HEADS[kind](config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so that the answers differ
            parameter.mul_(3)
    return model


@pytest.mark.parametrize("kind", HEADS)
def test_the_loss_is_the_models_own_and_does_not_depend_on_the_batches(kind: TaskKind, bert: Any) -> None:
    model, task = model_for(kind), shape(kind, evaluation=12)
    rows = encode(task, "eval", bert, LENGTH, "encoder").rows
    own, weights = [], []
    for row in rows:  # alone, without padding
        batch = Collator(bert)([row])
        with torch.no_grad():
            own.append(model(**batch).loss.item())
        weights.append(int((batch["labels"] != -100).sum()) if kind is TaskKind.TAGGING else 1)
    expected = sum(loss * weight for loss, weight in zip(own, weights, strict=True)) / sum(weights)
    for size in (1, 5):
        found = evaluate(model, bert, task, batch_size=size, max_length=LENGTH)
        assert found.metrics["loss"] == pytest.approx(expected, rel=LOSS)
        assert [answer.id for answer in found.predictions] == [example.id for example in task.eval]


def test_numbers_are_those_of_the_head(bert: Any) -> None:
    model, task = model_for(TaskKind.REGRESSION), shape(TaskKind.REGRESSION)
    with torch.no_grad():
        batch = bert([example.text for example in task.eval], padding=True, return_tensors="pt")
        expected = model(**batch).logits[:, 0].tolist()
    found = evaluate(model, bert, task, max_length=LENGTH)
    assert [float(answer.text) for answer in found.predictions] == pytest.approx(expected, rel=1e-4)
    errors = [(number - (example.value or 0)) ** 2 for number, example in zip(expected, task.eval, strict=True)]
    assert found.metrics["mse"] == found.metrics["loss"] == pytest.approx(sum(errors) / len(errors), rel=1e-4)


def test_labels_are_those_above_a_half(bert: Any) -> None:
    model, task = model_for(TaskKind.MULTI_LABEL), shape(TaskKind.MULTI_LABEL)
    found = evaluate(model, bert, task, max_length=LENGTH)
    for example, answer in zip(task.eval, found.predictions, strict=True):
        pair = [example.text, example.pair or ""]
        with torch.no_grad():
            shares = model(**bert(*pair, return_tensors="pt")).logits.sigmoid()[0]
        names = [name for name, share in zip(task.labels, shares.tolist(), strict=True) if share > 0.5]
        assert answer.text == ", ".join(names)
        assert answer.expected == tuple(task.labels[label] for label in example.labels or ())


def test_words_that_were_cut_count_as_outside(bert: Any) -> None:
    model = model_for(TaskKind.TAGGING)
    example = Example("a", words=("Rome", "and", "Oslo"), tags=(1, -100, 1))
    task = Task("t", TaskKind.TAGGING, [example], [example], "f1", labels=LABELS[TaskKind.TAGGING])
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 1.0, 0.0, 0.0]))  # each word begins a place
    whole, cut = (evaluate(model, bert, task, max_length=length) for length in (16, 3))
    assert whole.metrics["f1"] == whole.metrics["accuracy"] == 1
    assert whole.predictions[0].text == "B-LOC B-LOC", "a word without a right tag is left out"
    assert cut.predictions[0].text == "B-LOC O"
    assert (cut.metrics["precision"], cut.metrics["recall"]) == (1, 0.5)


def test_the_choice_is_the_highest(bert: Any) -> None:
    model, task = model_for(TaskKind.CHOICE), shape(TaskKind.CHOICE)
    found = evaluate(model, bert, task, max_length=LENGTH)
    for example, answer in zip(task.eval, found.predictions, strict=True):
        batch = bert([example.text] * 3, list(example.choices), padding=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(**{name: values[None] for name, values in batch.items()}).logits[0]
        assert answer.text == example.choices[int(logits.argmax())]
        assert answer.expected == (example.choices[example.label or 0],)
    right = [answer.text in answer.expected for answer in found.predictions]
    assert found.metrics["accuracy"] == sum(right) / len(right)


@pytest.mark.parametrize("name", ["decoder", "encoder_decoder"])
def test_a_model_that_writes_chooses_by_the_mean_loss_of_a_choice(
    name: str, tokenizer: Any, request: pytest.FixtureRequest
) -> None:
    model, task = request.getfixturevalue(name).eval(), shape(TaskKind.CHOICE)
    found = evaluate(model, tokenizer, task, max_length=64, batch_size=4)
    total, count = 0.0, 0
    for example, answer in zip(task.eval, found.predictions, strict=True):
        means = []
        for number, choice in enumerate(example.choices):
            before = tokenizer(f"{example.text}\n")["input_ids"]
            after = [*tokenizer(choice)["input_ids"], tokenizer.eos_token_id]
            with torch.no_grad():
                if name == "decoder":
                    logits = model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
                else:
                    logits = model(input_ids=torch.tensor([before]), labels=torch.tensor([after])).logits[0]
            loss = F.cross_entropy(logits, torch.tensor(after), reduction="sum").item()
            means.append(loss / len(after))
            if number == example.label:
                total, count = total + loss, count + len(after)
        assert answer.text == example.choices[means.index(min(means))]
    assert found.metrics["loss"] == pytest.approx(total / count, rel=1e-4)
    assert set(found.metrics) == {"accuracy", "loss"}


def test_the_best_answer_of_all_windows_by_trying_each(bert: Any) -> None:
    context = " ".join(f"w{i}" for i in range(60))
    own, _ = windows(bert, "Where is it?", context, 32)
    assert len(own) > 5
    random = torch.Generator().manual_seed(1)
    for spread in (1.0, 6.0):
        logits = [tuple(spread * torch.randn(2, 40, generator=random)) for _ in own]
        best, place = float("-inf"), (0, 0)
        for window, (starts, ends) in zip(own, logits, strict=True):
            for i, j in product(range(len(window.places)), repeat=2):
                first, last = window.places[i], window.places[j]
                if first and last and i <= j < i + 30 and (score := float(starts[i] + ends[j])) > best:
                    best, place = score, (first[0], last[1])
        assert best_span(own, logits, none_allowed=False) == place
        none = min(float(starts[0] + ends[0]) for starts, ends in logits)
        assert best_span(own, logits, none_allowed=True) == ((0, 0) if none > best else place)
    assert best_span([Window({}, [None, None], 0)], [(torch.ones(2), torch.ones(2))], none_allowed=False) == (0, 0)


def test_an_answer_has_at_most_thirty_tokens() -> None:
    window = Window({}, [None, *[(i, i + 1) for i in range(50)]], 0)
    starts, ends = torch.zeros(51), torch.zeros(51)
    starts[1], ends[50], ends[30] = 9, 9, 1
    assert best_span([window], [(starts, ends)], none_allowed=False) == (0, 30)


def test_a_perfect_head_answers_right(bert: Any) -> None:
    """Logits that are high where the answer is: extraction finds it in every window, and says where there is none."""
    task = shape(TaskKind.EXTRACTION, evaluation=20)
    model = model_for(TaskKind.EXTRACTION)
    rows = {tuple(row["input_ids"]): row for row in encode(task, "eval", bert, 32, "encoder").rows}

    def perfect(_module: Any, _args: Any, kwargs: Any, output: Any) -> Any:
        for number, ids in enumerate(kwargs["input_ids"].tolist()):
            row = next(row for key, row in rows.items() if list(key) == ids[: len(key)])
            for side in ("start", "end"):
                # Lower at the class token than inside, so that a window without the answer does not win.
                place = row[f"{side}_positions"]
                output[f"{side}_logits"][number] = torch.nn.functional.one_hot(torch.tensor(place), len(ids)) * 20.0
        return output

    model.register_forward_hook(perfect, with_kwargs=True)
    found = evaluate(model, bert, task, max_length=32, batch_size=7)
    assert any(len(windows(bert, e.text, e.pair or "", 32)[0]) > 1 for e in task.eval)
    assert found.metrics["exact_match"] == found.metrics["f1"] == found.metrics["f1_unanswered"] == 1
    assert found.metrics["loss"] < 1e-6


def test_a_translation_is_scored_by_bleu_and_chrf(encoder_decoder: Any, tokenizer: Any) -> None:
    import sacrebleu

    task = shape(TaskKind.GENERATION, metric="chrf")
    found = evaluate(encoder_decoder, tokenizer, task, max_new_tokens=12)
    examples = generation_examples(task.eval, 4)
    texts = generate_texts(encoder_decoder, tokenizer, [example.text for example in examples], max_new_tokens=12)
    references = [[example.references[0] for example in examples]]
    assert found.metrics["chrf"] == pytest.approx(sacrebleu.corpus_chrf(texts, references).score)
    assert found.metrics["bleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, references, force=True).score)
