"""Do signals order the blocks as training does? Each block's worth, found by training it alone, beside each signal.

The worth of a block is the fall of the held-out loss when only that block and the head train, for a fixed number of
steps. Plans of one pair and seed see the same rows in the same order, and begin with the same head. The learning rate
of a pair is the best of three for its middle block, with a seed of its own. The worth of a cut is that of all blocks
above it, in as many steps as fit in the predicted time of the shortest plan's (with the frozen bottom cached).

    python benchmarks/signals.py run docs/results/signals       # measures and trains; what is done stays done
    python benchmarks/signals.py table docs/results/signals     # rank correlations, in Markdown
    python benchmarks/signals.py cuts docs/results/signals      # which cut each signal would choose, and what it gains
    python benchmarks/signals.py page docs/results/signals      # puts both tables into docs/signals.md

A finding is one small JSON. `run` can be stopped at any time: the smaller pairs and the first seed come first, then the
second seed, then the cuts. Models and data are looked for under $FROSTLINE_MODELS and $FROSTLINE_DATA.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import frostline as fl
from frostline.anatomy import find_anatomy
from frostline.checkpoints import load_tokenizer, quiet_libraries
from frostline.core.files import write_json
from frostline.core.labels import IGNORED
from frostline.plan import Full
from frostline.run import load_model
from frostline.run._device import autocast
from frostline.signals import SIGNALS, choose_signals, measure
from frostline.tasks import Collator, TaskOptions, encode, load_task, model_kind, prepare_tokenizer

SEEDS = (0, 1)
RATE_SEED = 7
PAGE = Path(__file__).resolve().parents[1] / "docs" / "signals.md"
WARM_UP = 5
SAMPLE = 64
"""Rows that signals are measured on."""
CUTS = (0.0, 0.25, 0.5, 0.75)
"""The share of the blocks that is frozen."""
USEFUL = 0.5
"""The rank correlation from which an order is of use: it explains a quarter of the variance of the ranks."""
T = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
"""Degrees of freedom -> Student's t for an interval of 95%."""
LEFT_OUT = ("vds_log_gain", "shift_log_gain")
"""Signals that the tables leave out: nearly the order of the difference gains."""


@dataclass(frozen=True)
class Pair:
    """A model and a task."""

    model: str
    task: str
    batch: int
    max_length: int
    steps: int
    eval_rows: int
    rates: tuple[float, float, float]

    @property
    def name(self) -> str:
        return f"{self.model.rpartition('/')[2]}/{self.task}"


def _encoder(task: str) -> Pair:
    return Pair("sentence-transformers/all-MiniLM-L6-v2", task, 32, 64, 40, 512, (2e-4, 5e-4, 1e-3))


def _decoder(task: str) -> Pair:
    return Pair("frostline/base16", task, 8, 128, 30, 160, (1e-3, 2e-3, 4e-3))


PAIRS = (_encoder("rte"), _encoder("qnli"), _encoder("mnli"), _decoder("webnlg"), _decoder("math-mix"))


