"""transformers' own Trainer tests, with `transformers.Trainer` and with `frostline.Trainer` on the same model.

`bert_for_toys.py` says what the tests run on. Each test that passes with `transformers.Trainer` has to pass with
`frostline.Trainer` too, or REASONS says why it does not. A difference without a reason ends the script with status 1,
and so does a reason that is no longer needed.

    python benchmarks/peers/transformers_trainer.py --tests FOLDER [--only PATTERN] [--timeout 1800]

FOLDER is a checkout of transformers, or a folder that holds its `tests/__init__.py`, `tests/trainer` and
`tests/fixtures`. Take a version near the installed one; a fork will do. The tests need `parameterized`, beside what
frostline's own tests need. Those that download a model fail with both trainers, because the hub is not asked.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Column, Table

HERE = Path(__file__).parent
FILES = (
    "test_trainer.py",
    "test_trainer_accelerator.py",
    "test_trainer_callback.py",
    "test_trainer_checkpointing.py",
    "test_trainer_data.py",
    "test_trainer_evaluation.py",
    "test_trainer_hyperparameter.py",
    "test_trainer_optimizers.py",
)
_SHARDS = "it cuts model.safetensors of a checkpoint into shards; a checkpoint is a delta, which is one small file"
REASONS: dict[str, str] = {
    "test_logging_inf_nan_filter": "it trains on with a loss that is not a number; frostline ends the training there",
    "test_resume_training_with_checkpoint": _SHARDS,
    "test_resume_training_with_shard_checkpoint": _SHARDS,
}
"""The tests that pass with `transformers.Trainer` alone, and why."""


def results_of(tests: Path, trainer: str, only: str, seconds: float) -> ElementTree.Element:
    """pytest's results (JUnit XML) of the tests with one trainer.

    Args:
        tests: the folder that holds `tests/trainer`.
        trainer: `plain` or `frostline`.
        only: a pattern for pytest's `-k`; empty for all tests.
        seconds: how long all tests together may take.
    """
    with tempfile.TemporaryDirectory() as scratch:
        results = Path(scratch) / "results.xml"
        environment = {
            **os.environ,
            "PEER_TRAINER": trainer,
            "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
            "FROSTLINE_CACHE": str(Path(scratch) / "cache"),
            "HF_HUB_OFFLINE": "1",
        }
        options = ["-p", "bert_for_toys", "-p", "no:cacheprovider", "-q", "-W", "ignore", "--tb=no", "-k", only]
        files = [f"tests/trainer/{name}" for name in FILES if (tests / "tests" / "trainer" / name).is_file()]
        command = [sys.executable, "-m", "pytest", *options, f"--rootdir={tests}", f"--junitxml={results}", *files]
        ended = subprocess.run(command, cwd=tests, env=environment, timeout=seconds, capture_output=True, text=True)
        if ended.returncode not in (0, 1):  # 1: some tests failed
            raise SystemExit(f"pytest ended with status {ended.returncode}:\n{ended.stdout}{ended.stderr}")
        return ElementTree.parse(results).getroot()


def outcomes(results: ElementTree.Element) -> dict[str, str]:
    """What became of each test, by name: `passed`, `failed` or `skipped`."""
    return {name(case): outcome(case) for case in results.iter("testcase")}


def cached(results: ElementTree.Element) -> tuple[int, Counter[str]]:
    """How many tests that passed train with the activation cache; and for all of their trainings, what became of it."""
    with_cache, trainings = 0, Counter[str]()
    for case in results.iter("testcase"):
        if outcome(case) == "passed":
            found = [entry.attrib["value"] for entry in case.iter("property") if entry.attrib["name"] == "cache"]
            with_cache += "used" in found
            trainings.update(found)
    return with_cache, trainings


def name(case: ElementTree.Element) -> str:
    """`file::class::test` of an entry in pytest's results."""
    *_, file, group = case.attrib["classname"].split(".")
    return f"{file}::{group}::{case.attrib['name']}"


def outcome(case: ElementTree.Element) -> str:
    """`passed`, `failed` or `skipped`."""
    kinds = {child.tag for child in case}
    return "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"


def compare(plain: Mapping[str, str], ours: Mapping[str, str]) -> tuple[Table, list[str]]:
    """The table of all tests that `transformers.Trainer` passes and `frostline.Trainer` does not, and what is amiss.

    Args:
        plain: what became of each test with `transformers.Trainer`.
        ours: the same with `frostline.Trainer`.
    """
    table, amiss = Table(Column("test", overflow="fold"), "plain", "frostline", "reason"), []
    for test in sorted(plain):
        reason = REASONS.get(test.split("::")[-1], "")
        if plain[test] == "passed" and ours.get(test) != "passed":
            table.add_row(test, plain[test], ours.get(test, "did not run"), reason or "NOT NAMED")
            if not reason:
                amiss.append(f"{test}: no reason is named")
        elif plain[test] == "passed" and reason:
            amiss.append(f"{test} passes: its reason is no longer needed")
    return table, amiss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=Path, required=True, metavar="FOLDER", help="holds tests/trainer")
    parser.add_argument("--only", default="", metavar="PATTERN", help="only tests that match, as for pytest -k")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for the tests with one trainer")
    given = parser.parse_args()
    by_plain, by_ours = (
        results_of(given.tests.resolve(), trainer, given.only, given.timeout) for trainer in ("plain", "frostline")
    )
    plain, ours = outcomes(by_plain), outcomes(by_ours)
    table, amiss = compare(plain, ours)
    passed = [test for test, became in plain.items() if became == "passed"]
    both = sum(ours.get(test) == "passed" for test in passed)
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    console.print(f"plain: {dict(Counter(plain.values()))}; frostline: {dict(Counter(ours.values()))}")
    console.print(f"frostline passes {both} of the {len(passed)} tests that plain passes")
    with_cache, trainings = cached(by_ours)
    console.print(f"{with_cache} of these train with the activation cache. All their trainings: {dict(trainings)}")
    for line in amiss:
        console.print(line)
    raise SystemExit(1 if amiss else 0)


if __name__ == "__main__":
    main()
