"""`frostline cache fill --ray`: actors on a cluster store what one process stores, also where one of them is killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="ray is not installed")

FILLING = Path(__file__).resolve().parents[2] / "benchmarks" / "filling.py"


@pytest.mark.slow
def test_actors_store_the_bytes_of_one_process_although_one_is_killed() -> None:
    command = [sys.executable, str(FILLING), "ray", "--rows", "3000", "--actors", "2", "--again"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["rows"] == 3000 and found["same_bytes"]
    assert found["killed"] and 0 < found["shards_when_killed"] < found["shards"]
    assert found["passed_again"] == 0, "a fill that is made again has nothing left to do"
    assert found["actors"] and all(actor["rows"] >= 0 and actor["seconds"] > 0 for actor in found["actors"])