class Trial:
    """Trains plans of one pair with one seed."""

    def __init__(self, pair: Pair, seed: int) -> None:
        self.pair, self.seed = pair, seed
        options = TaskOptions(max_eval_rows=pair.eval_rows, seed=seed)
        self.task = load_task(pair.task, options)
        with quiet_libraries():
            self.tokenizer = prepare_tokenizer(load_tokenizer(pair.model))
        model = self.model()
        kind = model_kind(model.config)
        self.rows = encode(self.task, "train", self.tokenizer, pair.max_length, kind).rows
        few = encode(self.task, "eval", self.tokenizer, pair.max_length, kind).rows
        self.held_out = sorted((row for row in few if labelled(row)), key=lambda row: len(row["input_ids"]))
        self.blocks = len(find_anatomy(model).blocks)
        self.collate = Collator(self.tokenizer)

    def model(self, dtype: str = "auto") -> Any:
        with quiet_libraries():
            model = load_model(self.pair.model, self.task, seed=self.seed, dtype=dtype)
            prepare_tokenizer(self.tokenizer, model)
        return model

    def batches(self) -> Iterator[dict[str, Any]]:
        """Batches of rows in an order that the seed draws, epoch after epoch."""
        draw = torch.Generator().manual_seed(self.seed)
        while True:
            order = torch.randperm(len(self.rows), generator=draw).tolist()
            for at in range(0, len(order) - self.pair.batch + 1, self.pair.batch):
                yield self._batch([self.rows[i] for i in order[at : at + self.pair.batch]])

    def _batch(self, rows: Sequence[Any]) -> dict[str, Any]:
        return {name: value for name, value in self.collate(rows).items() if isinstance(value, torch.Tensor)}

    @torch.no_grad()
    def loss(self, model: Any) -> float:
        """The mean loss of the held-out rows, each row's own mean over its labels."""
        model.eval()
        total = 0.0
        for at in range(0, len(self.held_out), 32):
            rows = self.held_out[at : at + 32]
            with autocast(True):
                logits, labels = model(**(batch := self._batch(rows))).logits.float(), batch["labels"]
            if labels.dim() == 1:
                total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
            else:
                losses = torch.nn.functional.cross_entropy(
                    logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=IGNORED
                )
                total += float((losses.sum(1) / (labels[:, 1:] != IGNORED).sum(1)).sum())
        return round(total / len(self.held_out), 6)

    @cached_property
    def before(self) -> float:
        return self.loss(self.model())

    def train(self, trained: Sequence[int], rate: float, steps: int) -> dict[str, Any]:
        """Train some blocks and the head, in bf16 autocast, at a rate that rises over a few steps and then stays."""
        model = self.model()
        fl.apply(plan_of(model, trained), model)
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=rate, weight_decay=0.0)
        begun = time.process_time()
        torch.manual_seed(self.seed)
        model.train()
        for step, batch in enumerate(islice(self.batches(), steps)):
            optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / WARM_UP)
            with autocast(True):
                loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        seconds = time.process_time() - begun
        found = {"seed": self.seed, "blocks": list(trained), "rate": rate, "steps": steps, "before": self.before}
        return found | {"after": self.loss(model), "cpu_seconds": round(seconds, 1)}

    def signals(self) -> dict[str, Any]:
        """Every signal that the model has, on the first rows that the seed draws, in float32."""
        model = self.model("float32")
        draw = torch.Generator().manual_seed(self.seed)
        sample = [self.rows[i] for i in torch.randperm(len(self.rows), generator=draw)[:SAMPLE].tolist()]
        names = [name for name in SIGNALS if self._has(model, name, sample)]
        begun = time.process_time()
        with quiet_libraries():
            measured = measure(model, sample, self.collate, signals=names)
        values = {
            name: [None if one.value is None or math.isinf(one.value) else float(f"{one.value:.6g}") for one in found]
            for name, found in measured.items()
            if "." not in name
        }
        seconds = round(time.process_time() - begun, 1)
        return {"seed": self.seed, "rows": SAMPLE, "cpu_seconds": seconds, "signals": values}

    @staticmethod
    def _has(model: Any, name: str, sample: Sequence[Any]) -> bool:
        try:
            choose_signals(model, find_anatomy(model), sample, [name])
        except fl.FrostlineError:
            return False
        return True


def plan_of(model: Any, trained: Sequence[int]) -> fl.Plan:
    """Some blocks and the head train; a head that is tied to the embeddings is untied."""
    plan = fl.make_plan(model, "head")
    blocks = tuple(Full() if block in trained else mode for block, mode in enumerate(plan.blocks))
    return plan.model_copy(update={"blocks": blocks})


def labelled(row: Mapping[str, Any]) -> bool:
    return isinstance(row["labels"], int) or any(label != IGNORED for label in row["labels"][1:])


