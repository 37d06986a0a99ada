"""The logits of an evaluation fit, whatever the vocabulary; what is measured does not depend on it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from frostline.tasks import Encoded, Example, Task, TaskKind, eval_batch_size, evaluate
from frostline.tasks import _eval_batches as batches
from tolerances import LOSS

WORDS = ["a", "fox", "ran over", "the hill and", "was seen by nobody at all", "yes", "so it", "goes"]


def _task(kind: TaskKind) -> Task:
    if kind is TaskKind.GENERATION:
        rows = [Example(f"eval:{i}", " ".join(WORDS[: i % 5 + 1]), target=WORDS[-1]) for i in range(8)]
    elif kind is TaskKind.CHOICE:
        rows = [Example(f"eval:{i}", word, choices=("yes", "no at all"), label=i % 2) for i, word in enumerate(WORDS)]
    else:
        rows = [Example(f"eval:{i}", word, label=i % 2) for i, word in enumerate(WORDS)]
    labels = ("no", "yes") if kind is TaskKind.CLASSIFICATION else ()
    return Task("t", kind, rows, rows, "accuracy", labels=labels)


def _shapes(model: Any, *given: Any, **settings: Any) -> tuple[list[torch.Size], dict[str, float]]:
    """The shapes of the logits in an evaluation, and its metrics."""
    shapes: list[torch.Size] = []
    hook = model.register_forward_hook(lambda module, args, output: shapes.append(output.logits.shape))
    try:
        return shapes, evaluate(model, *given, max_length=64, generate_rows=0, **settings).metrics
    finally:
        hook.remove()


@pytest.mark.parametrize("name", ["decoder", "encoder_decoder"])
@pytest.mark.parametrize("kind", [TaskKind.GENERATION, TaskKind.CHOICE])
def test_logits_fit_and_the_metrics_are_the_same(
    name: str, kind: TaskKind, tokenizer: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, task = request.getfixturevalue(name), _task(kind)
    free, before = _shapes(model, tokenizer, task)
    largest = max(shape.numel() for shape in free) * batches.BYTES_A_LOGIT
    monkeypatch.setattr(batches, "LOGIT_BYTES", largest // 3)
    shapes, after = _shapes(model, tokenizer, task)
    assert len(shapes) > len(free)
    assert all(shape[0] == 1 or shape.numel() * batches.BYTES_A_LOGIT <= largest // 3 for shape in shapes)
    assert any(shape[0] > 1 for shape in shapes)
    assert after == pytest.approx(before, rel=LOSS)
    asked, _ = _shapes(model, tokenizer, task, batch_size=8)  # what is asked for is done
    assert asked[0][0] == 8


def test_rows_that_fit_depend_on_the_vocabulary() -> None:
    rows = Encoded([{"labels": [0] * length} for length in (5, 128)], 0)

    def fit(vocabulary: int, kind: TaskKind = TaskKind.GENERATION, encoder_decoder: bool = True) -> int:
        config = SimpleNamespace(vocab_size=vocabulary, is_encoder_decoder=encoder_decoder)
        config.get_text_config = lambda decoder: config
        return eval_batch_size(kind, config, rows)

    assert [fit(size) for size in (512, 32_000, 100_000, 1_000_000)] == [32, 5, 1, 1]
    assert fit(1_000_000, TaskKind.TAGGING) == 32  # a label for each token, and no logits of the vocabulary
