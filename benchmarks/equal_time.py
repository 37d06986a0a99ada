"""Plans in the same processor time: what a saving is for. Writes the studies recipes/equal-time-*.yaml, and reads them.

The time unit is full fine-tuning's three epochs. A plan that costs less per step makes more steps in a share of it, up
to 3.3 passes over the rows; its caching pass is in the time. Every plan has three learning rates with the first seed,
and the best of them with two more.

    python benchmarks/equal_time.py recipe base16-webnlg      # times a step of each plan, writes the study
    frostline study recipes/equal-time-base16-webnlg.yaml --out docs/results/equal-time-base16-webnlg
    python benchmarks/equal_time.py seeds base16-webnlg       # two more seeds for the best rate of each plan
    python benchmarks/equal_time.py table                     # the best rate of each plan in each share, and `auto`
    python benchmarks/equal_time.py rule                      # the rule of `auto` beside what plans gained

`auto` may use a share of what full fine-tuning's steps take, as it measures them itself: trials, caching and judging
are in it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from claims import equal
from claims.records import RESULTS, ROOT, Cell, read
from rich.console import Console
from rich.table import Table

from frostline.strategies._worth import LORA_WORTH, PASSES, TIED_WORTH, learned, of_share

SHARES = sorted(equal.SHARES, key=lambda share: abs(share - 0.4))  # 0.4 comes first in a study
SEEDS = (equal.SEED, 43, 44)
EPOCHS = 3
FEW = 12
"""Steps that are timed."""
ENCODER = {
    "all": (5e-5, 1e-4, 2e-4),
    "bot50": (1e-4, 2e-4, 3e-4),
    "bot75": (1e-4, 2e-4, 3e-4),
    "bot25": (2e-4,),
    "top50": (1e-4,),
    "int50": (1e-4,),
    "all+lora": (1e-3,),
    "semantic": (2e-4,),
    "lisa": (2e-4,),
}
DECODER = {
    "all": (1e-3, 2e-3, 4e-3),
    "bot50": (1e-3, 2e-3, 4e-3),
    "bot75-untied": (1e-3, 2e-3, 3e-3),
    "bot25": (2e-3,),
    "top50": (2e-3,),
    "int50": (2e-3,),
    "all+lora": (5e-3,),
    "hlpt": (3e-2,),
    "semantic": (2e-3,),
    "lisa": (4e-3,),
}
EXTRA: dict[str, dict[str, Any]] = {
    "all+lora": {"strategy_options": {"lora": {"targets": "all"}}},
    "lisa": {"strategy_options": {"every": 10}},
    **{f"bot{percent}": {"activation_cache": "on"} for percent in (25, 50, 75)},
    "bot75-untied": {"name": "recipes/plans/base16-bot75-untied.yaml", "activation_cache": "on"},
}
"""What an entry needs beside its rate and its steps."""


@dataclass(frozen=True)
class Work:
    """A model and its rows; `rates` has learning rates for each plan."""

    model: str
    task: str
    rows: int
    eval_rows: int
    max_length: int
    batch: int
    rates: dict[str, tuple[float, ...]]

    @property
    def full_steps(self) -> int:
        return EPOCHS * -(-self.rows // self.batch)

    @property
    def config(self) -> dict[str, Any]:
        return {
            "per_device_train_batch_size": self.batch,
            "max_length": self.max_length,
            "threads": 1,
            "logging_steps": 10,
            "generate_rows": 0,
            "data": {"max_train_rows": self.rows, "max_eval_rows": self.eval_rows},
        }


_MINILM, _BASE16 = "sentence-transformers/all-MiniLM-L6-v2", "base16"
WORKS = {
    "base16-webnlg": Work(_BASE16, "webnlg", 800, 300, 128, 8, DECODER),
    "base16-webnlg-3000": Work(_BASE16, "webnlg", 3000, 300, 128, 8, DECODER),
    "base16-math": Work(_BASE16, "math-mix", 800, 150, 256, 8, DECODER),
    "base16-math-3000": Work(_BASE16, "math-mix", 3000, 150, 256, 8, DECODER),
    "minilm-mnli": Work(_MINILM, "mnli", 3200, 1000, 64, 32, ENCODER),
    "minilm-qnli": Work(_MINILM, "qnli", 3200, 1000, 64, 32, ENCODER),
    "minilm-rte": Work(_MINILM, "rte", 2490, 277, 64, 32, ENCODER),
}


def label(plan: str, share: float, rate: float) -> str:
    return f"{plan}_{share:g}_{rate:g}"


def recipe(name: str) -> str:
    """The study of one model and task, with as many steps for each plan as its share of the time pays for."""
    work = WORKS[name]
    costs = {plan: cost(work, plan) for plan in work.rates}
    whole = work.full_steps * costs["all"][0]
    entries: list[dict[str, Any]] = []
    for share in (*SHARES, equal.WHOLE):
        for plan in ("all",) if share == equal.WHOLE else work.rates:
            step, start = costs[plan]
            most = work.full_steps if plan == "all" else round(PASSES * work.rows / work.batch)
            steps = max(10, min(most, round((share * whole - start) / step)))
            for rate in work.rates[plan]:
                schedule = {"learning_rate": rate, "lr_scheduler_type": "cosine", "warmup_steps": 10}
                entry = {"name": plan, "label": label(plan, share, rate), "max_steps": steps, **schedule}
                entries.append(entry | EXTRA.get(plan, {}))
        if share != equal.WHOLE:
            auto = {"name": "auto", "label": f"auto_{share:g}", "budget": {"time": share}, "seeds": list(SEEDS)}
            entries.append(auto | {"num_train_epochs": EPOCHS})
    document = {
        "models": [work.model],
        "tasks": [work.task],
        "strategies": entries,
        "seeds": [SEEDS[0]],
        "baseline": None,
        "config": work.config,
    }
    return _text(name, document)


def cost(work: Work, plan: str) -> tuple[float, float]:
    """Processor seconds of a step, and seconds before the first one: measured in a short run with an empty cache."""
    from frostline.run import read_config, train

    extra = dict(EXTRA.get(plan, {}))
    strategy = extra.pop("name", plan)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FROSTLINE_CACHE"] = folder
        settings = work.config | extra | {"max_steps": FEW, "learning_rate": work.rates[plan][0]}
        settings["data"] = settings["data"] | {"max_eval_rows": 8}
        record = train(
            read_config(None, model=work.model, task=work.task, strategy=strategy, out=f"{folder}/run", **settings)
        )
        del os.environ["FROSTLINE_CACHE"]
    found = record.measured
    assert found is not None
    busy = found.cpu_seconds_per_step / found.seconds_per_step  # where other work is beside it, a second is less
    return found.cpu_seconds_per_step, busy * (found.caching_seconds + found.selection_seconds)


def with_seeds(name: str) -> str:
    """The same study, with all seeds for the rate of each plan and share that was best with the first."""
    path = place(name)
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    best = {cell.label for cell in equal.best(read(path.stem)).values()}
    for entry in document["strategies"]:
        if entry["label"] in best and entry["name"] in ("all", "bot50", "bot75", EXTRA["bot75-untied"]["name"]):
            entry["seeds"] = list(SEEDS)
    return _text(name, document)


def place(name: str) -> Path:
    return ROOT / "recipes" / f"equal-time-{name}.yaml"


def _text(name: str, document: dict[str, Any]) -> str:
    lines = [f"# Equal time, {name}: each plan for shares of full fine-tuning's three epochs. Steps are from timings."]
    lines += [f"#   frostline study recipes/{place(name).name} --out docs/results/{place(name).stem}"]
    lines += [f"# Written by `python benchmarks/equal_time.py recipe {name}`."]
    strategies = "\n".join(
        "  - " + yaml.safe_dump(one, default_flow_style=True, sort_keys=False, width=10_000).strip()
        for one in document["strategies"]
    )
    rest = {key: value for key, value in document.items() if key != "strategies"}
    return "\n".join(lines) + "\n" + yaml.safe_dump(rest, sort_keys=False) + f"strategies:\n{strategies}\n"


def table(name: str) -> Table:
    """A row for each plan; a cell has the quality of each seed at its best rate, and that rate."""
    best = equal.best(read(place(name).stem))
    shares = (*equal.SHARES, equal.WHOLE)
    shown = Table("plan", *(f"{share:g}" for share in shares), title=name)
    for plan in dict.fromkeys(plan for plan, _ in best):
        row = []
        for share in shares:
            cell = best.get((plan, share))
            values = [f"{abs(one):.3f}" for one in cell.values(equal.value(cell)).values()] if cell else []
            row.append(", ".join(values) + (f" ({rate})" if cell and (rate := equal.rate(cell)) else ""))
        shown.add_row(plan, *row)
    return shown


def gains(name: str) -> Iterator[tuple[str, float, float, float, float]]:
    """Plan, share of the time, passes, gain as a share of full fine-tuning's in all of its time, and the rule's."""
    found, work = read(place(name).stem), WORKS[name]
    best = equal.best(found)
    if ("all", equal.WHOLE) not in best:
        return
    for (plan, share), cell in best.items():
        one = cell.runs[SEEDS[0]]
        if not plan.startswith(("all", "bot")):
            continue
        before = _before(one, cell)
        whole = equal.quality(best["all", equal.WHOLE]) - before
        blocks = one["plan"]["blocks"]
        trained = sum(block["mode"] != "frozen" for block in blocks) / len(blocks)
        pretrained = not equal.encoder(cell)
        worth = LORA_WORTH if plan.endswith("+lora") else 1.0
        if pretrained and not one["plan"].get("untie") and plan != "all":
            worth *= TIED_WORTH
        passes = one["measured"]["steps"] * work.batch / work.rows
        rule = of_share(trained, pretrained) * worth * learned(min(passes, PASSES)) / learned(EPOCHS)
        yield plan, share, passes, (equal.quality(cell) - before) / whole, rule


def _before(record: dict[str, Any], cell: Cell) -> float:
    """Quality before training; of classes that of guessing, which a new head is not always at."""
    if not equal.encoder(cell):
        return -float(record["metrics"]["before"]["loss"])
    return 1 / {"mnli": 3}.get(cell.task, 2)


def rule_table(name: str) -> Table:
    """A row for each plan and share, and the mean difference below."""
    shown = Table("plan", "share", "passes", "gain", "rule", title=name)
    cells = list(gains(name))
    for plan, share, passes, gain, rule in cells:
        shown.add_row(plan, f"{share:.1f}", f"{passes:.1f}", f"{gain:.2f}", f"{rule:.2f}")
    if cells:
        errors = [abs(rule - gain) for *_, gain, rule in cells]
        shown.caption = f"mean error {statistics.mean(errors):.3f}, largest {max(errors):.2f}"
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("recipe", "seeds", "table", "rule"))
    parser.add_argument("names", nargs="*", metavar="name", help=f"all, or some, of {', '.join(WORKS)}")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in WORKS]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(WORKS)}")
    os.chdir(ROOT)  # plan files are named from there
    for name in given.names or WORKS:
        if given.what in ("recipe", "seeds"):
            text = recipe(name) if given.what == "recipe" else with_seeds(name)
            place(name).write_text(text, encoding="utf-8")
            print(f"written: recipes/{place(name).name}")
        elif (RESULTS / place(name).stem).is_dir():
            Console().print(table(name) if given.what == "table" else rule_table(name))


if __name__ == "__main__":
    main()
