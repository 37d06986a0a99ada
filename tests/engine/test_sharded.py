"""FSDP2 under a plan: several processes train, save and resume what one does, and share what is in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from architectures import tiny
from frostline.anatomy import find_anatomy
from frostline.cost import Workload, memory
from sharded_cases import BEST, Case, plan_of, refused, run_in, train

QUICK = {
    "bot50": Case(),
    "lora": Case(plan="lora", cache="off"),
    "hlpt": Case(plan="hlpt"),
    "resumed": Case(resumes="bot50/checkpoint-2"),
    "best": Case(options=BEST),
}
FEWER_BITS = Case(options={"bf16": True})
SLOW = {
    "bot50-without-cache": Case(cache="off"),
    "all": Case(plan="all", cache="off"),
    "bot50-lora": Case(plan="bot50+lora"),
    "rows": Case(plan="bot50+partial"),
    "lisa": Case(plan="lisa", cache="auto"),
    "lisa-resumed": Case(plan="lisa", cache="auto", resumes="lisa/checkpoint-2"),
    "tied": Case("gpt2"),
    "accumulated": Case(options={"gradient_accumulation_steps": 2}),
    "checkpointing": Case(plan="all", cache="off", options={"activation_checkpointing": True}),
    "classes": Case("bert", task="classification"),
    "seq2seq": Case("t5"),
    "streamed": Case(streamed=True),
    "read-by-the-first": Case(read_by_first=True),
    "made-by-a-function": Case(made=True, read_by_first=True),
    "best-lora": Case(plan="lora", cache="off", options=BEST),
    "as-given": Case(plan="as given"),
}
FOUR = {"bot50": Case(), "resumed": Case(resumes="../two/bot50/checkpoint-2")}
REFUSED = {
    "fsdp1": "fsdp: version 1 is not supported: use version 2",
    "zero": "deepspeed: its checkpoints and shards are not supported: use DDP",
    "tp": "its weights were divided among processes when it was loaded",
    "offload": "fsdp cannot be used with cpu_offload",
    "adafactor": "optim: Adafactor reads whole tensors",
    "autofreeze": "'autofreeze' changes its plan, and it measures the model while it trains",
    "best-as-given": "load_best_model_at_end: with fsdp, the best checkpoint of a model without a plan",
    "attach": "attach: fsdp would shard the frozen bottom too: use frostline.Trainer",
}
SAME = 1e-5
Found = dict[str, list[Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("sharded")
    tiny("llama").save_pretrained(found / "base")
    return found


@pytest.fixture(scope="module")
def quick(folder: Path) -> Found:
    """What each of two processes found, by case."""
    runs = {name: (train, (case, folder / "two" / name, 2)) for name, case in QUICK.items()}
    runs["bf16"] = (train, (FEWER_BITS, folder / "two" / "bf16", 2))
    return run_in(2, {**runs, **{what: (refused, (what, folder / what)) for what in REFUSED}}, folder)


@pytest.fixture(scope="module")
def slow(folder: Path) -> Found:
    return run_in(2, {name: (train, (case, folder / "two" / name, 2)) for name, case in SLOW.items()}, folder)


@pytest.fixture(scope="module")
def four(folder: Path, quick: Found) -> Found:
    return run_in(4, {name: (train, (case, folder / "four" / name, 4)) for name, case in FOUR.items()}, folder)


def check(case: Case, found: list[Any], ours: Path, alone: dict[str, Any]) -> None:
    """Every process has what one process `alone` has, and `ours` holds it."""
    for each in found:
        assert not isinstance(each, str), each
        assert not each["left"], "parameters that nothing reads any more are still in memory"
        assert each["losses"] == found[0]["losses"] and each["notices"] == alone["notices"]
    first = found[0]
    assert first["losses"] == pytest.approx(alone["losses"], abs=SAME)
    assert first["norms"] == pytest.approx(alone["norms"], rel=1e-4)
    assert first["cached"] == alone["cached"] == (case.cache == "on")
    if first["after"] is not None:
        torch.testing.assert_close(first["after"], alone["after"], atol=1e-4, rtol=0)
    assert first["weights"].keys() == alone["weights"].keys()
    for key, weights in alone["weights"].items():
        torch.testing.assert_close(first["weights"][key], weights, atol=SAME, rtol=0)
    check_saved(case, first, ours)


def check_saved(case: Case, first: dict[str, Any], ours: Path) -> None:
    """Delta, checkpoint and the whole model hold what the processes trained, bit for bit."""
    file = "model.safetensors" if case.plan == "as given" else "delta.safetensors"
    for place in ("saved", "checkpoint-2" if case.options.get("load_best_model_at_end") else "checkpoint-4"):
        saved = load_file(ours / place / file)
        assert saved.keys() == first["weights"].keys() or case.plan == "as given"
        assert all(torch.equal(saved[key], weights) for key, weights in first["weights"].items())
    if (ours / "whole").is_dir():
        whole = load_file(ours / "whole" / "model.safetensors")
        assert not case.plan.endswith(("all", "bot50", "given")) or all(
            torch.equal(whole[key], weights) for key, weights in first["weights"].items()
        )


def train_alone(case: Case, folder: Path, name: str) -> dict[str, Any]:
    """The same training in one process, and before it the one that it goes on from."""
    before = None if case.resumes is None else Path(case.resumes).parts[-2]
    if before is not None and not (folder / "one" / before).is_dir():
        train({**QUICK, **SLOW}[before], folder / "one" / before, 1)
    return train(case, folder / "one" / name, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_two_processes_are_one(name: str, folder: Path, quick: Found) -> None:
    check(QUICK[name], quick[name], folder / "two" / name, train_alone(QUICK[name], folder, name))


@pytest.mark.slow
def test_weights_that_were_gathered_in_fewer_bits_are_saved_in_all(folder: Path, quick: Found) -> None:
    """The evaluation before saving leaves what is outside the blocks gathered, in bfloat16."""
    first = quick["bf16"][0]
    assert not isinstance(first, str), first
    check_saved(FEWER_BITS, first, folder / "two" / "bf16")


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_more_trainings_of_two_processes_are_one(name: str, folder: Path, slow: Found) -> None:
    check(SLOW[name], slow[name], folder / "two" / name, train_alone(SLOW[name], folder, name))


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUR)
def test_four_processes_are_one_and_go_on_from_two(name: str, folder: Path, four: Found) -> None:
    check(FOUR[name], four[name], folder / "four" / name, train_alone(QUICK[name], folder, f"{name}-of-four"))


@pytest.mark.slow
def test_one_process_goes_on_from_two(folder: Path, quick: Found) -> None:
    case = Case(resumes="../two/bot50/checkpoint-2")
    alone = train(case, folder / "one" / "goes-on", 1)
    assert alone["losses"] == pytest.approx(quick["resumed"][0]["losses"], abs=SAME)
    for key, weights in quick["bot50"][0]["weights"].items():
        torch.testing.assert_close(alone["weights"][key], weights, atol=SAME, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bot50", "lora"])
def test_each_holds_its_share_as_predicted(name: str, quick: Found) -> None:
    case, model = QUICK[name], tiny("llama")
    plan, anatomy = plan_of(case.plan, model), find_anatomy(model)
    work = Workload(devices=2, activation_cache=case.cache == "on")
    for found in quick[name]:
        assert found["bytes"] == memory(plan, anatomy, work).weights


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bot50-without-cache", "all", "bot50-lora", "tied", "rows"])
def test_more_shares_as_predicted(name: str, slow: Found) -> None:
    case = SLOW[name]
    model = tiny(case.model)
    plan, anatomy = plan_of(case.plan, model), find_anatomy(model)
    work = Workload(devices=2, activation_cache=case.cache == "on")
    for found in slow[name]:
        assert found["bytes"] == pytest.approx(memory(plan, anatomy, work).weights, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_before_training_by_every_process(what: str, quick: Found) -> None:
    for line in quick[what]:
        assert isinstance(line, str) and REFUSED[what] in line, line
        assert "\n" not in line and len(line) < 300
