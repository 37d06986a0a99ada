"""Each shape of task on real rows: MiniLM and base16 under bot50 for some steps, and a baseline beside it.

    FROSTLINE_DATA=... FROSTLINE_MODELS=... python benchmarks/task_shapes.py [shape ...]

The rows are made of WebNLG (triples, and sentences that say them) and OpenBookQA: how many facts a sentence states
(regression), which of the twelve most common properties (multi-label), which words name subjects and objects
(tagging), the object of a property, one question in five without an answer (extraction), the right one of four endings
(multiple choice), triples to a sentence (generation).
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from frostline.run import read_config, train
from frostline.tasks import (
    METRICS,
    TASKS,
    Example,
    Task,
    TaskKind,
    accuracy,
    answer_scores,
    entity_scores,
    generation_examples,
    label_set_scores,
    mean_squared_error,
    text_scores,
)

Row = dict[str, Any]
ENCODER, DECODER = "all-MiniLM-L6-v2", "base16"
DATA = Path(os.environ.get("FROSTLINE_DATA", "."))
TAGS = ("O", "B-SUB", "I-SUB", "B-OBJ", "I-OBJ")
MOST = {"train": 1600, "eval": 200}
RUN = {"strategy": "bot50", "lr_scheduler_type": "linear", "warmup_steps": 10, "bf16": False, "threads": 1}
RUN |= {"max_new_tokens": 40}


def read(path: str) -> list[Row]:
    return [json.loads(line) for line in (DATA / path).read_text().splitlines()]


WEBNLG = {"train": read("gen/webnlg2017/train.jsonl"), "eval": read("gen/webnlg2017/dev.jsonl")}


def triples(row: Row) -> list[list[str]]:
    return [
        [part.strip().replace("_", " ").strip('"') for part in triple.split(" | ")]
        for triple in row["source"].split(" && ")
    ]


COMMON = [name for name, _ in Counter(t[1] for row in WEBNLG["train"] for t in triples(row)).most_common(12)]


def spaced(name: str) -> str:
    return re.sub("([A-Z])", r" \1", name).lower()


def drawn(examples: list[Example], most: int) -> list[Example]:
    random.Random(1).shuffle(examples)
    return examples[:most]


def counted(name: str, row: Row) -> Example:
    return Example(name, row["targets"][0], value=float(len(triples(row))))


def properties(name: str, row: Row) -> Example | None:
    own = {COMMON.index(t[1]) for t in triples(row) if t[1] in COMMON}
    return Example(name, row["targets"][0], labels=tuple(sorted(own))) if own else None


def tagged(name: str, row: Row) -> Example | None:
    words = re.findall(r"\w+|[^\w\s]", row["targets"][0])
    tags = [0] * len(words)
    found = 0
    for subject, _, thing in triples(row):
        for entity, begins in ((subject, 1), (thing, 3)):
            own = re.findall(r"\w+|[^\w\s]", entity)
            for start in range(len(words) - len(own) + 1):
                end = start + len(own)
                if own and words[start:end] == own and not any(tags[start:end]):
                    tags[start:end] = [begins, *[begins + 1] * (len(own) - 1)]
                    found += 1
                    break
    return Example(name, words=tuple(words), tags=tuple(tags)) if found > 1 else None


DRAW = random.Random(2)


def asked(name: str, row: Row) -> Example | None:
    context = row["targets"][0]
    subject, about, thing = DRAW.choice(triples(row))
    other = DRAW.choice(COMMON)
    if DRAW.random() < 0.2 and other not in [t[1] for t in triples(row)]:
        return Example(name, f"What is the {spaced(other)} of {subject}?", context)
    if thing not in context:
        return None
    question = f"What is the {spaced(about)} of {subject}?"
    return Example(name, question, context, answers=((thing, context.index(thing)),))


def said(name: str, row: Row) -> Example:
    targets = row["targets"]
    return Example(name, row["source"] + "\n", target=targets[0], references=tuple(targets))


def endings(split: str) -> list[Example]:
    examples = []
    for number, row in enumerate(read(f"commonsense/{split}/openbookqa.jsonl")):
        question, rest = row["instruction"].split("\n\nAnswer1: ")
        choices = tuple(re.split(r" Answer\d: ", rest.split("\n\nAnswer format")[0]))
        text = question.split("question: ", 1)[1]
        if len(choices) == 4:
            examples.append(Example(f"{split}:{number}", text, choices=choices, label=int(row["answer"][-1]) - 1))
    return examples


def webnlg(kind: TaskKind, make: Callable[[str, Row], Example | None], **given: Any) -> Task:
    parts = {
        split: drawn([e for i, row in enumerate(rows) if (e := make(f"{split}:{i}", row))], MOST[split])
        for split, rows in WEBNLG.items()
    }
    return Task(str(kind), kind, parts["train"], parts["eval"], METRICS[kind][0], source="webnlg", **given)


SHAPES = {
    task.name: task
    for task in (
        webnlg(TaskKind.REGRESSION, counted),
        webnlg(TaskKind.MULTI_LABEL, properties, labels=tuple(COMMON)),
        webnlg(TaskKind.TAGGING, tagged, labels=TAGS),
        webnlg(TaskKind.EXTRACTION, asked),
        Task(
            "multiple-choice", TaskKind.CHOICE, drawn(endings("train"), 2400), drawn(endings("test"), 250), "accuracy"
        ),
        webnlg(TaskKind.GENERATION, said, generate_rows=100),
    )
}


def baseline(task: Task) -> tuple[str, dict[str, float]]:
    """An answer that needs no model, and its scores."""
    train_rows, rows = task.train, task.eval
    if task.kind is TaskKind.REGRESSION:
        mean = sum(e.value or 0 for e in train_rows) / len(train_rows)
        return "the mean", {"mse": mean_squared_error([mean] * len(rows), [e.value or 0 for e in rows])}
    if task.kind is TaskKind.MULTI_LABEL:
        [(common, _)] = Counter(label for e in train_rows for label in e.labels or ()).most_common(1)
        return "the most common label", label_set_scores([(common,)] * len(rows), [e.labels or () for e in rows])
    if task.kind is TaskKind.TAGGING:
        named = [[TAGS[tag] for tag in e.tags] for e in rows]
        return "O everywhere", entity_scores([["O"] * len(tags) for tags in named], named)
    if task.kind is TaskKind.EXTRACTION:
        return "no answer", answer_scores([""] * len(rows), [[text for text, _ in e.answers] for e in rows])
    if task.kind is TaskKind.CHOICE:
        return "the first choice", {"accuracy": accuracy([0] * len(rows), [e.label or 0 for e in rows])}
    examples = generation_examples(rows, task.generate_rows)
    return "a copy of the prompt", text_scores([e.text for e in examples], [e.references for e in examples])


def settings(task: Task, model: str) -> dict[str, Any]:
    if model == ENCODER:
        choice = task.kind is TaskKind.CHOICE
        own = {"per_device_train_batch_size": 8 if choice else 16, "max_steps": 50 if choice else 70}
        lengths = {TaskKind.CHOICE: 40, TaskKind.EXTRACTION: 64}
        if task.kind is TaskKind.MULTI_LABEL:  # few labels reach a probability of 0.5 before
            own["max_steps"] = 180
        return {**RUN, **own, "learning_rate": 3e-4, "max_length": lengths.get(task.kind, 48)}
    length = 112 if task.kind is TaskKind.GENERATION else 56
    return {**RUN, "per_device_train_batch_size": 8, "max_steps": 40, "learning_rate": 5e-4, "max_length": length}


def main(names: list[str]) -> None:
    for name in names or list(SHAPES):
        task = SHAPES[name]
        TASKS._entries[f"shape-{name}"] = lambda _options, task=task: task
        print(name, *baseline(task))
        for model in (ENCODER, DECODER):
            able = {TaskKind.GENERATION: [DECODER], TaskKind.EXTRACTION: [ENCODER]}.get(task.kind, [ENCODER, DECODER])
            if model not in able:
                continue
            with tempfile.TemporaryDirectory() as folder:
                given = {"model": model, "task": f"shape-{name}", "out": f"{folder}/run", **settings(task, model)}
                record = train(read_config(None, **given))
            assert record.metrics is not None and record.measured is not None
            for when, metrics in (("before", record.metrics.before), ("after", record.metrics.after)):
                print(name, model, when, {key: round(value, 3) for key, value in metrics.items()})
            print(name, model, f"{record.measured.steps} steps, {record.measured.train_seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
