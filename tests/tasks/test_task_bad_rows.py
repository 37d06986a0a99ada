"""Each error in a row is one line with the file and the line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from frostline.core.errors import UserError
from frostline.tasks import Columns, TaskOptions, load_task

Write = Callable[..., Path]
QUOTE_IT = "put a text with ',' or line breaks in quotes, and two quotes for one inside"
GOOD = '{"text": "t", "label": "no"}\n'


def _error(path: Path, options: TaskOptions | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_task(str(path), options)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(str(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text" "t"}', ":3: not JSON: Expecting ':' delimiter at column 9"),
        ('{"text": "t"', ":3: not JSON: Expecting ',' delimiter at column 13"),
        ("[1]", ":3: a row must be a JSON object, found a list"),
        ('{"text": "t"}', ":3: no column 'label', only text: add it to this row"),
        ('{"label": "no"}', ":3: no column 'text', only label: add it to this row"),
        ('{"text": "  ", "label": "no"}', ":3: column 'text' is empty: give it a text"),
        ('{"text": null, "label": "no"}', ":3: column 'text' must be text, found nothing"),
        (
            '{"text": "\\ud83d", "label": "no"}',
            ":3: column 'text' is not valid Unicode: it has half of a surrogate pair",
        ),
        ('{"text": 7, "label": "no"}', ":3: column 'text' must be text, found a number"),
        ('{"text": ["t"], "label": "no"}', ":3: column 'text' must be text, found a list"),
        ('{"text": "t", "label": 0.5}', ":3: column 'label' must be text, found a number"),
        ('{"text": "t", "label": null}', ":3: column 'label' must be text, found nothing"),
    ],
)
def test_bad_json_line(line: str, message: str, write: Write) -> None:
    # The blank line counts as a line.
    assert _error(write("a.jsonl", GOOD + "\n" + line + "\n" + GOOD * 30)) == message


def test_a_bad_row_is_an_error_even_if_it_would_not_be_drawn(write: Write) -> None:
    path = write("a.jsonl", GOOD * 99 + '{"text": "", "label": "no"}\n')
    for seed in range(5):
        assert (
            _error(path, TaskOptions(max_train_rows=1, max_eval_rows=1, seed=seed))
            == ":100: column 'text' is empty: give it a text"
        )


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD.encode() + '{"text": "Ein Gruß", "label": "no"}\n'.encode("cp1252"))
    assert _error(path) == (
        ":2: not UTF-8 text: invalid continuation byte: use data.encoding=cp1252 if 'Gruß' is right, or the file's own"
    )
    examples = load_task(str(path), TaskOptions(encoding="cp1252", eval_share=0.5))
    assert {example.text for example in (*examples.train, *examples.eval)} == {"t", "Ein Gruß"}


def test_unknown_label_in_the_evaluation_file(write: Write) -> None:
    train, evaluation = write("a.jsonl", GOOD * 2), write("b.jsonl", GOOD + '{"text": "t", "label": "maybe"}\n')
    message = _error(train, TaskOptions(eval=str(evaluation)))
    assert message == f"{evaluation}:2: unknown label 'maybe' in column 'label': use one of no"


def test_label_outside_the_declared_ones(write: Write) -> None:
    message = _error(write("a.jsonl", GOOD * 3), TaskOptions(labels=("yes", "maybe")))
    assert message.endswith("unknown label 'no' in column 'label': use one of yes, maybe")
    assert message.startswith(":")


def test_a_held_out_label_is_no_unknown_label(write: Write) -> None:
    rows = [{"text": "t", "label": str(i)} for i in range(5)]
    assert load_task(str(write("a.jsonl", rows))).labels == ("0", "1", "2", "3", "4")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('text,label\n"a\nb",no\n\nc,no,more\n', ":5: the row has 3 field(s), but the header has 2: " + QUOTE_IT),
        ("text,label\na,no\nb\n", ":3: the row has 1 field(s), but the header has 2: " + QUOTE_IT),
        (
            'text,label\na,no\n"b,no\n',
            ":3: not a CSV row: unexpected end of data: correct the quotes, or use data.quotes=false where they are "
            "ordinary characters",
        ),
        ("text,text\na,no\n", ":1: the header has the column 'text' twice: rename one of them"),
        ('text,label\n"a\nb",no\n,no\n', ":4: column 'text' is empty: give it a text"),
        ("text,label\n", ": the file has no rows: add at least one"),
        ("", ": the file has no rows: add at least one"),
    ],
)
def test_bad_csv_row(text: str, message: str, write: Write) -> None:
    assert _error(write("a.csv", text)) == message


def test_bad_parquet_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [{"text": "t", "label": "no"}, {"text": None, "label": "no"}, {"text": "t", "label": "no"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    evaluation = tmp_path / "b.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows[:1]), evaluation)
    assert _error(path, TaskOptions(eval=str(evaluation))) == ":row 2: column 'text' must be text, found nothing"


def test_not_a_parquet_file(write: Write) -> None:
    assert _error(write("a.parquet", "hello, hello")).startswith(": not a Parquet file: ")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_empty_file(name: str, write: Write) -> None:
    assert _error(write(name, "")) == ": the file has no rows: add at least one"


def test_missing_file_and_unknown_format(write: Write, tmp_path: Path) -> None:
    assert _error(tmp_path / "no.jsonl") == f"data file not found: {tmp_path / 'no.jsonl'}"
    assert _error(write("a.txt", "x")) == (
        ": unknown file format: use a file that ends in .jsonl, .json, .csv, .tsv, .parquet"
    )
    good = write("a.jsonl", GOOD)
    assert _error(good, TaskOptions(eval="no.csv")) == "data file not found: no.csv"
    assert "already is the training file: leave it out" in _error(good, TaskOptions(train="train"))


def test_one_row_cannot_be_split(write: Write) -> None:
    message = _error(write("a.jsonl", GOOD))
    assert message == ": too few rows (1) to hold out a share of 0.1 for evaluation: use data.eval=FILE"


def test_mapped_column_that_is_not_there(write: Write) -> None:
    message = _error(write("a.jsonl", GOOD), TaskOptions(columns=Columns(text="sentence")))
    assert message == ":1: data.columns.text: no column 'sentence': use one of label, text"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "completion": ""}, "column 'completion' is empty: give it a text"),
        ({"prompt": "p", "references": []}, "column 'references' is an empty list: it needs at least one entry"),
        ({"prompt": "p", "references": ["r", 3]}, "column 'references[1]' must be text, found a number"),
        ({"prompt": "p", "references": 3}, "column 'references' must be a list, found a number"),
        ({"messages": "hi"}, "column 'messages' must be a list, found text"),
        ({"messages": ["hi"]}, "messages[0] must be an object with role and content, found text"),
        ({"messages": [{"role": "assistant"}]}, "column 'messages[0].content' must be text, found nothing"),
        (
            {"messages": [{"role": "user", "content": "hi"}]},
            "column 'messages' needs at least one message with the role 'assistant'",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [1]}]},
            "messages[0] has the key 'tool_calls': a message must have only role and content",
        ),
    ],
)
def test_bad_completion_or_chat(row: dict[str, Any], message: str, write: Write) -> None:
    path = write("a.jsonl", [row])
    assert _error(path, TaskOptions(eval=str(path))) == f":1: {message}"
