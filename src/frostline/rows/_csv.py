"""Rows of CSV files, as spreadsheets and programs of several countries write them."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from frostline.core.errors import DataError
from frostline.rows._options import DELIMITERS, TaskOptions

SAMPLE = 50
"""So many lines decide what separates the columns."""


def csv_rows(
    path: Path, lines: Iterator[str], options: TaskOptions, *, tab: bool
) -> Iterator[tuple[int, dict[str, str]]]:
    """(First line, values by column) of every row. Empty rows are left out; names of columns are trimmed.

    Args:
        path: the file, for messages.
        lines: its lines.
        options: say what separates the columns, and whether quotes are ordinary characters, where the file does not.
        tab: whether the file's name says that tabs separate the columns.

    Raises `DataError` for a row that cannot be read.
    """
    # Without it, a field of more than 131,072 characters is an error. It is one setting for the whole process.
    csv.field_size_limit(2**31 - 1)
    sample = list(islice(lines, SAMPLE))
    skipped = 0
    marked = re.fullmatch(r"sep=(.)\s*", sample[0]) if sample else None
    if marked:  # Excel's own mark
        sample, skipped = sample[1:], 1
    if options.delimiter:
        delimiter = DELIMITERS[options.delimiter]
    elif marked:
        delimiter = marked[1]
    else:
        delimiter = "\t" if tab else _delimiter(path, sample)
    # "text, label": in such a file the space belongs to the comma, also before a quote.
    spaced = bool(sample) and f"{delimiter} " in sample[0]
    reader = csv.reader(
        chain(sample, lines),
        delimiter=delimiter,
        strict=True,
        quoting=csv.QUOTE_NONE if options.quotes is False else csv.QUOTE_MINIMAL,
        skipinitialspace=spaced,
    )
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1 + skipped
        where = f"{path}:{line}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{where}: not a CSV row: {error}: correct the quotes, or use data.quotes=false where they are "
                "ordinary characters"
            ) from None
        if not any(field.strip() for field in fields):
            continue
        if header is None:
            header = _header(fields, where)
            continue
        if delimiter == "\t" and options.quotes is None and any("\t" in f and "\n" in f for f in fields):
            raise DataError(
                f"{where}: a quoted text has tabs and line breaks: use data.quotes=false where quotes are ordinary "
                "characters, data.quotes=true where this is one text"
            )
        if len(fields) < len(header) or any(field.strip() for field in fields[len(header) :]):
            raise DataError(
                f"{where}: the row has {len(fields)} field(s), but the header has {len(header)}: put a text with "
                f"{_named(delimiter)} or line breaks in quotes, and two quotes for one inside"
            )
        named = zip(header, fields, strict=False)
        yield line, {name: field for name, field in named if field.strip() or not name.startswith("column ")}


def _header(fields: list[str], where: str) -> list[str]:
    """Trimmed names. A column without a name is called by its number, unless all its fields are empty."""
    header = [
        unicodedata.normalize("NFC", field.strip()) or f"column {number}" for number, field in enumerate(fields, 1)
    ]
    if repeated := [name for name in header if header.count(name) > 1]:
        raise DataError(f"{where}: the header has the column '{repeated[0]}' twice: rename one of them")
    return header


def _delimiter(path: Path, sample: list[str]) -> str:
    """What separates the columns: that which gives more than one of them, and equally many in all rows."""
    several: dict[str, list[int]] = {}
    for delimiter in DELIMITERS.values():
        counts = [len(fields) for fields in csv.reader(sample, delimiter=delimiter) if any(fields)]
        # The last row may go on after the sample.
        counts = counts[:-1] if len(sample) == SAMPLE else counts
        if counts and counts[0] > 1:
            several[delimiter] = counts
    even = {delimiter: counts for delimiter, counts in several.items() if len(set(counts)) == 1}
    if len(even) > 1:
        named = " or ".join(f"data.delimiter={_name(delimiter)}" for delimiter in even)
        raise DataError(f"{path}: more than one character may separate the columns: use {named}")
    found = even or several
    return max(found, key=lambda delimiter: found[delimiter][0], default=",")


def _name(delimiter: str) -> str:
    return next(name for name, character in DELIMITERS.items() if character == delimiter)


def _named(delimiter: str) -> str:
    return "tabs" if delimiter == "\t" else f"'{delimiter}'"
