"""What the semantic signal says on real models: deviations, gains, the cut they choose, and how stable it is.

    python benchmarks/cut_stability.py [--models ...] [--tasks ...] [--samples 5] [--rows 64 256 1024]

Every sample is `frostline probe` with a seed of its own (1, 2, ...) in float32 on one thread. Models and data are
looked for under $FROSTLINE_MODELS and $FROSTLINE_DATA. A reading is a list of gains whose largest chooses the cut:

    NAME, NAME log     the gains of the deviation NAME (vds, shift) in both forms
    turn               the difference gains of 1 - cos(h_{k-1}, h_k), which no growing norm distorts; without an error
    ... later          the same without the first block that has a gain

`labels shuffled` is a control for `vds`, the one deviation that reads labels: the same sample, with the labels that are
read dealt anew among the rows. What it shares with the signal does not come from a row's own label.

Models need four blocks at least. Probes are kept by content, so that a second run is quick.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path
from statistics import correlation, mean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from frostline.checkpoints import load_tokenizer, quiet_libraries
from frostline.core.errors import UserError
from frostline.core.labels import IGNORED
from frostline.run import load_model, probe_model, versions
from frostline.signals import DEVIATIONS, Measurement, Probe, Tokens, cut_at_largest
from frostline.signals import measure as measure_blocks
from frostline.tasks import Collator, TaskOptions, encode, load_task, model_kind, prepare_tokenizer

MODELS = ("sentence-transformers/all-MiniLM-L6-v2", "frostline/base16")
TASKS = ("rte", "mnli", "qnli", "cb", "webnlg")
DTYPE, LENGTH, WIDTH = "float32", 128, 120

Gains = Sequence[Measurement]


@dataclass(frozen=True, eq=False)
class Case:
    """A model's probes on samples of one size, a seed each; a single one where it is the `whole` of the task's rows."""

    model: str
    task: str
    probes: tuple[Probe, ...]
    whole: bool

    @property
    def rows(self) -> int:
        return self.probes[0].rows


@dataclass(frozen=True)
class Refused:
    """A model that cannot be measured on a task, and why."""

    model: str
    task: str
    reason: str


@dataclass(frozen=True)
class Stability:
    """What the samples of a case choose by one reading.

    Attributes:
        cuts: how many blocks each sample freezes.
        modal: the most frequent cut, the lower of equals.
        agreement: the share of samples that choose it; None for a single one.
        jaccard: the mean overlap of two samples' frozen sets; None for a single one.
        margin: the smallest of the samples' margins (see `margin`); None where the gains have no error.
    """

    cuts: tuple[int, ...]
    modal: int
    agreement: float | None
    jaccard: float | None
    margin: float | None


def readings(probe: Probe) -> dict[str, Gains]:
    """Name -> the gain of every block, None where a reading leaves it out."""
    found: dict[str, Gains] = {}
    for name in DEVIATIONS:
        if name in probe.signals:
            found |= {name: probe.gains("difference", name), f"{name} log": probe.gains("log", name)}
    similarity = [one.value for one in probe.signals["similarity"]]
    rises = [after - before for before, after in pairwise(similarity) if before is not None and after is not None]
    found["turn"] = [Measurement(None), *map(Measurement, rises)]
    return found | {f"{name} later": without_first(gains) for name, gains in found.items()}


def without_first(gains: Gains) -> Gains:
    """The gains but the first that is known."""
    first = next(index for index, gain in enumerate(gains) if gain.value is not None)
    return [Measurement(None) if index == first else gain for index, gain in enumerate(gains)]


def cut(gains: Gains) -> int:
    return cut_at_largest([gain.value for gain in gains])


def margin(gains: Gains) -> float | None:
    """The largest gain less the second, in standard errors of the difference as if the two were independent.

    None where the gains have no error.
    """
    known = [(gain.value, gain.error) for gain in gains if gain.value is not None]
    (largest, error), (second, other) = sorted(known, key=lambda one: one[0], reverse=True)[:2]
    return None if error is None or other is None else (largest - second) / math.hypot(error, other)


def overlap(cuts: Sequence[int]) -> float:
    """The mean Jaccard overlap of two frozen sets. They are bottoms, and the smaller lies within the larger."""
    return mean(min(pair) / max(pair) for pair in combinations(cuts, 2))


def stability(samples: Sequence[Gains]) -> Stability:
    """What gains measured on several samples choose."""
    cuts = tuple(map(cut, samples))
    counts = Counter(cuts)
    modal = min(counts, key=lambda one: (-counts[one], one))
    margins = [found for gains in samples if (found := margin(gains)) is not None]
    several = len(cuts) > 1
    return Stability(
        cuts,
        modal,
        counts[modal] / len(cuts) if several else None,
        overlap(cuts) if several else None,
        min(margins, default=None),
    )


def stabilities(case: Case) -> dict[str, Stability]:
    """Reading -> what the samples of a case choose by it."""
    samples = [readings(probe) for probe in case.probes]
    return {name: stability([sample[name] for sample in samples]) for name in samples[0]}


def measure(model: str, task: str, sizes: Sequence[int], samples: int, tokens: Tokens, log: Console) -> Iterator[Case]:
    """The cases of a model and a task, the smallest first; the first that takes all rows is the last."""
    for size in sorted(sizes):
        probes: list[Probe] = []
        for seed in range(1, samples + 1):
            probe = probe_model(model, task, rows=size, tokens=tokens, max_length=LENGTH, seed=seed, dtype=DTYPE)
            probes.append(probe)
            log.print(f"{model} on {task}: sample {seed} of {probe.rows} rows")
            if probe.rows < size:
                break
        whole = probe.rows < size
        yield Case(model, task, tuple(probes), whole)
        if whole:
            return


def without_labels(case: Case, tokens: Tokens) -> Probe | None:
    """The first probe of a case with its labels shuffled; None where no signal reads them."""
    probe = case.probes[0]
    if "vds" not in probe.signals:
        return None
    task = load_task(case.task, TaskOptions(max_train_rows=case.rows, seed=1))
    with quiet_libraries():
        model = load_model(case.model, task, seed=1, dtype=DTYPE)
        tokenizer = prepare_tokenizer(load_tokenizer(case.model), model)
        rows = shuffled(encode(task, "train", tokenizer, LENGTH, model_kind(model.config)).rows, tokens)
        return replace(probe, signals=measure_blocks(model, rows, Collator(tokenizer), signals=["vds"], tokens=tokens))


def shuffled(rows: Sequence[Mapping[str, Any]], tokens: Tokens) -> list[dict[str, Any]]:
    """The rows with the labels that are read dealt anew among them; what the model reads is as it was."""
    dealt = [{**row, "labels": list(row["labels"])} for row in rows]
    places = []
    for row in dealt:
        labelled = [index for index, label in enumerate(row["labels"]) if label != IGNORED]
        places += [(row["labels"], index) for index in (labelled[:1] if tokens == "first" else labelled)]
    labels = [own[index] for own, index in places]
    random.Random(0).shuffle(labels)
    for (own, index), label in zip(places, labels, strict=True):
        own[index] = label
    return dealt


def profile(probe: Probe, deviation: str, control: Probe | None) -> Table:
    """The deviation and both gains of every block on one sample, and the deviation of its control."""
    table = Table("block", deviation, "gain", "log gain")
    columns = [probe.signals[deviation], probe.gains("difference", deviation), probe.gains("log", deviation)]
    if control is not None and deviation in control.signals:
        table.add_column("labels shuffled")
        columns.append(control.signals[deviation])
    for index, row in enumerate(zip(*columns, strict=True)):
        table.add_row(str(index), *map(measured, row))
    return table


def stability_table(model: str, cases: Sequence[Case]) -> Table:
    """What every reading chooses, for each task and sample size."""
    table = Table("task", "rows", "reading", "cuts", "modal", "agree", "Jaccard", "margin", title=model)
    for case in cases:
        rows = f"{case.rows} (all)" if case.whole else str(case.rows)
        for name, found in stabilities(case).items():
            agreed = (share(found.agreement), share(found.jaccard))
            table.add_row(case.task, rows, name, tally(found.cuts), str(found.modal), *agreed, share(found.margin, 1))
            rows = ""
        table.add_section()
    return table


def task_table(largest: Sequence[Case]) -> Table:
    """Does a reading tell tasks apart? The modal cut on each, and how alike their gains are."""
    tasks = list(dict.fromkeys(case.task for case in largest))
    table = Table("model", "reading", *tasks, "gains correlate", title="modal cut by task, largest samples")
    for model in dict.fromkeys(case.model for case in largest):
        own = {case.task: case for case in largest if case.model == model}
        found = {task: stabilities(case) for task, case in own.items()}
        gains = {task: readings(case.probes[0]) for task, case in own.items()}
        for name in dict.fromkeys(name for by_name in found.values() for name in by_name):
            cuts = [str(found[task][name].modal) if name in found.get(task, {}) else "–" for task in tasks]
            table.add_row(model.rpartition("/")[2], name, *cuts, share(alike(name, gains)))
        table.add_section()
    return table


def alike(name: str, gains: Mapping[str, Mapping[str, Gains]]) -> float | None:
    """The mean correlation over blocks between the gains of two tasks; None where one task has this reading."""
    lists = [[one.value for one in of[name] if one.value is not None] for of in gains.values() if name in of]
    return mean(correlation(*pair) for pair in combinations(lists, 2)) if len(lists) > 1 else None


def tally(cuts: Sequence[int]) -> str:
    """`2 2 2 2 4` as `4 x 2, 1 x 4`, the most frequent first."""
    return ", ".join(f"{count} x {one}" for one, count in Counter(cuts).most_common())


def share(value: float | None, decimals: int = 2) -> str:
    return "–" if value is None else f"{value:.{decimals}f}"


def measured(one: Measurement) -> str:
    return "–" if one.value is None else f"{one.value:.4g} ± {one.error or 0:.1g}"


def document(case: Case) -> dict[str, Any]:
    return {
        "model": case.model,
        "task": case.task,
        "rows": case.rows,
        "whole": case.whole,
        "stability": {name: asdict(found) for name, found in stabilities(case).items()},
        "probes": [probe.document() for probe in case.probes],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--tokens", choices=["first", "all"], default="first", help="as in a probe")
    parser.add_argument("--out", type=Path, default=Path("runs/cut-stability.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases: list[Case] = []
    refused: list[Refused] = []
    for model in options.models:
        for task in options.tasks:
            try:
                cases += measure(model, task, options.rows, options.samples, options.tokens, Console(stderr=True))
            except UserError as error:
                refused.append(Refused(model, task, str(error)))
    largest = list({(case.model, case.task): case for case in cases}.values())
    controls = {case: control for case in largest if (control := without_labels(case, options.tokens)) is not None}
    show(cases, largest, controls, refused)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    found = {
        "versions": versions(),
        "tokens": options.tokens,
        "cases": [*map(document, cases)],
        "labels_shuffled": [control.document() for control in controls.values()],
        "refused": [*map(asdict, refused)],
    }
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(f"written: {options.out}")


def show(
    cases: Sequence[Case], largest: Sequence[Case], controls: Mapping[Case, Probe], refused: Sequence[Refused]
) -> None:
    console = Console(width=WIDTH)
    for case in largest:
        probe, control = case.probes[0], controls.get(case)
        for name in (name for name in DEVIATIONS if name in probe.signals):
            console.print(f"\n{case.model} on {case.task}, seed 1, {case.rows} rows, read at {probe.read}")
            console.print(profile(probe, name, control))
            console.print(f"cut: {probe.cut('difference', name)}, by log gain {probe.cut('log', name)}")
            if control is not None and name in control.signals:
                console.print(f"cut with the labels shuffled: {control.cut('difference', name)}")
    for model in dict.fromkeys(case.model for case in cases):
        console.print(stability_table(model, [case for case in cases if case.model == model]))
    console.print(task_table(largest))
    for one in refused:
        console.print(f"not measured: {one.model} on {one.task}: {one.reason}")


if __name__ == "__main__":
    main()
