"""Every head that users have: training under a plan is plain training of the same tensors, with the cache and without.

`docs/heads.md` shows what these tests find: `python tests/engine/test_heads.py` prints its table.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cache_cases import arguments
from frostline.engine import Trainer
from frostline.run import make_plan
from grids import grid, slow_but
from heads import collate, model_of, rows_of

DOC = Path(__file__).resolve().parents[2] / "docs" / "heads.md"
HEADS: dict[str, tuple[str, ...]] = {
    "classes": ("bert", "modernbert", "llama", "gpt2"),
    "several labels": ("bert", "distilbert"),
    "a number": ("bert", "distilbert"),
    "token classes": ("bert", "llama"),
    "answers": ("bert", "distilbert"),
    "choices": ("bert", "distilbert"),
    "masked": ("bert", "modernbert"),
    "causal": ("llama", "gpt2"),
    "seq2seq": ("t5", "bart"),
}
CASES = [(name, head) for head, names in HEADS.items() for name in names]
NAMES = {
    "classes": "sequence classification",
    "several labels": "sequence classification, several labels",
    "a number": "sequence classification, regression",
    "token classes": "token classification",
    "answers": "question answering",
    "choices": "multiple choice",
    "masked": "masked LM",
    "causal": "causal LM",
    "seq2seq": "sequence to sequence",
}


def losses(trainer: Any) -> list[float]:
    transformers.set_seed(7)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def own_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
    """A loss of the user's own: the mean over the tokens of a batch, with more weight on some."""
    logits, labels = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    each = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="none")
    return (each * (1 + logits.detach().softmax(-1).amax(-1))).sum() / labels.ne(-100).sum()


class Distils:
    """A trainer whose student learns the outputs of a teacher beside the labels."""

    def compute_loss(self: Any, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**inputs)
        with torch.no_grad():
            wanted = model_of("llama", "causal").eval()(**inputs).logits.flip(-1).softmax(-1)
        counts = inputs["labels"].ne(-100)[..., None]
        away = torch.nn.functional.kl_div(outputs.logits.log_softmax(-1), wanted, reduction="none") * counts
        logits, labels = outputs.logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten()
        # Every row's first label is -100, so both parts are means over the same tokens.
        loss = torch.nn.functional.cross_entropy(logits, labels) + away.sum() / counts.sum()
        return (loss, outputs) if return_outputs else loss


class Distilling(Distils, Trainer):
    pass


class PlainDistilling(Distils, transformers.Trainer):
    pass


class Generating(Trainer, transformers.Seq2SeqTrainer):
    pass


@dataclass(frozen=True)
class Use:
    """A trainer that users have: its class, the plain one beside it, what both are given, and settings."""

    ours: Any = Trainer
    plain: Any = transformers.Trainer
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    args: Any = transformers.TrainingArguments


PLAIN = Use()
_GENERATING = Use(
    Generating,
    transformers.Seq2SeqTrainer,
    {"eval_dataset": rows_of("seq2seq", 4)},
    {"predict_with_generate": True, "eval_strategy": "steps", "eval_steps": 2, "generation_max_length": 6},
    transformers.Seq2SeqTrainingArguments,
)
USES: dict[str, Use] = {
    "": PLAIN,
    "causal LM, `compute_loss_func`": Use(options={"compute_loss_func": own_loss}),
    "causal LM, label smoothing": Use(settings={"label_smoothing_factor": 0.1}),
    "causal LM, distillation by `compute_loss`": Use(Distilling, PlainDistilling),
    "sequence to sequence, `predict_with_generate`": _GENERATING,
}
OTHERS = [
    (name, "seq2seq" if use is _GENERATING else "causal", label)
    for label, use in USES.items()
    if label
    for name in (("t5", "bart") if use is _GENERATING else ("llama", "gpt2"))
]


ALL = [*((*case, "") for case in CASES), *OTHERS]


def made(folder: Path, name: str, head: str, dropout: float, use: Use = PLAIN, **options: Any) -> Trainer:
    model = model_of(name, head, dropout)
    plan = make_plan(model, "bot50")
    args = _arguments(folder, use, options)
    rows = rows_of(head)
    return use.ours(model, args, plan=plan, train_dataset=rows, data_collator=collate, **use.options, **options)


def plain(folder: Path, name: str, head: str, use: Use = PLAIN, **options: Any) -> Any:
    """transformers' own trainer, with the same tensors frozen."""
    ours = made(folder, name, head, 0.0, activation_cache="off")
    trained = {key for key, parameter in ours.model.named_parameters() if parameter.requires_grad}
    model = model_of(name, head)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key in trained)
    args = _arguments(folder, use, options)
    return use.plain(model, args, train_dataset=rows_of(head), data_collator=collate, **use.options)


def _arguments(folder: Path, use: Use, options: dict[str, Any]) -> Any:
    return arguments(
        folder,
        use.args,
        max_steps=6,
        per_device_train_batch_size=options.pop("batch", 2),
        gradient_accumulation_steps=options.pop("accumulation", 1),
        **use.settings,
    )


@pytest.mark.parametrize(("name", "head", "use"), slow_but(ALL[::2], ALL))
def test_with_the_cache_it_is_plain_training(tmp_path: Path, name: str, head: str, use: str) -> None:
    ours = made(tmp_path, name, head, 0.0, USES[use])
    ours.session._training = _without_estimate(ours)  # the cache is used wherever training stays the same
    expected = losses(plain(tmp_path, name, head, USES[use]))
    assert losses(ours) == pytest.approx(expected, abs=1e-4)
    assert ours.cache_report.used == (head != "choices")


