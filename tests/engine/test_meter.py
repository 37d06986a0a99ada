"""What a run costs: the peak of memory above the start, and the median step."""

from __future__ import annotations

import subprocess
import sys

import pytest

from frostline.engine import StepMeter

# In a process of its own: what others freed there would be counted against what is measured.
CODE = """
import time
import torch
from frostline.engine import MemoryMeter
kept = torch.ones(8 * 2**20 // 4)
with MemoryMeter() as meter:
    before = torch.ones(128 * 2**20 // 4)
    time.sleep(0.2)
    del before
    meter.restart_peak()
    during = torch.ones(64 * 2**20 // 4)
    time.sleep(0.2)
    del during
print(meter.peak_bytes / 2**20)
"""
RESTARTED = """
import torch
from frostline.engine import MemoryMeter
with MemoryMeter() as meter:
    before = torch.ones(128 * 2**20 // 4)
    meter.restart_peak()
    del before
    kept = torch.ones(32 * 2**20 // 4)
    meter.restart()
    more = torch.ones(64 * 2**20 // 4)
    print(meter.peak_bytes / 2**20, meter.whole_peak_bytes / 2**20)
"""


def test_the_peak_is_above_the_start_and_since_the_restart() -> None:
    result = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    assert 50 < float(result.stdout) < 90


@pytest.mark.slow
def test_the_peak_of_the_whole_outlives_restarts() -> None:
    result = subprocess.run([sys.executable, "-c", RESTARTED], check=True, capture_output=True, text=True)
    since, whole = map(float, result.stdout.split())
    assert 60 < since < 75 and 125 < whole < 150


def test_the_median_leaves_the_first_step_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 9.0, 9.0, 10.0, 10.0, 13.0, 13.0, 15.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    meter = StepMeter()
    assert meter.median is None
    for _ in range(4):
        meter.on_step_begin()
        meter.on_step_end()
    assert meter.seconds == [9.0, 1.0, 3.0, 2.0]
    assert meter.median == 2.0
