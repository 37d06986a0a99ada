"""Rows of data sets on the Hugging Face hub, read by the datasets library (and from its cache)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from frostline.core.errors import DataError, first_line
from frostline.tasks._rows import Row, Rows

Convert = Callable[[Mapping[str, Any]], dict[str, Any] | None]
PARQUET_BRANCH = "refs/convert/parquet"


@dataclass(frozen=True)
class HubSource:
    """A data set on the hub.

    Attributes:
        path: owner/name.
        subset: its configuration, where it has several.
        revision, files: for a data set whose main branch needs code to be run: the branch that holds it as
            Parquet, and the files of each split there.
        convert: makes an ordinary row of one of the data set's; None leaves the row out.
    """

    path: str
    subset: str | None = None
    revision: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    convert: Convert = dict

    def __str__(self) -> str:
        return f"{self.path}/{self.subset}" if self.subset else self.path


def exported(path: str, subset: str, *splits: str, convert: Convert = dict) -> HubSource:
    """A data set whose main branch needs code to be run, from the hub's own export of it."""
    files = {split: f"{subset}/{split}/*.parquet" for split in splits}
    return HubSource(path, None, PARQUET_BRANCH, files, convert)


def read_hub(source: HubSource, otherwise: str) -> dict[str, Any]:
    """Every split of a hub data set by its name, as `datasets.Dataset`.

    Raises `UserError` when the hub cannot be reached or has no such data set; `otherwise` says what else the
    user can do.
    """
    from datasets import load_dataset

    try:
        return dict(
            load_dataset(source.path, source.subset, revision=source.revision, data_files=dict(source.files) or None)
        )
    except Exception as error:  # the hub's clients raise dozens of classes, from DNS to a bad configuration
        reason = first_line(error)
        raise DataError(f"hub data set '{source}' cannot be loaded ({reason}): go online, or {otherwise}") from error


def hub_rows(source: HubSource, datasets: Mapping[str, Any], split: str) -> Rows:
    """The rows of one split of `read_hub`'s answer, with a class label's number replaced by its name.

    Raises `UserError` when there is no such split, or nothing in it.
    """
    origin = f"{source}[{split}]"
    if split not in datasets:
        raise DataError(f"hub data set '{source}' has no split '{split}'; splits: {', '.join(datasets)}")
    rows = list(_named_rows(source, origin, datasets[split]))
    if not rows:
        raise DataError(f"{origin}: no rows")
    return Rows(origin, rows)


def _named_rows(source: HubSource, origin: str, dataset: Any) -> Iterator[Row]:
    names = {column: feature.names for column, feature in dataset.features.items() if hasattr(feature, "names")}
    for number, raw in enumerate(dataset, start=1):
        row = source.convert(raw)
        if row is None:
            continue
        for column in names.keys() & row.keys():
            # A split without answers has the label -1.
            row[column] = names[column][row[column]] if (row[column] or 0) >= 0 else None
        yield Row(row, f"{origin}:row {number}")
