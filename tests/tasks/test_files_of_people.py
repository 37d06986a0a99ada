"""Files as people have them, made up: each is read as it is, or with the options that its error message offers."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from frostline.cli.main import main
from frostline.core.errors import UserError
from frostline.core.settings import lay_over
from frostline.tasks import Task, TaskKind, TaskOptions, load_task

Rows = list[dict[str, Any]]
FLAG = r"""(?:'data\.(?:[^']|'"'"')*'|data\.[\w.]+=[^\s,)]+)"""
WORDS = [
    "the",
    "order",
    "came",
    "late",
    "and",
    "the",
    "box",
    "was",
    "open",
    "but",
    "support",
    "helped",
    "at",
    "once",
    "so",
    "I",
    "stay",
    "with",
    "you",
]
draw = random.Random(7)


def words(count: int = 9) -> str:
    return " ".join(draw.choices(WORDS, k=count))


def some(count: int, make: Callable[[int], dict[str, Any]]) -> Rows:
    return [make(i) for i in range(count)]


def lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def sheet(rows: Rows, mark: str = ",", encoding: str = "utf-8", end: str = "\r\n") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0].keys(), delimiter=mark, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode(encoding)


def columns(rows: Rows) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def turns(i: int) -> list[dict[str, str]]:
    return [{"from": "human", "value": words()}, {"from": "gpt", "value": words()}] * (1 + i % 3)


def clause(i: int) -> dict[str, Any]:
    return {"Clause": "The party shall. " * (30_000 if i < 2 else 20), "Type": ["Liability", "Term"][i % 2], "No": i}


def ticket(i: int) -> dict[str, Any]:
    return {"ticket_id": 900 + i, "Opened": "2024-05-01", "body": words(), "category": ["billing", "login"][i % 2]}


def squad(i: int) -> dict[str, Any]:
    context = f"{words()} Berlin {words()}"
    answers = (
        {"text": ["Berlin"], "answer_start": [context.index("Berlin")]} if i % 3 else {"text": [], "answer_start": []}
    )
    return {"id": str(i), "title": "t", "context": context, "question": "where?", "answers": answers}


MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": [{"type": "text", "text": "ho"}]}]


def german(i: int) -> dict[str, Any]:
    return {"ID": i, "Freitext": f"{words()} Straße", "Zufriedenheit": f"{i % 9 / 2:.1f}".replace(".", ",")}


def nli(i: int) -> dict[str, Any]:
    return {"index": i, "sentence1": f'"{words()}', "sentence2": words(), "gold_label": "en"[i % 2]}


def unquoted(rows: Rows) -> bytes:
    """A table in which quotes are ordinary characters, as GLUE's."""
    return "".join("\t".join(map(str, row)) + "\n" for row in [rows[0].keys(), *(r.values() for r in rows)]).encode()


def arc(i: int) -> dict[str, Any]:
    names = ["A", "B", "C", "D"][: 3 + i % 2]
    return {
        "question": words(),
        "choices": {"text": [words(2) for _ in names], "label": names},
        "answerKey": "ABC"[i % 3],
    }


def exam(i: int) -> dict[str, Any]:
    return {"question": words(), **{name: words(2) for name in "ABCD"}, "answer": "ABCD"[i % 4]}


def alpaca(i: int) -> dict[str, Any]:
    return {"instruction": words(), "input": words() * (i % 2), "output": words()}


def dolly(i: int) -> dict[str, Any]:
    return {"instruction": words(), "context": "", "response": words(), "category": "qa"}


FILES: dict[str, tuple[bytes, TaskKind]] = {
    "survey_de.csv": (
        sheet(some(40, german), ";", "cp1252"),
        TaskKind.REGRESSION,
    ),
    "survey_fr.csv": (
        sheet(
            some(40, lambda i: {"Réponse": words() + " été", "Catégorie": ["plainte", "éloge"][i % 2]}),
            ";",
            "utf-8-sig",
        ),
        TaskKind.CLASSIFICATION,
    ),
    "survey_us.csv": (
        sheet(some(40, lambda i: {"": i, "Review Text": words() + ", really", "Rating": i % 5 + 1})),
        TaskKind.CLASSIFICATION,
    ),
    "unicode_text.csv": (
        sheet(some(40, lambda i: {"Comment": words(), "Class": "ab"[i % 2]}), "\t", "utf-16"),
        TaskKind.CLASSIFICATION,
    ),
    "tickets.csv.gz": (gzip.compress(sheet(some(40, ticket))), TaskKind.CLASSIFICATION),
    "tickets.jsonl": (
        lines(some(40, lambda i: {"subject": words(3), "message": words(), "reply": words()})),
        TaskKind.GENERATION,
    ),
    "sharegpt.json": (
        json.dumps(some(12, lambda i: {"id": f"c{i}", "conversations": turns(i)})).encode(),
        TaskKind.LANGUAGE,
    ),
    "parts.jsonl": (lines(some(12, lambda i: {"messages": MESSAGES, "source": f"log {i}"})), TaskKind.LANGUAGE),
    "legal.csv": (sheet(some(12, clause)), TaskKind.CLASSIFICATION),
    "alpaca.json": (json.dumps(some(12, alpaca), indent=4).encode(), TaskKind.GENERATION),
    "dolly.jsonl.gz": (gzip.compress(lines(some(12, dolly))), TaskKind.GENERATION),
    "nli.tsv": (unquoted(some(30, nli)), TaskKind.CLASSIFICATION),
    "sts.jsonl": (
        lines(some(30, lambda i: {"sentence1": words(), "sentence2": words(), "score": i % 11 / 2})),
        TaskKind.REGRESSION,
    ),
    "squad.parquet": (columns(some(30, squad)), TaskKind.EXTRACTION),
    "emotions.parquet": (
        columns(some(30, lambda i: {"text": words(), "labels": [i % 4, 4][: 1 + i % 2], "id": str(i)})),
        TaskKind.MULTI_LABEL,
    ),
    "names.parquet": (
        columns(some(30, lambda i: {"tokens": words().split(), "ner_tags": [i % 3] * 9})),
        TaskKind.TAGGING,
    ),
    "exam.csv": (sheet(some(30, exam)), TaskKind.CHOICE),
    "arc.jsonl": (lines(some(30, arc)), TaskKind.CHOICE),
    "wmt.jsonl": (
        lines(some(30, lambda i: {"translation": {"de": words() + f" ü{i}", "en": words() + f" {i}"}})),
        TaskKind.GENERATION,
    ),
    "meetings.json": (
        json.dumps({"data": some(12, lambda i: {"dialogue": words(30), "summary": words(), "fname": f"{i}"})}).encode(),
        TaskKind.GENERATION,
    ),
    "stories.jsonl": (
        lines(some(30, lambda i: {"text": words(40), "url": f"https://example.org/{i}", "lang": "en"})),
        TaskKind.LANGUAGE,
    ),
    "faq.csv": (
        sheet(
            some(
                30, lambda i: {"question": words() + f" {i}?", "answer": words() + f" {i}", "topic": ["a", "b"][i % 2]}
            )
        ),
        TaskKind.CLASSIFICATION,
    ),
}


