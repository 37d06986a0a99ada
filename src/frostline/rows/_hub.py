"""Rows of data sets on the Hugging Face hub. The datasets library reads them, also from its cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from frostline.core.errors import DataError, first_line
from frostline.rows._files import Row, Rows

Convert = Callable[[Mapping[str, Any]], dict[str, Any] | None]
PARQUET_BRANCH = "refs/convert/parquet"


@dataclass(frozen=True)
class HubSource:
    """A data set on the hub.

    Attributes:
        path: owner/name.
        subset: its configuration, where it has several.
        revision: for a data set whose main branch needs remote code: the branch that has it as Parquet.
        files: split -> the files on that branch.
        convert: makes a row with our columns from one of the data set's; where it gives None, the row is left out.
    """

    path: str
    subset: str | None = None
    revision: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    convert: Convert = dict

    def __str__(self) -> str:
        return f"{self.path}/{self.subset}" if self.subset else self.path


def exported(path: str, subset: str, *splits: str, convert: Convert = dict) -> HubSource:
    """A data set whose main branch needs remote code, read from the hub's own Parquet export."""
    files = {split: f"{subset}/{split}/*.parquet" for split in splits}
    return HubSource(path, None, PARQUET_BRANCH, files, convert)


def read_hub(source: HubSource, otherwise: str) -> dict[str, Any]:
    """Split name -> `datasets.Dataset`, for every split of a hub data set.

    Raises `DataError` when the hub cannot be reached or has no such data set. `otherwise` is what else the user can
    do, for the message.
    """
    from datasets import load_dataset

    try:
        return dict(
            load_dataset(source.path, source.subset, revision=source.revision, data_files=dict(source.files) or None)
        )
    except Exception as error:  # the hub's libraries raise many classes of errors
        reason = first_line(error)
        raise DataError(f"hub data set '{source}' cannot be loaded ({reason}): go online, or {otherwise}") from error


def hub_rows(source: HubSource, datasets: Mapping[str, Any], split: str) -> Rows:
    """The rows of one split. Numbers of class labels are replaced by their names.

    Args:
        source: the data set.
        datasets: its splits, from `read_hub`.
        split: the split's name.

    Raises `DataError` when there is no such split, or when it has no rows.
    """
    origin = f"{source}[{split}]"
    if split not in datasets:
        raise DataError(f"hub data set '{source}' has no split '{split}': use one of {', '.join(datasets)}")
    rows = list(_named_rows(source, origin, datasets[split]))
    if not rows:
        raise DataError(f"{origin}: it has no rows: use another split")
    return Rows(origin, rows)


def _named_rows(source: HubSource, origin: str, dataset: Any) -> Iterator[Row]:
    names = {column: found for column, feature in dataset.features.items() if (found := _class_names(feature))}
    for number, raw in enumerate(dataset, start=1):
        row = source.convert(raw)
        if row is None:
            continue
        for column in names.keys() & row.keys():
            row[column] = _named(row[column], names[column])
        yield Row(row, f"{origin}:row {number}")


def _class_names(feature: Any) -> Sequence[str] | None:
    """The names of a column of class labels, or of lists of them."""
    inner = getattr(feature, "feature", feature)
    return getattr(inner, "names", None)


def _named(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_named(one, names) for one in value]
    # In a split without answers, every label is -1.
    return names[value] if (value or 0) >= 0 else None
