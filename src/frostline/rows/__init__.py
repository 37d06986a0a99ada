"""Rows of files and of hub data sets: reading them, what their columns are, and what their labels say."""

from __future__ import annotations

from frostline.rows._cells import as_text, cell, entries, optional_cell, optional_text, text, texts
from frostline.rows._choices import choices_of, label_form, right_choice
from frostline.rows._files import SUFFIXES, Row, Rows, is_data_file, kind_of, read_rows, split_file
from frostline.rows._hub import HubSource, exported, hub_rows, read_hub
from frostline.rows._kinds import TaskKind
from frostline.rows._labels import (
    NO_LABEL,
    NOT_COUNTED,
    check_list_marks,
    label_index,
    label_names,
    label_text,
    labelled,
    number,
    row_labels,
    spelling_notices,
)
from frostline.rows._options import OF_FILES, Columns, TaskOptions
from frostline.rows._reading import Reading, choose_reading, reading_notices
from frostline.rows._stored import Stored, chunks_of, some_of, store, values_of

__all__ = [
    "NOT_COUNTED",
    "NO_LABEL",
    "OF_FILES",
    "SUFFIXES",
    "Columns",
    "HubSource",
    "Reading",
    "Row",
    "Rows",
    "Stored",
    "TaskKind",
    "TaskOptions",
    "as_text",
    "cell",
    "check_list_marks",
    "choices_of",
    "choose_reading",
    "chunks_of",
    "entries",
    "exported",
    "hub_rows",
    "is_data_file",
    "kind_of",
    "label_form",
    "label_index",
    "label_names",
    "label_text",
    "labelled",
    "number",
    "optional_cell",
    "optional_text",
    "read_hub",
    "read_rows",
    "reading_notices",
    "right_choice",
    "row_labels",
    "some_of",
    "spelling_notices",
    "split_file",
    "store",
    "text",
    "texts",
    "values_of",
]