MAPPED = {
    *(
        "survey_de.csv",
        "survey_fr.csv",
        "survey_us.csv",
        "tickets.jsonl",
        "legal.csv",
        "nli.tsv",
        "wmt.jsonl",
        "faq.csv",
    )
}
"""The files that need options: their columns have other names, or may be read in two ways."""


def offered(message: str) -> list[str]:
    """The first options that a message offers, as a shell reads them."""
    found = re.search(rf"{FLAG}(?: {FLAG})*", message)
    assert found, message
    return shlex.split(found[0])


def read(path: Path) -> tuple[Task, list[str]]:
    """The task, with the options that were needed: at most those of two messages."""
    flags: list[str] = []
    for _ in range(2):
        document: dict[str, Any] = {"data": {}}
        lay_over(document, flags)
        try:
            return load_task(str(path), TaskOptions.model_validate(document["data"])), flags
        except UserError as error:
            assert "\n" not in str(error)
            flags += offered(str(error).removeprefix(str(path)))
    lay_over(document, flags)
    return load_task(str(path), TaskOptions.model_validate(document["data"])), flags


def test_there_are_at_least_twenty() -> None:
    assert len(FILES) >= 20


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_as_it_is_or_with_what_its_error_says(name: str, tmp_path: Path) -> None:
    content, kind = FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    task, flags = read(path)
    assert task.kind is kind, (flags, task.notices)
    assert len(task.train) + len(task.eval) >= 12
    assert task.notices[0].startswith("read as ")
    assert bool(flags) == (name in MAPPED), flags


def test_the_values_of_some(tmp_path: Path) -> None:
    def first(name: str) -> Any:
        path = tmp_path / name
        path.write_bytes(FILES[name][0])
        task, _ = read(path)
        return next(example for example in (*task.train, *task.eval) if example.id.endswith(":1"))

    assert first("survey_de.csv").value == 0.5
    assert first("survey_de.csv").text.endswith(" Straße")
    assert first("survey_fr.csv").text.endswith(" été")
    assert len(first("legal.csv").text) == len("The party shall. ") * 30_000
    assert first("nli.tsv").text.startswith('"')
    assert first("exam.csv").label == 1
    assert first("arc.jsonl").label == 1
    assert len(first("arc.jsonl").choices) == 4
    assert first("squad.parquet").answers[0][0] == "Berlin"
    assert first("emotions.parquet").labels == (1, 4)
    assert first("wmt.jsonl").text.endswith(" ü1")
    assert first("parts.jsonl").messages[1] == ("assistant", "ho")
    assert [message.role for message in first("sharegpt.json").messages] == ["user", "assistant"] * 2


LEARNED = {
    "all-MiniLM-L6-v2": (
        *("survey_fr.csv", "nli.tsv", "survey_de.csv", "squad.parquet", "emotions.parquet", "names.parquet"),
        "exam.csv",
    ),
    "stories260K": ("arc.jsonl", "legal.csv", "alpaca.json", "wmt.jsonl", "stories.jsonl"),
}
QUICK = ("survey_fr.csv", "squad.parquet", "names.parquet", "alpaca.json")  # classes, answers, tags, texts


@pytest.mark.parametrize(
    ("name", "model"),
    [
        pytest.param(name, model, marks=() if name in QUICK else pytest.mark.slow)
        for model, names in LEARNED.items()
        for name in names
    ],
)
def test_training_from_the_command_line(
    name: str, model: str, tmp_path: Path, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name][0])
    options = ["max_steps=2", "max_length=32", "data.generate_rows=0", "data.max_eval_rows=4"]
    command = ["train", "--model", str(models_dir / model), "--task", str(path), "--strategy", "bot50"]
    command += ["--out", str(tmp_path / "out"), *options]
    status = main(command)
    for _ in range(2):
        said = " ".join(capsys.readouterr().err.split())
        if status == 0:
            break
        command += offered(said.replace(str(path), ""))
        status = main(command)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (status, record["status"]) == (0, "finished")
    assert record["notices"][0].startswith("read as ")
