"""What every test may use: the place of the real models and data, a seed, one thread, no hub."""

from __future__ import annotations

import gc
import os
import random
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _place(variable: str, default: str) -> Path:
    place = Path(os.environ.get(variable, ROOT.parent / "shared" / default))
    if not place.is_dir():
        pytest.skip(f"no folder {place}: set {variable}")
    return place


@pytest.fixture(scope="session")
def models_dir() -> Path:
    return _place("FROSTLINE_MODELS", "models")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    return _place("FROSTLINE_DATA", "data")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests come last: where time is short, they are what is left out."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Slow tests begin until FROSTLINE_SLOW_UNTIL, in seconds since 1970; without it they all run."""
    until = float(os.environ.get("FROSTLINE_SLOW_UNTIL", "inf"))
    if item.get_closest_marker("slow") is not None and time.time() > until:
        pytest.skip("slow, and the time for slow tests is over (FROSTLINE_SLOW_UNTIL)")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Activation caches of a test go with it."""
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws without a seed of its own does not depend on the tests before it."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def light_collections() -> None:
    """Modules that are imported by now are not searched for garbage: a Trainer collects it in each training."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)
