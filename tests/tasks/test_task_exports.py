from __future__ import annotations

import subprocess
import sys

import frostline.tasks


def test_every_export_is_there() -> None:
    assert all(hasattr(frostline.tasks, name) for name in frostline.tasks.__all__)


def test_naming_the_tasks_loads_neither_transformers_nor_datasets() -> None:
    code = (
        "import sys; from frostline.tasks import TASKS; list(TASKS);"
        "print([m for m in ('transformers', 'datasets', 'nltk', 'sacrebleu') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
