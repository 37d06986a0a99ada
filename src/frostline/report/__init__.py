"""Tables, figures and an HTML page from run records. Reads records only and imports no torch."""

from frostline.report._format import (
    bytes_text,
    count_text,
    mean_text,
    ratio_text,
    seconds_text,
    share_text,
    short_count_text,
)
from frostline.report._page import REPORT_FILE, write_report
from frostline.report._render import csv_text, document, markdown, view
from frostline.report._runs import Found, Run, Unreadable, collect, named, study_baseline
from frostline.report._table import Failure, Group, Mean, Table, TableRow, tabulate
from frostline.report._trials import save_trials

__all__ = [
    "REPORT_FILE",
    "Failure",
    "Found",
    "Group",
    "Mean",
    "Run",
    "Table",
    "TableRow",
    "Unreadable",
    "bytes_text",
    "collect",
    "count_text",
    "csv_text",
    "document",
    "markdown",
    "mean_text",
    "named",
    "ratio_text",
    "save_trials",
    "seconds_text",
    "share_text",
    "short_count_text",
    "study_baseline",
    "tabulate",
    "view",
    "write_report",
]
