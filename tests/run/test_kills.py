"""The short form of benchmarks/kills.py: real processes, killed and resumed, end as if they had never been killed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from tiny_files import write_model

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "kills.py"


@pytest.mark.slow
def test_killed_and_resumed_it_is_the_same_run(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("kills", BENCHMARK)
    assert spec is not None and spec.loader is not None
    kills = importlib.util.module_from_spec(spec)
    sys.modules["kills"] = kills  # dataclasses look there
    spec.loader.exec_module(kills)
    model = str(write_model(tmp_path / "tiny"))
    for job in ("bot50", "adt-l50"):
        (tmp_path / job).mkdir()
        assert kills.run(2, 14, [job], model, tmp_path / job)[job] > 0
