"""The tables of docs/signals.md."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from signals_judged.judging import cells_of, judged, spearman
from signals_judged.pairs import SEEDS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "signals.md"


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