@pytest.mark.parametrize(("name", "head"), [("bert", "classes"), ("bert", "masked"), ("t5", "seq2seq")])
def test_a_model_that_returns_a_tuple_trains(tmp_path: Path, name: str, head: str) -> None:
    ours, expected = made(tmp_path, name, head, 0.0, activation_cache="on"), plain(tmp_path, name, head)
    for trainer in (ours, expected):
        trainer.model.config.return_dict = False
    assert losses(ours) == pytest.approx(losses(expected), abs=1e-4)
    assert ours.cache_report.used
    assert "the last block runs at every position: the model's output, a tuple, has no 'lo" in ours.notices[0]


def with_ends(architecture: str) -> list[Any]:
    """Rows of classes that end as the architecture's classifier wants it."""
    end = 1 if architecture == "t5" else 2
    return [row | {"input_ids": [*row["input_ids"][:-1], end]} for row in rows_of("classes")]


@pytest.mark.parametrize(
    ("name", "plan"),
    slow_but([("t5", "bot50"), ("bart", "bot75")], product(["t5", "bart"], ["bot25", "bot50", "bot75"])),
)
def test_a_classifier_that_reads_the_end_of_a_text(tmp_path: Path, name: str, plan: str) -> None:
    rows = {"train_dataset": with_ends(name), "data_collator": collate}
    args = arguments(tmp_path, max_steps=6, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    model = model_of(name, "classes")
    ours = Trainer(model, args, plan=make_plan(model, plan), **rows)
    ours.session._training = _without_estimate(ours)
    found = losses(ours)
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    other = model_of(name, "classes")
    for key, parameter in other.named_parameters():
        parameter.requires_grad_(key in trained)
    args = arguments(tmp_path, max_steps=6, per_device_train_batch_size=4)
    assert found == pytest.approx(losses(transformers.Trainer(other, args, **rows)), abs=1e-4)
    if (name, plan) == ("bart", "bot75"):  # the boundary lies in the decoder
        assert ours.cache_report.reason == "the labels are not the tokens that the decoder reads"
    else:
        assert ours.cache_report.used


@pytest.mark.parametrize(("name", "head", "accumulation"), grid(CASES, [1, 4]))
def test_with_dropout_above_it_draws_the_same(tmp_path: Path, name: str, head: str, accumulation: int) -> None:
    options: dict[str, Any] = {"loss_positions": False, "accumulation": accumulation}
    ours = made(tmp_path, name, head, 0.1, **options)
    ours.session._training = _without_estimate(ours)
    off = made(tmp_path, name, head, 0.1, activation_cache="off", **options)
    assert losses(ours) == pytest.approx(losses(off), abs=1e-4)
    assert ours.cache_report.used == (head != "choices"), ours.cache_report.reason


def test_a_trainer_that_generates_evaluates_as_the_plain_one(tmp_path: Path) -> None:
    use = USES["sequence to sequence, `predict_with_generate`"]
    ours, theirs = made(tmp_path, "t5", "seq2seq", 0.0, use), plain(tmp_path, "t5", "seq2seq", use)
    assert losses(ours) == pytest.approx(losses(theirs), abs=1e-4)
    mine, its = (
        [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        for trainer in (ours, theirs)
    )
    assert len(its) == 3 and mine == pytest.approx(its, abs=1e-4)
    texts = [trainer.predict(rows_of("seq2seq", 4)).predictions for trainer in (ours, theirs)]
    assert (texts[0] == texts[1]).all()


def _without_estimate(trainer: Trainer) -> Any:
    own = trainer.session._training
    return lambda: replace(own(), estimate=None)


class Seen(transformers.TrainerCallback):
    """What runs at the loss positions alone while training runs: the last block, the head."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.narrow = trainer, (False, False)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        positions = self.trainer.positions
        self.narrow = (positions is not None and (positions.last_block, positions.chunked_head)) or (False, False)


def table() -> str:
    """The table of `docs/heads.md`, measured now."""
    lines = [
        "| head | model | a step of 4 batches is that of one | activation cache | loss positions | notice |",
        "|---|---|---|---|---|---|",
    ]
    cases = [(NAMES[head], name, head, PLAIN) for name, head in CASES]
    for label, name, head, use in [*cases, *((label, name, head, USES[label]) for name, head, label in OTHERS)]:
        with tempfile.TemporaryDirectory() as folder:
            trainer = made(Path(folder), name, head, 0.0, use, accumulation=4)
            trainer.session._training = _without_estimate(trainer)
            seen = Seen(trainer)
            trainer.add_callback(seen)
            found = losses(trainer)
            whole = losses(plain(Path(folder), name, head, use, batch=8))
            same = "yes" if found == pytest.approx(whole, abs=1e-4) else "no"
            report = trainer.cache_report
            cache = "yes" if report.used else f"no: {report.reason}"
            where = {(True, True): "last block and head", (True, False): "last block", (False, True): "head"}
            notices = "; ".join(notice for notice in trainer.notices if notice != report.notice)
            lines.append(f"| {label} | {name} | {same} | {cache} | {where.get(seen.narrow, 'no')} | {notices} |")
    return "\n".join(lines)


@pytest.mark.slow
def test_the_table_in_the_docs_is_what_is_found() -> None:
    assert table() in DOC.read_text(encoding="utf-8"), "python tests/engine/test_heads.py prints the table"


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table())
