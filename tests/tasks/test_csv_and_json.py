"""Files in the forms in which people have them: CSV of several countries and programs, JSON, gzip."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from frostline.core.errors import UserError
from frostline.tasks import Example, TaskOptions, load_task

ROWS = [
    {"text": "Café, gut; sehr|gut", "label": "a"},
    {"text": 'sie sagt "ja"', "label": "b"},
    {"text": "x", "label": "a"},
]
Save = Callable[[str, bytes | str], Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def save(name: str, content: bytes | str) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return save


def packed(content: bytes) -> bytes:
    """Without the time in the header: names of tests hold these bytes, and are the same in every process."""
    return gzip.compress(content, mtime=0)


def table(mark: str, end: str = "\n", rows: list[dict[str, str]] = ROWS) -> str:
    lines = [["text", "label"], *([f'"{text}"' for text in (r["text"].replace('"', '""'), r["label"])] for r in rows)]
    return "".join(mark.join(line) + end for line in lines)


def read(path: Path, **options: Any) -> list[Example]:
    task = load_task(str(path), TaskOptions.model_validate({"eval_share": 0.34, **options}))
    return sorted((*task.train, *task.eval), key=lambda example: int(example.id.partition(":")[2]))


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(str(path))


FILES: list[tuple[str, bytes, dict[str, Any]]] = [
    ("comma.csv", table(",").encode(), {}),
    ("semicolon.csv", table(";").encode(), {}),
    ("tab.csv", table("\t").encode(), {}),
    ("pipe.csv", table("|").encode(), {}),
    ("tab.tsv", table("\t").encode(), {}),
    ("windows.csv", table(";", "\r\n").encode("utf-8-sig"), {}),
    ("mac.csv", table(",", "\r").encode(), {}),
    ("excel.csv", ("sep=;\r\n" + table(";", "\r\n")).encode(), {}),
    ("unicode.csv", table("\t", "\r\n").encode("utf-16"), {}),
    ("old.csv", table(";").encode("cp1252"), {"encoding": "cp1252"}),
    ("spaced.csv", table(", ").encode(), {}),
    ("wide.csv", table(";").replace("\n", ";;\n").encode() + b";;;\n\n", {}),
    ("given.csv", table("|").encode(), {"delimiter": "pipe"}),
    ("packed.csv.gz", packed(table(";").encode()), {}),
    ("a.jsonl", "\n".join(map(json.dumps, ROWS)).encode(), {}),
    ("array.json", json.dumps(ROWS, indent=2).encode(), {}),
    ("array.jsonl", json.dumps(ROWS).encode("utf-8-sig"), {}),
    ("lines.json", "\n".join(map(json.dumps, ROWS)).encode(), {}),
    ("inside.json", json.dumps({"version": 1, "rows": ROWS}).encode(), {}),
    ("columns.json", json.dumps({key: [row[key] for row in ROWS] for key in ("text", "label")}).encode(), {}),
    ("pandas.json", json.dumps({k: dict(enumerate(r[k] for r in ROWS)) for k in ("text", "label")}).encode(), {}),
    ("packed.json.gz", packed(json.dumps(ROWS).encode()), {}),
    ("packed.jsonl.gz", packed("\r\n".join(map(json.dumps, ROWS)).encode()), {}),
    ("old.jsonl", json.dumps(ROWS, ensure_ascii=False).encode("latin-1"), {"encoding": "latin-1"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "options"), FILES)
def test_the_same_rows_from_every_kind_of_file(name: str, content: bytes, options: dict[str, Any], save: Save) -> None:
    examples = read(save(name, content), **options)
    assert [example.text for example in examples] == [row["text"] for row in ROWS]
    assert [example.label for example in examples] == [0, 1, 0]


def test_a_cell_may_have_any_length(save: Save) -> None:
    long = "word " * 100_000
    assert read(save("a.csv", f"text,label\n{long},a\nx,b\ny,a\n"))[0].text == long


def test_decimal_commas_of_a_spreadsheet(save: Save) -> None:
    examples = read(save("a.csv", "text;score\r\nGut;3,5\r\nMittel;2\r\nSchlecht;-1,25\r\n"))
    assert [example.value for example in examples] == [3.5, 2.0, -1.25]


def test_an_index_without_a_name_is_named_by_its_place(save: Save) -> None:
    task = load_task(str(save("a.csv", ",text,label\n0,x,a\n1,y,b\n2,z,a\n")))
    assert "columns not used: column 1" in task.notices


def test_quotes_that_are_ordinary_characters(save: Save) -> None:
    path = save("a.tsv", 'sentence\tlabel\n"Hi" he said\t1\nfoo\t0\nbar\t1\n')
    assert "use data.quotes=false where they are ordinary characters" in refused(path)
    assert read(path, quotes=False)[0].text == '"Hi" he said'
    # Here the quotes of two rows would make one row of three.
    path = save("b.tsv", 'sentence\tlabel\n"Hi there\t1\nfoo\t0\nbar"\t1\n')
    assert ":2: a quoted text has tabs and line breaks: use data.quotes=false" in refused(path)
    assert [example.text for example in read(path, quotes=False)] == ['"Hi there', "foo", 'bar"']


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,label\na,x\nb\n", ":3: the row has 1 field(s), but the header has 2: put a text with ',' or"),
        (
            "a.csv",
            b"text;label,x\na;b,c\n",
            ": more than one character may separate the columns: use data.delimiter=comma",
        ),
        ("a.csv", b"text,label\na\x00b,x\n", ":2: it has NUL bytes: save the file as UTF-8 text"),
        ("a.csv", b"text, text \na,x\n", ":1: the header has the column 'text' twice: rename one of them"),
        ("a.csv", b"text,label\n", ": the file has no rows: add at least one"),
        ("a.csv", b"\xef\xbb\xbf", ": the file has no rows: add at least one"),
        ("a.csv", b"\n\n", ": the file has no rows: add at least one"),
        ("a.json", b"", ": the file has no rows: add at least one"),
        ("a.json", b"[]", ": the file has no rows: add at least one"),
        ("a.json", b"[1]", ":row 1: a row must be a JSON object, found a number"),
        ("a.json", b'[{"text": "a"},\n{"text" "b"}]', ":2: not JSON: Expecting ':' delimiter at column 9"),
        ("a.json", b'{"train": [{"text": "a"}], "test": [{"text": "b"}]}', ": it has several lists of rows"),
        ("a.json", b'[{"text": "a"},\n\n{"text": "b",\n"text": "c"}]', ":3: the key 'text' is twice in one object"),
        ("a.json", b'{"text": "a"}\n{"text": "b", "text": "c"}', ":2: the key 'text' is twice in one object"),
        ("a.json", b'{"data": [{"text": "b", "text": "c"}]}', ": the key 'text' is twice in one object"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b", "meta": {"x": 1, "x": 2}}', ":2: the key 'x' is twice in one"),
        ("a.jsonl", b"[" * 100_000, ": not JSON: it is nested too deeply"),
        ("a.jsonl", b'{"a": ' + b"9" * 5000 + b"}", ":1: not JSON: Exceeds the limit (4300 digits)"),
        ("a.csv.gz", b"text,label\na,x\n", ": not a whole gzip file: Not a gzipped file"),
        ("a.csv.gz", packed(b"text,label\na,x\n" * 99)[:-10], ": not a whole gzip file: Compressed file ended"),
        ("a.parquet.gz", b"x", ": unknown file format: use a file that ends in .jsonl, .json,"),
    ],
)
def test_a_damaged_file_is_one_line(name: str, content: bytes, message: str, save: Save) -> None:
    assert refused(save(name, content)).startswith(message)


def test_an_encoding_that_is_wrong_or_unknown(save: Save) -> None:
    path = save("a.csv", table(";").encode("cp1252"))
    assert ":2: not UTF-8 text: invalid continuation byte: use data.encoding=cp1252 if 'Café' is right" in refused(path)
    assert "not utf-16 text" in refused(path, encoding="utf-16")
    assert refused(path, encoding="klingon") == (
        "data.encoding: unknown encoding: klingon: use for example cp1252 or utf-16"
    )


def test_a_folder_of_packed_splits(tmp_path: Path) -> None:
    for split, text in (("train", "a"), ("test", "b")):
        (tmp_path / f"{split}.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": text}).encode()))
    task = load_task(str(tmp_path))
    assert ([e.text for e in task.train], [e.text for e in task.eval]) == (["a"], ["b"])
