"""docs/tasks.md is true: its rows are read as it says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from frostline.rows import TaskKind
from frostline.tasks import TaskOptions, load_task

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```jsonl\n(.*?)```\n`(read as [^`]*)`", PAGE, re.DOTALL)


@pytest.mark.parametrize(("rows", "said"), EXAMPLES)
def test_an_example_is_read_as_the_page_says(rows: str, said: str, write: Callable[..., Path]) -> None:
    path = write("a.jsonl", rows)
    task = load_task(str(path), TaskOptions(eval=str(path)))
    assert (task.notices[0], len(task.train)) == (said, 3)


def test_every_kind_has_an_example() -> None:
    assert len(EXAMPLES) == len(TaskKind) + 2, "pairs and chats too"
    assert all(f"`{kind}`" in PAGE for kind in TaskKind)
