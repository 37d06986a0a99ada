"""FSDP2 under a plan: several processes train, save and resume what one does, and share what is in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sharded_cases import Case, run_in, train

CASES = {
    "bot50-cache": Case(),
    "bot50-no-cache": Case(cache="off"),
    "all": Case(plan="all", cache="off"),
    "lora": Case(plan="lora", cache="off"),
    "bot50-lora": Case(plan="bot50+lora"),
    "partial": Case(plan="bot50+partial"),
    "hlpt": Case(plan="hlpt"),
    "lisa": Case(plan="lisa", cache="auto"),
    "tied": Case("gpt2"),
    "parts": Case(options={"gradient_accumulation_steps": 2}),
    "classes": Case("bert", task="classification"),
    "streamed": Case(streamed=True),
    "read-by-the-first": Case(read_by_first=True),
    "resumed": Case(resumes="bot50-cache/checkpoint-2"),
    "lisa-resumed": Case(plan="lisa", cache="auto", resumes="lisa/checkpoint-2"),
}
SAME = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def together(folder: Path) -> dict[str, list[Any]]:
    """What each of two processes found, by case."""
    return run_in(2, {name: (train, (case, folder / "two" / name, 2)) for name, case in CASES.items()}, folder)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_and_save_what_one_does(name: str, folder: Path, together: dict[str, list[Any]]) -> None:
    first, second = together[name]
    assert not isinstance(first, str), first
    alone = train(CASES[name], folder / "one" / name, 1)
    assert first["losses"] == second["losses"] == pytest.approx(alone["losses"], abs=SAME)
    assert first["norms"] == pytest.approx(alone["norms"], rel=1e-4)
    if first["after"] is not None:
        torch.testing.assert_close(first["after"], alone["after"], atol=1e-4, rtol=0)
    assert first["cached"] == alone["cached"] == (CASES[name].cache == "on")
    assert first["notices"] == alone["notices"]
    assert first["weights"].keys() == alone["weights"].keys()
    for key, weights in alone["weights"].items():
        torch.testing.assert_close(first["weights"][key], weights, atol=SAME, rtol=0)
    ours = folder / "two" / name
    saved, checkpoint = (load_file(ours / each / "delta.safetensors") for each in ("saved", "checkpoint-4"))
    assert saved.keys() == checkpoint.keys() == first["weights"].keys()
    for key, weights in first["weights"].items():
        assert torch.equal(saved[key], weights) and torch.equal(checkpoint[key], weights)
