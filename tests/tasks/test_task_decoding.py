"""Decoding options: what reaches `generate`, what is refused, and that sampling disturbs nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from frostline.tasks import Decoding, Example, Task, TaskKind, evaluate
from frostline.tasks._marks import score_answers

EXAMPLES = [Example(f"eval:{i}", f"question {i}", target="12", references=("12",), group="svamp") for i in range(4)]
TASK = Task("q", TaskKind.GENERATION, EXAMPLES, EXAMPLES, "accuracy", score=score_answers)


def test_what_reaches_generate() -> None:
    assert Decoding().keywords(64) == {"max_new_tokens": 64}
    assert Decoding(num_beams=3, max_new_tokens=5).keywords(64) == {"max_new_tokens": 5, "num_beams": 3}
    assert Decoding(preset="llm-adapters").keywords(64) == {"max_new_tokens": 256, "num_beams": 4}
    assert Decoding(preset="llm-adapters", do_sample=True, top_k=5).keywords(64) == {
        "max_new_tokens": 256,
        "num_beams": 4,
        "temperature": 0.1,
        "top_p": 0.75,
        "top_k": 5,
        "do_sample": True,
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beam": 2}, "did you mean 'num_beams'"),
        ({"top_p": 0.5}, "top_p has no effect without sampling: use do_sample: true"),
        ({"preset": "published"}, "'greedy' or 'llm-adapters'"),
        ({"num_beams": 0}, "greater than 0"),
    ],
)
def test_what_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Decoding.model_validate(given)


def test_sampling_has_its_own_seed_and_leaves_the_random_state_alone(decoder: Any, tokenizer: Any) -> None:
    def texts(**options: Any) -> list[str]:
        decoding = Decoding(do_sample=True, temperature=5.0, **options)
        result = evaluate(decoder, tokenizer, TASK, max_new_tokens=6, decoding=decoding)
        return [prediction.text for prediction in result.predictions]

    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = texts()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    assert texts() == first
    assert texts(seed=7) != first


def test_beams_reach_generate(decoder: Any, tokenizer: Any) -> None:
    seen: list[dict[str, Any]] = []
    generate = decoder.generate
    decoder.generate = lambda **options: seen.append(options) or generate(**options)
    evaluate(decoder, tokenizer, TASK, max_new_tokens=3, decoding=Decoding(num_beams=3, repetition_penalty=1.2))
    assert {(options["num_beams"], options["repetition_penalty"]) for options in seen} == {(3, 1.2)}


def test_every_case_can_be_read(decoder: Any, tokenizer: Any) -> None:
    result = evaluate(decoder, tokenizer, TASK, max_new_tokens=3)
    cases = [json.loads(line) for line in result.json_lines().splitlines()]
    assert len(cases) == 4
    for case, prediction in zip(cases, result.predictions, strict=True):
        assert case["prompt"].startswith("question ") and case["expected"] == ["12"]
        assert case["text"] == prediction.text
        assert set(case["marks"]) == {"set", "extracted", "right"}
    assert result.metrics["accuracy"] == sum(case["marks"]["right"] for case in cases) / 4


def test_texts_are_generated_for_the_questions_and_the_loss_is_of_the_evaluation_rows(
    decoder: Any, tokenizer: Any
) -> None:
    questions = [replace(example, id=f"test:{i}", text=f"other {i}") for i, example in enumerate(EXAMPLES)]
    plain, asked = (
        evaluate(decoder, tokenizer, task, max_new_tokens=2) for task in (TASK, replace(TASK, questions=questions))
    )
    assert asked.metrics["loss"] == plain.metrics["loss"]
    assert {prediction.id for prediction in asked.predictions} == {f"test:{i}" for i in range(4)}
    assert replace(TASK, questions=questions).fingerprint != TASK.fingerprint
    train = evaluate(decoder, tokenizer, replace(TASK, questions=questions), max_new_tokens=2, split="train")
    assert {prediction.id for prediction in train.predictions} == {example.id for example in EXAMPLES}
