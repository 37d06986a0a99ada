"""Random trainings for `same_training.py`: what a combination is, and its model, rows, collator and arguments.

A combination is drawn from two numbers, so it can be drawn again. Not everything goes with everything: `draw` leaves
out what has no plain training to compare with, each with its reason beside it.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.utils.data import Dataset, IterableDataset
from transformers import AutoConfig, DataCollatorWithFlattening, TrainingArguments

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from architectures import ARCHITECTURES, decoder_names, encoder_names
from heads import HEADS, model_of
from heads import collate as pad

Row = dict[str, Any]

OF_TOKENS = ("token classes", "masked", "causal", "seq2seq")
"""Heads with a label for each token."""
MIXTURES = ("mixtral", "qwen3_moe")
PLANS = (
    *("all", "head", "bot25", "bot50", "bot50", "bot50", "bot75", "bot75", "top50", "int50", "random30", "bitfit"),
    *("adt-l50", "adt-h50", "lora", "bot50+lora", "bot50+lora", "bot75+dora", "bot50+ia3", "prefix", "bot50+prefix"),
    *("series-adapter", "bot50+parallel-adapter", "bot50+mixlora", "semantic", "hierarchical", "surgical"),
    *("discriminative", "spectrum", "hlpt"),
)
CACHES = ("on", "on", "on", "auto", "auto", "off")
DATA = (
    *("rows", "rows", "rows", "repeated", "an unlabelled row", "one row last", "changing", "by epoch"),
    *("own generator", "global generator", "another column", "stream", "datasets", "datasets with a transform"),
)
COLLATORS = (
    *("right", "right", "right", "left", "multiple of 8", "packed", "packed with seq_idx", "random tokens"),
    *("random labels", "shuffled", "no mask"),
)
LOOKS = (
    *("none", "none", "none", "state_dict", "average", "deep copy", "hook reads", "hook reads later", "hook changes"),
    *("hook changes later", "embeddings", "hidden states asked", "forward later", "class forward later", "evaluates"),
    *("generates", "own backward", "changes frozen weights", "changes the input", "changes the input later"),
    *("hook on the model", "hook on the model later", "scales the loss later", "replaces a module"),
)
LOSSES = ("model", "model", "model", "reads logits", "loss function", "smoothing")


@dataclass(frozen=True)
class Combination:
    """One training. `place` is the module that a look touches: the part of the way through the blocks, or the head."""

    architecture: str
    head: str
    plan: str
    cache: str
    data: str
    collator: str
    accumulation: int
    bf16: bool
    checkpointing: bool
    loss: str
    look: str
    place: str
    neftune: bool
    sampling: str
    evaluates: bool
    dropout: float
    positions: bool
    optim: str
    clips: bool
    batch: int
    count: int
    steps: int
    tied: bool
    twice: bool
    seed: int

    def __str__(self) -> str:
        return " ".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))


def heads_of(architecture: str) -> list[str]:
    """The heads that transformers has for an architecture, as it is mostly used."""
    if architecture in ("t5", "bart"):
        return ["seq2seq", "seq2seq", "classes", "answers"]
    of_texts = ["classes", "several labels", "a number", "token classes", "answers"]
    own = ["causal"] * 3 if architecture in decoder_names else ["masked", "masked", "choices"]
    config: Any = AutoConfig.for_model("bart") if architecture == "bart" else ARCHITECTURES[architecture]()
    return [head for head in (*own, *of_texts) if type(config) in HEADS[head].auto._model_mapping]


def draw(seed: int, number: int) -> Combination:
    """The combination with this number."""
    by = random.Random(f"{seed} {number}")
    architecture = by.choice([*decoder_names, *encoder_names, "t5", "bart", "t5", "bart", *encoder_names])
    head = by.choice(heads_of(architecture))
    drawn: dict[str, Any] = {
        "architecture": architecture,
        "head": head,
        "plan": by.choice(PLANS),
        "cache": by.choice(CACHES),
        "data": by.choice(DATA),
        "collator": by.choice(COLLATORS),
        "accumulation": by.choice((1, 1, 2, 4)),
        "bf16": by.random() < 0.25,
        "checkpointing": by.random() < 0.15,
        "loss": by.choice(LOSSES),
        "look": by.choice(LOOKS),
        "place": by.choice(("embeddings", "first", "boundary", "last", "head")),
        "neftune": by.random() < 0.06,
        "sampling": by.choice(("random", "random", "sequential", "group_by_length")),
        "evaluates": by.random() < 0.3,
        "dropout": by.choice((0.0, 0.0, 0.0, 0.0, 0.0, 0.1)),
        "positions": by.random() < 0.85,
        "optim": by.choice(("sgd", "sgd", "sgd", "adamw_torch")),
        "clips": by.random() < 0.7,
        "batch": by.choice((1, 2, 2, 3)),
        "count": by.choice((7, 8, 9, 11)),
        "steps": by.choice((4, 5, 6)),
        "tied": by.random() < 0.5,
        "twice": by.random() < 0.08,
        "seed": by.randrange(1000),
    }
    _leave_out(drawn)
    return Combination(**drawn)


def _leave_out(drawn: dict[str, Any]) -> None:
    """Change what has no plain training to compare with."""
    head, tokens = drawn["head"], drawn["head"] in OF_TOKENS
    if drawn["bf16"] and (drawn["architecture"] in MIXTURES or drawn["plan"].endswith("mixlora")):
        drawn["bf16"] = False  # a rounding decides which expert a token takes
    packed = drawn["collator"].startswith("packed")
    if packed and (drawn["architecture"] not in decoder_names or head not in ("causal", "token classes")):
        drawn["collator"], packed = "right", False  # one row of labels for each text, or no positions to tell texts by
    if packed and (drawn["architecture"] == "opt" or drawn["look"].startswith("changes the input")):
        drawn["accumulation"] = 1  # OPT's tokens see the row before; a changed token is that of one row in a batch
    if drawn["collator"] == "left" and head in ("answers", "choices", "seq2seq"):
        drawn["collator"] = "right"  # positions of answers count from the left
    if drawn["collator"] == "multiple of 8" and head in ("choices", "answers"):
        drawn["collator"] = "right"
    if drawn["collator"] in ("random labels", "random tokens") and not tokens:
        drawn["collator"] = "right"
    if drawn["collator"] in ("shuffled", "random tokens", "random labels") and head == "choices":
        drawn["collator"] = "right"
    if drawn["data"] == "an unlabelled row" and (not tokens or drawn["batch"] == 1):
        drawn["data"] = "rows"  # without any label in a step the loss is 0 / 0
    if drawn["data"] in ("own generator", "global generator", "changing", "by epoch") and head in (
        "choices",
        "answers",
    ):
        drawn["data"] = "rows"
    if drawn["loss"] == "smoothing" and head in ("several labels", "a number", "answers"):
        drawn["loss"] = "model"  # transformers smooths labels of classes only
    if head == "answers" and drawn["loss"] != "model":
        drawn["loss"] = "model"  # it has two logits and no labels
    if head == "seq2seq" and drawn["loss"] in ("smoothing", "loss function"):
        drawn["loss"] = "model"  # transformers takes the labels away, of which the model makes the decoder's input
    if drawn["look"] == "class forward later" and drawn["bf16"]:
        drawn["bf16"] = False  # accelerate keeps the forward that the model had, so a plain trainer runs the old one
    if drawn["data"] == "datasets with a transform" and head in ("choices", "answers"):
        drawn["data"] = "datasets"
    if drawn["data"] == "stream":
        drawn["sampling"] = "sequential"
    if drawn["dropout"]:
        drawn["accumulation"], drawn["positions"] = 1, False  # other shapes draw other numbers
    if drawn["neftune"] or drawn["collator"] == "shuffled" or drawn["data"] == "global generator":
        drawn["accumulation"] = 1
    if drawn["accumulation"] > 1 and drawn["collator"] in ("random tokens", "random labels"):
        drawn["evaluates"] = False  # the loader is batches ahead, so evaluation draws from another place
    if drawn["accumulation"] > 1 and drawn["collator"] in ("random tokens", "random labels"):
        drawn["twice"] = False  # for the same reason
    if drawn["optim"] != "sgd" and drawn["plan"] in ("surgical", "discriminative"):
        drawn["optim"] = "sgd"
    if drawn["look"] in ("hook reads", "hook reads later", "hook on the model", "hook on the model later"):
        drawn["accumulation"] = 1  # it sees batches
    if drawn["look"] in ("forward later", "hidden states asked"):
        drawn["accumulation"] = 1  # what is added to the loss is no mean over rows or labels
    if drawn["collator"] == "left":
        drawn["accumulation"] = 1  # models that count positions from the left see other positions in other batches
    if drawn["look"] == "generates" and head != "causal":
        drawn["look"] = "evaluates"
    if drawn["look"] == "changes frozen weights" and drawn["plan"] == "all":
        drawn["look"] = "none"
    if drawn["look"] == "hidden states asked" and packed:
        drawn["look"] = "none"
    if drawn["look"] in ("hook changes", "hook changes later") and drawn["place"] == "head":
        drawn["place"] = "last"
    if drawn["look"] == "replaces a module" and drawn["plan"].startswith("adt"):
        drawn["look"] = "none"  # a plan that changes finds its blocks by their names
    if drawn["look"] == "replaces a module":
        drawn["place"] = "first"
    elif drawn["look"] not in ("hook reads", "hook reads later", "hook changes", "hook changes later"):
        drawn["place"] = "-"
    if drawn["data"] == "one row last":
        drawn["count"] = 1 + drawn["batch"] * drawn["accumulation"] * (8 // (drawn["batch"] * drawn["accumulation"]))
        drawn["steps"] = 6


def model_for(chosen: Combination) -> Any:
    """The model, with its weights drawn by a seed."""
    model = model_of(chosen.architecture, chosen.head, chosen.dropout)
    output = model.get_output_embeddings()
    if chosen.tied and output is not None and not model.config.is_encoder_decoder:
        output.weight = model.get_input_embeddings().weight
        model.config.tie_word_embeddings = True
    with torch.no_grad():
        drawn = torch.Generator().manual_seed(chosen.seed)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:  # some heads begin at zero
                parameter.add_(torch.randn(parameter.shape, generator=drawn), alpha=0.02)
            assert parameter.dtype == torch.float32, name
    return model


# Rows.


def rows_for(chosen: Combination, count: int, seed: int) -> list[Row]:
    """Rows of 5 to 9 tokens; of 8 for answers, whose loss reads padding too."""
    drawn = torch.Generator().manual_seed(seed)
    rows: list[Row] = []
    for index in range(count):
        length = 8 if chosen.head == "answers" or chosen.collator == "no mask" else 5 + index % 5
        ids = torch.randint(3, 100, (length,), generator=drawn).tolist()
        if chosen.architecture in ("t5", "bart"):  # a classifier of these reads the last end of a text
            ids[-1] = 1 if chosen.architecture == "t5" else 2
        row: Row = {"input_ids": ids, "attention_mask": [1] * length}
        if chosen.head == "choices":
            row = {name: [values, values[::-1]] for name, values in row.items()}
        row |= HEADS[chosen.head].beside(index, ids, drawn)
        if chosen.collator == "no mask" or chosen.collator.startswith("packed"):
            del row["attention_mask"]
        rows.append(row)
    if chosen.data == "repeated":
        rows = [rows[index // 2] for index in range(count)]
    if chosen.data == "an unlabelled row":
        rows[1] = rows[1] | {"labels": [-100] * len(rows[1]["labels"])}
    if chosen.data == "another column":
        rows = [row | {"number": index, "text": "x" * index} for index, row in enumerate(rows)]
    return rows


class Rows(Dataset[Row]):
    """Rows, some of which may change when they are read."""

    def __init__(self, rows: list[Row], kind: str) -> None:
        self.rows, self.kind = rows, kind
        self.epoch = self.read = 0
        self.generator = torch.Generator().manual_seed(5)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        row = self.rows[index]
        self.read += 1
        if self.kind == "changing":
            return moved(row, self.read)
        if self.kind == "by epoch":
            return moved(row, self.epoch)
        if self.kind == "own generator":
            return moved(row, int(torch.randint(4, (), generator=self.generator)))
        if self.kind == "global generator":
            return moved(row, int(torch.randint(4, ())))
        return row


def moved(row: Row, by: int) -> Row:
    """The row with other tokens."""
    ids = [(token - 3 + by) % 97 + 3 if token > 2 else token for token in row["input_ids"]]
    return row | {"input_ids": ids}


class Stream(IterableDataset[Row]):
    """Rows whose number nobody knows."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)


