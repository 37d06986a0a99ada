"""How the training losses of a study's runs fall, and how smoothly: from its records, nothing is trained.

The loss at a step is the mean over seeds of what was logged around it (a tenth of the run). Roughness is the standard
deviation of second differences of the logged losses over the square root of 6, which for a curve that is noise around
a straight line is the noise. All strategies of a seed see the same batches, so their noise has that in common; the
last column is the roughness as a ratio to the first strategy's with the same seed, mean and range.

    python benchmarks/convergence.py runs/hybrid-webnlg [more studies]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)


def curves(study: Path) -> dict[str, dict[int, list[float]]]:
    """Strategy (its row) -> seed -> the training losses as logged."""
    found: dict[str, dict[int, list[float]]] = defaultdict(dict)
    for path in sorted(study.glob("*/*/*/seed*/run.json")):
        record = json.loads(path.read_text())
        if record.get("status", "finished") != "finished" or not record["metrics"].get("history"):
            continue
        losses = [entry["loss"] for entry in record["metrics"]["history"] if "loss" in entry]
        found[path.parent.parent.name][record["seed"]] = losses
    return dict(found)


def around(losses: list[float], share: float) -> float:
    """The mean of a tenth of the losses that ends at `share` of the run."""
    end = max(1, round(share * len(losses)))
    return statistics.fmean(losses[max(0, end - len(losses) // 10) : end])


def roughness(losses: list[float]) -> float:
    seconds = [a - 2 * b + c for a, b, c in zip(losses, losses[1:], losses[2:], strict=False)]
    return statistics.pstdev(seconds) / 6**0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=Path, nargs="+")
    for study in parser.parse_args().studies:
        found = curves(study)
        if not found:
            raise SystemExit(f"{study}: holds no finished runs of a study")
        first = next(iter(found.values()))
        table = Table(
            "strategy", "seeds", *(f"{share:.0%}" for share in SHARES), "roughness", "ratio", title=study.name
        )
        for name, by_seed in found.items():
            means = [statistics.fmean(around(losses, share) for losses in by_seed.values()) for share in SHARES]
            rough = {seed: roughness(losses) for seed, losses in by_seed.items()}
            ratios = [value / roughness(first[seed]) for seed, value in rough.items() if seed in first]
            spread = f"{statistics.fmean(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})" if ratios else ""
            shown = [f"{mean:.3f}" for mean in means]
            table.add_row(name, str(len(by_seed)), *shown, f"{statistics.fmean(rough.values()):.3f}", spread)
        Console().print(table)


if __name__ == "__main__":
    main()
