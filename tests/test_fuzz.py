"""The short form of `make fuzz`: every surface is tried, and nothing is found."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"
SECONDS = 10


@pytest.mark.slow
def test_damaged_inputs_are_one_line(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(BENCHMARK), "--seconds", str(SECONDS), "--seed", "3", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    findings = {path.parent.name: path.read_text(errors="replace")[:2000] for path in tmp_path.glob("*/finding.txt")}
    assert not findings, json.dumps(findings, indent=1)
    assert ended.returncode == 0, ended.stderr[-3000:]
    counts = {name: int(count.replace(",", "")) for name, count in re.findall(r"\| (.*?) \| ([\d,]+) \|", ended.stdout)}
    assert len(counts) == 16 and all(counts.values())
