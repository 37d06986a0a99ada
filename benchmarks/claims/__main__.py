"""Write docs/claims.md from the records under docs/results, or keep the records of a study there.

PYTHONPATH=benchmarks python -m claims                      # writes docs/claims.md
PYTHONPATH=benchmarks python -m claims keep runs/000-steps 000-table-1-steps
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter
from pathlib import Path

from claims.advice import ADVICE
from claims.claims import CLAIMS, Claim
from claims.figures import draw
from claims.records import RESULTS, ROOT, read
from claims.results import Finding, points

PAGE = ROOT / "docs" / "claims.md"
PAPERS = {
    "000": "hierarchical freezing",
    "001": "selective layer freezing",
    "002": "semantic-aware freezing",
    "003": "semantic-aware freezing, the longer paper",
    "004": "hybrid tuning",
    "own": "",
}
TOP = """# Claims: what the papers say, and what was measured here

## What to do

Measured on a sentence encoder of 22 million parameters and a decoder of 14 million; where the evidence does not hold on
its own, the line says so.
"""
HEAD = """## How claims are judged

Each row is a claim, and each verdict is computed from the records in docs/results by `PYTHONPATH=benchmarks python -m
claims`. Differences are means ± standard deviations over seeds, paired by seed; larger is better (losses have the
other sign). A claim *holds* where the mean difference is right in every task, and *does not hold* where it is wrong
in one, by more than half of its interval of 95% (Student's t; a wider one where a claim has several comparisons). In
between it *cannot be told*. With one seed a difference of 0.03 in held-out loss counts, and none in accuracy. A task
in which both sides are at the level of guessing (not better than the most common class by two standard errors) is
shown and not judged.

Equal time: a plan and its rate are chosen with seed 42 and judged with the other seeds. Most plans have three rates,
the others one; the rows say so. A plan makes 3.3 passes over the rows at most, so that one whose steps cost little
does not use all of its time; the rows say that too.

A study goes on where it stopped: the commands stand below. `equal-time` stands for the studies
recipes/equal-time-NAME.yaml.
"""
OTHERS = """- 004-inference: `PYTHONPATH=benchmarks python benchmarks/hybrid.py generate --model MODEL --out
  docs/results/004-inference/NAME.json`
- own-frozen-bottom: `PYTHONPATH=benchmarks python benchmarks/frozen_bottom.py --memory --out
  docs/results/own-frozen-bottom/NAME.json`
"""


def keep(runs: Path, name: str) -> int:
    """Copy the records of a study, without weights and without places of this machine; gives their number."""
    if not (runs / "study.yaml").is_file():
        raise SystemExit(f"{runs}: not the folder of a study: there is no study.yaml")
    count = 0
    for path in sorted(runs.glob("*/**/run.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["status"] != "finished":
            continue
        place = RESULTS / name / path.parent.relative_to(runs)
        record["data"]["source"] = Path(record["data"]["source"]).name
        record["config"]["out"] = str(place.relative_to(ROOT))
        if record["config"]["strategy"].endswith(".yaml"):
            record["config"]["strategy"] = f"recipes/plans/{Path(record['config']['strategy']).name}"
        record["places"] = {}
        record["command"] = ""  # it names places of the machine; the recipe is the command
        place.mkdir(parents=True, exist_ok=True)
        (place / "run.json").write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
        count += 1
    (RESULTS / name / "study.yaml").write_bytes((runs / "study.yaml").read_bytes())
    return count


def page() -> str:
    """The page."""
    found = [(claim, claim.judge()) for claim in CLAIMS]
    counts = Counter(finding.verdict for _, finding in found)
    told = ", ".join(f"{count} {_PLURAL.get(verdict, verdict)}" for verdict, count in counts.most_common())
    parts = [*_advice(), HEAD, f"Of {len(found)} claims: {told}.\n"]
    for paper, title in PAPERS.items():
        rows = [row for claim, finding in found if claim.paper == paper and (row := _row(claim, finding))]
        parts += [
            f"## Paper {paper}: {title}\n" if title else "## Of this project\n",
            "| claim | study | seeds | measured | verdict |",
            "|---|---|--:|---|---|",
            *rows,
            "",
        ]
    if scores := points("001-table-minilm"):
        cells = [cell for cell in read("001-table-minilm").cells if cell.label == "all"]
        tasks = ", ".join(f"{cell.task} {len(cell.runs)}" for cell in cells)
        parts += [f"## Ranking score of paper 001's settings (001-table-minilm; seeds: {tasks})\n"]
        parts += ["| setting | score |", "|---|--:|"]
        parts += [f"| {label} | {statistics.mean(own.values()):.2f} |" for label, own in scores.items()] + [""]
    if figures := draw():
        parts += ["## Figures\n"]
        parts += [f"![{caption}](figures/{file})\n\n{caption}\n" for file, caption in figures]
    parts += ["## Which runs are left\n", *_left(), "", "Other measurements:\n", OTHERS]
    return "\n".join(parts)


_PLURAL = {"does not hold": "do not hold", "holds": "hold"}
_DOUBT = {
    "cannot be told": " **Not clear in every task.**",
    "does not hold": " **Not so in one task at least.**",
}


def _advice() -> list[str]:
    """The lines of advice, each with its evidence."""
    lines = [TOP]
    for number, advice in enumerate(ADVICE, 1):
        found = advice.evidence()
        where = ", ".join([advice.study, *([_seeds(found)] if found.seeds else [])])
        shown = f"{found.line} ({where})" if found.line else "not measured yet"
        lines.append(f"{number}. {advice.says} *Measured:* {shown}.{_DOUBT.get(found.verdict, '')}")
    return [*lines, ""]


def _seeds(finding: Finding) -> str:
    """How many seeds a finding has, as text; from the fewest to the most."""
    few, many = min(finding.seeds), max(finding.seeds)
    return f"{few} seed{'s' * (few > 1)}" if few == many else f"{few} to {many} seeds"


def _row(claim: Claim, finding: Finding) -> str:
    notes = [finding.part] if finding.verdict != "not run yet" and finding.part else []
    notes += [claim.scale] if claim.scale and finding.verdict not in ("holds", "not run yet") else []
    note = f" ({'; '.join(notes)})" if notes else ""
    line = finding.line.replace("|", "\\|") or "–"
    seeds = _seeds(finding).split(" seed")[0] if finding.seeds else "–"
    return f"| {claim.says} | {claim.study} | {seeds} | {line} | **{finding.verdict}**{note} |"


def _left() -> list[str]:
    """A line for each recipe with runs that are not recorded.

    Raises:
        SystemExit: a record has other settings than its recipe.
    """
    from equal_time import WORKS

    from frostline.core.errors import UserError
    from frostline.study import cells, read_study, recorded

    lines = []
    recipes = ROOT / "recipes"
    for path in [*sorted((recipes / "papers").glob("*.yaml")), *sorted(recipes.glob("equal-time-*.yaml"))]:
        grid = cells(read_study(path), RESULTS / path.stem)
        try:
            done = sum(recorded(cell) is not None for cell in grid)
        except UserError as error:
            raise SystemExit(str(error)) from None
        if done < len(grid):
            command = f"`frostline study {path.relative_to(ROOT)} --out docs/results/{path.stem}`"
            lines.append(f"- {path.stem}: {len(grid) - done} of {len(grid)} runs: {command}")
    lines += [
        f"- equal-time-{name}: its study is written by `python benchmarks/equal_time.py recipe {name}`"
        for name in WORKS
        if not (recipes / f"equal-time-{name}.yaml").exists()
    ]
    return lines or ["None."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what")
    keeps = commands.add_parser("keep")
    keeps.add_argument("runs", type=Path)
    keeps.add_argument("name")
    given = parser.parse_args()
    if given.what == "keep":
        print(f"{keep(given.runs, given.name)} records kept in {(RESULTS / given.name).relative_to(ROOT)}")
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