def keep(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The finding at `path`; made and written where there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        print(path, time.strftime("%H:%M:%S"), flush=True)
        write_json(path, make())
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def rate_of(pair: Pair, folder: Path) -> float:
    """The best of the pair's rates for its middle block."""

    def losses() -> dict[str, Any]:
        trial = Trial(pair, RATE_SEED)
        middle = [trial.blocks // 2]
        tried = {f"{rate:g}": trial.train(middle, rate, pair.steps)["after"] for rate in pair.rates}
        return {"seed": RATE_SEED, "blocks": middle, "steps": pair.steps, "before": trial.before, "after": tried}

    after = keep(folder / "rates.json", losses)["after"]
    return float(min(after, key=after.get))


def run(pairs: Sequence[Pair], out: Path) -> None:
    for seed in SEEDS:
        for pair in pairs:
            folder = out / pair.name
            rate, trial = rate_of(pair, folder), Trial(pair, seed)
            keep(folder / f"signals-seed{seed}.json", trial.signals)
            plans = {"head": [], **{f"block{block}": [block] for block in range(trial.blocks)}}
            for name, trained in plans.items():
                keep(folder / f"{name}-seed{seed}.json", lambda: trial.train(trained, rate, pair.steps))  # noqa: B023
    for pair in pairs:
        folder, trial = out / pair.name, Trial(pair, SEEDS[0])
        for cut in sorted({round(share * trial.blocks) for share in CUTS}, reverse=True):
            trained, steps = list(range(cut, trial.blocks)), steps_of(pair, trial, cut)
            path = folder / f"cut{cut}-seed{SEEDS[0]}.json"
            keep(path, lambda: trial.train(trained, rate_of(pair, folder), steps))  # noqa: B023


def steps_of(pair: Pair, trial: Trial, cut: int) -> int:
    """As many steps as fit in the time of `pair.steps` steps of all blocks (methods.md 7, the cached limit)."""
    anatomy = find_anatomy(trial.model())
    width = sum(linear.in_features * linear.out_features for linear in anatomy.head_linears)
    tokens = pair.max_length if anatomy.has_lm_head else 1
    head = width * tokens / (anatomy.blocks[0].parameters * pair.max_length)
    return round(pair.steps * (trial.blocks + head) / (trial.blocks - cut + head))


def ranks(values: Sequence[float]) -> list[float]:
    """1 for the smallest; the mean rank for equal values."""
    return [
        sum(other < value for other in values) + (1 + sum(other == value for other in values)) / 2 for value in values
    ]


def spearman(one: Sequence[float | None], other: Sequence[float | None]) -> float | None:
    """Spearman's rank correlation over the blocks that both know; None where one of them is constant."""
    both = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    if len(both) < 3 or any(len(set(values)) == 1 for values in zip(*both, strict=True)):
        return None
    first, second = zip(*both, strict=True)
    return statistics.correlation(ranks(first), ranks(second))


@dataclass(frozen=True)
class Cell:
    """What was found for a pair with one seed: each block's worth, each signal's values."""

    worth: tuple[float, ...]
    signals: Mapping[str, Sequence[float | None]]

    def correlation(self, name: str) -> float | None:
        return spearman(self.signals[name], self.worth) if name in self.signals else None


def read(out: Path, pair: str, seed: int) -> Cell | None:
    """The findings of a pair and seed; None where some are still missing."""
    path = out / pair / f"signals-seed{seed}.json"
    if not path.exists():
        return None
    signals = json.loads(path.read_text(encoding="utf-8"))["signals"]
    blocks = len(next(iter(signals.values())))
    files = [out / pair / f"block{block}-seed{seed}.json" for block in range(blocks)]
    if not all(file.exists() for file in files):
        return None
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    shown = {name: values for name, values in signals.items() if name not in LEFT_OUT}
    return Cell(tuple(one["before"] - one["after"] for one in found), {"depth": range(blocks), **shown})


def cells_of(out: Path) -> dict[str, dict[int, Cell]]:
    """Pair -> seed -> what was found, of those that are complete."""
    found = {pair.name: {seed: read(out, pair.name, seed) for seed in SEEDS} for pair in PAIRS}
    whole = {name: {seed: cell for seed, cell in cells.items() if cell} for name, cells in found.items()}
    return {name: cells for name, cells in whole.items() if cells}


@dataclass(frozen=True)
class Judged:
    """A signal's rank correlation with the worth of blocks.

    Attributes:
        pairs: pair -> one correlation for each seed.
        mean: over the pairs, of each pair's mean over its seeds.
        spread: the standard deviation over pairs and seeds; None for a single number.
        interval: of 95% for the mean over tasks (Student's t over the pairs); None for one pair.
    """

    pairs: Mapping[str, tuple[float, ...]]
    mean: float
    spread: float | None
    interval: tuple[float, float] | None

    @property
    def verdict(self) -> str:
        """helps: the interval leaves out 0, the mean is useful, and two models or more have its sign. does not: nothing
        in the interval is useful. Else it cannot be told."""
        if self.interval is None:
            return "cannot be told"
        low, high = self.interval
        if max(-low, high) < USEFUL:
            return "does not"
        models: dict[str, list[float]] = {}
        for name, found in self.pairs.items():
            models.setdefault(name.partition("/")[0], []).extend(found)
        agree = len(models) > 1 and len({statistics.mean(found) > 0 for found in models.values()}) == 1
        if low * high > 0 and abs(self.mean) >= USEFUL and agree:
            return "helps" if self.mean > 0 else "helps, reversed"
        return "cannot be told"


def judge(pairs: Mapping[str, tuple[float, ...]]) -> Judged:
    """Judge a signal by pair -> its correlation with each seed."""
    means = [statistics.mean(found) for found in pairs.values()]
    every = [one for found in pairs.values() for one in found]
    mean, interval = statistics.mean(means), None
    if len(means) > 1:
        half = T[len(means) - 1] * statistics.stdev(means) / math.sqrt(len(means))
        interval = (max(-1.0, mean - half), min(1.0, mean + half))
    return Judged(pairs, mean, statistics.stdev(every) if len(every) > 1 else None, interval)


def judged(cells: Mapping[str, Mapping[int, Cell]]) -> dict[str, Judged]:
    """Signal -> its judgement, the largest |mean| first; only where some pair has it."""
    names = dict.fromkeys(name for seeds in cells.values() for cell in seeds.values() for name in cell.signals)
    found = {}
    for name in names:
        by_seed = {pair: [cell.correlation(name) for cell in seeds.values()] for pair, seeds in cells.items()}
        known = {pair: tuple(one for one in values if one is not None) for pair, values in by_seed.items()}
        if kept := {pair: values for pair, values in known.items() if values}:
            found[name] = judge(kept)
    return dict(sorted(found.items(), key=lambda item: -abs(item[1].mean)))


def table(out: Path) -> str:
    """Each signal's rank correlation with the worth of blocks, in Markdown. A cell has one number for each seed."""
    cells = cells_of(out)
    lines = [["signal", *cells, "mean", "spread", "interval (95%)", "order of blocks"]]
    for name, one in judged(cells).items():
        interval = "–" if one.interval is None else f"{one.interval[0]:.2f} to {one.interval[1]:.2f}"
        found = [", ".join(f"{value:.2f}" for value in one.pairs.get(pair, ())) or "–" for pair in cells]
        spread = "–" if one.spread is None else f"{one.spread:.2f}"
        lines.append([f"`{name}`", *found, f"{one.mean:.2f}", spread, interval, one.verdict])
    again = []
    for seeds in cells.values():
        same = spearman(*(cell.worth for cell in seeds.values())) if len(seeds) == 2 else None
        again.append("–" if same is None else f"{same:.2f}")
    lines.append(["the worth with the other seed", *again, "", "", "", ""])
    worths = []
    for seeds in cells.values():
        mean = [statistics.mean(values) for values in zip(*(cell.worth for cell in seeds.values()), strict=True)]
        worths.append(
            f"{min(mean):.3f} (block {mean.index(min(mean))}) to {max(mean):.3f} (block {mean.index(max(mean))})"
        )
    lines.append(["worth of a block, mean of the seeds", *worths, "", "", "", ""])
    return markdown(lines)


def cuts(out: Path) -> str:
    """For each pair the gain of each cut, and the cut that each signal would choose, in Markdown.

    A signal chooses the cut whose trained blocks have the largest sum of it in the time that all cuts have: the sum
    times the number of steps [inferred]. A signal with a negative value, or without one for some block, chooses none.
    """
    cells = cells_of(out)
    lines = [["pair", "gain of each cut", "best", "cut chosen by"]]
    for pair, seeds in cells.items():
        files = sorted((out / pair).glob(f"cut*-seed{SEEDS[0]}.json"))
        found = {min(one["blocks"]): one for one in (json.loads(file.read_text(encoding="utf-8")) for file in files)}
        if SEEDS[0] not in seeds or len(found) < 2:
            continue
        gains = {cut: one["before"] - one["after"] for cut, one in sorted(found.items())}
        chosen: dict[int, list[str]] = {}
        for name, values in {"worth": seeds[SEEDS[0]].worth, **seeds[SEEDS[0]].signals}.items():
            if name != "depth" and all(value is not None and value > 0 for value in values):
                sums = {cut: found[cut]["steps"] * sum(value or 0.0 for value in values[cut:]) for cut in gains}
                chosen.setdefault(max(sums, key=lambda cut: sums[cut]), []).append(f"`{name}`")
        best = max(gains, key=lambda cut: gains[cut])
        lines.append(
            [
                pair,
                ", ".join(f"{cut}: {gain:.3f} ({found[cut]['steps']} steps)" for cut, gain in gains.items()),
                str(best),
                "; ".join(f"{cut}: {', '.join(names)}" for cut, names in sorted(chosen.items())),
            ]
        )
    return markdown(lines) if len(lines) > 1 else "No cut was trained yet."


def page(out: Path, text: str) -> str:
    """`text` with both tables anew, each between `<!-- NAME -->` and `<!-- end of NAME -->`."""
    for name, made in (("table", table(out)), ("cuts", cuts(out))):
        before, start, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- end of {name} -->\n")
        if not (start and end):
            raise SystemExit(
                f"the page has no place for the {name}: use lines <!-- {name} --> and <!-- end of {name} -->"
            )
        text = f"{before}{start}{made}\n{end}{after}"
    return text


def markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = lines
    body = [head, ["---", *["--:"] * (len(head) - 1)], *rest]
    return "\n".join(f"| {' | '.join(line)} |" for line in body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table", "cuts", "page"))
    parser.add_argument("out", type=Path)
    names = [pair.name for pair in PAIRS]
    parser.add_argument("--pairs", nargs="*", default=names, choices=names)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "run":
        run([pair for pair in PAIRS if pair.name in given.pairs], given.out)
    elif given.what == "page":
        PAGE.write_text(page(given.out, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print((table if given.what == "table" else cuts)(given.out))


if __name__ == "__main__":
    main()