def data_set(rows: list[Row], kind: str) -> Any:
    """The rows as one of `DATA` says."""
    if kind == "stream":
        return Stream(rows)
    if not kind.startswith("datasets"):
        return Rows(rows, kind)
    made = datasets.Dataset.from_list(rows)
    if kind == "datasets with a transform":
        made.set_transform(_transform)
    return made


def _transform(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    ids = [moved({"input_ids": row}, len(row))["input_ids"] for row in columns["input_ids"]]
    return {**columns, "input_ids": ids}


# Collators. What is random is drawn row by row, so that it is the same in batches of any size.


class Collator:
    """Makes batches as one of `COLLATORS` says. Its generator is its own."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.generator = torch.Generator().manual_seed(11)
        self.flatten = DataCollatorWithFlattening(return_seq_idx="seq_idx" in kind)

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        rows = [dict(row) for row in rows]
        if self.kind == "shuffled":
            rows = [rows[index] for index in torch.randperm(len(rows), generator=self.generator).tolist()]
        if self.kind in ("random tokens", "random labels"):
            rows = [self._random(row) for row in rows]
        if self.kind.startswith("packed"):
            batch: dict[str, torch.Tensor] = self.flatten(rows, return_tensors="pt")
            return batch
        if self.kind == "left":
            return _turned(pad([_turned_row(row) for row in rows]), rows)
        if self.kind == "multiple of 8":
            longest = max(len(row["input_ids"]) for row in rows)
            rows[0] = _longer(rows[0], longest + -longest % 8)
        return pad(rows)

    def _random(self, row: Row) -> Row:
        """Other tokens, or fewer labels; at least one stays."""
        name = "input_ids" if self.kind == "random tokens" else "labels"
        values = list(row[name])
        for index, drawn in enumerate(torch.rand(len(values), generator=self.generator).tolist()):
            if drawn < 0.2 and index > 1 and index < len(values) - 1:
                values[index] = 3 if name == "input_ids" else -100
        return row | {name: values}


def _by_token(row: Row) -> list[str]:
    length = len(row["input_ids"])
    return [name for name, values in row.items() if isinstance(values, list) and len(values) == length]


def _turned_row(row: Row) -> Row:
    names = [name for name in _by_token(row) if not isinstance(row[name][0], float)]
    return row | {name: row[name][::-1] for name in names}


def _turned(batch: dict[str, torch.Tensor], rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    shape = batch["input_ids"].shape
    return {name: value.flip(1) if value.shape == shape else value for name, value in batch.items()}


def _longer(row: Row, length: int) -> Row:
    fill = {"labels": -100}
    return row | {name: row[name] + [fill.get(name, 0)] * (length - len(row[name])) for name in _by_token(row)}


def arguments(chosen: Combination, folder: Path, whole: bool) -> TrainingArguments:
    """Of the training in parts, or of the same training with whole batches."""
    parts = 1 if whole else chosen.accumulation
    options: dict[str, Any] = {
        "max_steps": chosen.steps,
        "per_device_train_batch_size": chosen.batch * chosen.accumulation // parts,
        "per_device_eval_batch_size": 3,
        "gradient_accumulation_steps": parts,
        "optim": chosen.optim,
        "learning_rate": 0.05 if chosen.optim == "sgd" else 0.002,
        "adam_epsilon": 1e-2,  # beside which a gradient of rounding errors alone is small
        "lr_scheduler_type": "linear",
        "max_grad_norm": 1.0 if chosen.clips else 0.0,
        "label_smoothing_factor": 0.1 if chosen.loss == "smoothing" else 0.0,
        "neftune_noise_alpha": 5.0 if chosen.neftune else None,
        "activation_checkpointing": chosen.checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": False} if chosen.checkpointing else None,
        "train_sampling_strategy": chosen.sampling,
        "bf16": chosen.bf16,
        "logging_nan_inf_filter": False,
        "seed": chosen.seed,
    }
    if chosen.evaluates:
        options |= {"eval_strategy": "steps", "eval_steps": 2}
    return TrainingArguments(
        output_dir=str(folder),
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **options,
    )
