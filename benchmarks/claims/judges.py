"""How the claims are judged: each function reads the records of a study and gives a finding."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from claims.results import (
    APART,
    RESULTS,
    Finding,
    ahead,
    both,
    judge,
    lower,
    measured,
    metric,
    points,
    ratio,
    read,
)

STEP, LOSS = measured("cpu_seconds_per_step"), metric("loss")
CUTS = ("002-cost-quality", "002-cost-quality-base16")


def score_above(study: str, better: str, worse: Sequence[str]) -> Finding:
    """Whether a setting has a higher ranking score than others."""
    found = dict(points(study))
    if not {better, *worse} <= found.keys():
        return Finding("not run yet")
    others = {label: found[label] for label in worse}
    holds = all(found[better] >= other for other in others.values())
    line = f"ranking score {found[better]:.1f}, " + ", ".join(f"{label} {score:.1f}" for label, score in others.items())
    seeds = max(len(cell.runs) for cell in read(study).cells)
    return Finding("holds" if holds else "does not hold", line, seeds)


def best_of_all(study: str, ours: str, others: Iterable[str], names: Iterable[str]) -> Finding:
    """Whether a label leads all others in every metric."""
    found = [ahead(study, ours, other, metric(name)) for name in names for other in others]
    named = [f"{name}, over {other}: {one.line}" for (name, other), one in zip(
        ((name, other) for name in names for other in others), found, strict=True) if one.line]  # fmt: skip
    joined = both(*found)
    return Finding(joined.verdict, "; ".join(named), joined.seeds)


def leads(study: str, ours: str, others: Iterable[str]) -> Finding:
    """Whether a label leads others in held-out loss."""
    return both(*(lower(study, ours, other) for other in others))


def of_cuts(better: str, worse: str, least: float = 0.0) -> Finding:
    """Whether a label is ahead of another on the encoder (accuracy) and on the decoder (held-out loss)."""
    encoder, decoder = CUTS
    return both(ahead(encoder, better, worse, least=least), lower(decoder, better, worse, least))


def levels_off(study: str, label: str, lengths: tuple[int, ...]) -> Finding:
    """Whether the quality no longer grows after the last but one length."""
    found = read(study)
    means = []
    for length in lengths:
        cells = [cell for cell in found.cells if cell.label == f"{label}-{length}"]
        if not cells:
            return Finding("not run yet")
        means.append(cells[0].mean(LOSS))
    grown, last = means[-2] - means[0], means[-1] - means[-2]
    line = "held-out loss " + ", ".join(f"{-mean:.3f} ({length})" for mean, length in zip(means, lengths, strict=True))
    return Finding("holds" if abs(last) < 0.1 * abs(grown) else "does not hold", line, 1)


def faster(study: str, label: str, baseline: str, percent: float) -> Finding:
    """Whether a step costs less than the baseline's by a percentage at least."""
    return ratio(study, label, baseline, STEP, 0.0, 1 - percent / 100)


def less_lost(study: str, ours: str, theirs: str, usual: str, hard: str) -> Finding:
    """Whether one strategy loses less than another from a usual to a hard setting."""
    found = read(study)
    for model, task in found.places:
        cells = [found.at(model, task, f"{name}-{at}") for name in (ours, theirs) for at in (usual, hard)]
        if any(cell is None for cell in cells):
            continue
        means = [cell.mean(LOSS) for cell in cells if cell is not None]
        lost = means[0] - means[1], means[2] - means[3]
        line = f"held-out loss rises by {lost[0]:.3f}, that of {theirs} by {lost[1]:.3f}"
        return Finding(judge([lost[1] - lost[0]], alone=APART), line, 1)
    return Finding("not run yet")


def cached(folder: str, cost: str, most: float) -> Finding:
    """Whether a cost is at most a share of transformers.Trainer's, from the files of benchmarks/frozen_bottom.py."""
    found = {}
    for path in sorted((RESULTS / folder).glob("*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))["results"]
        found |= {result["name"]: result["shares"][cost] for result in results if cost in result["shares"]}
    if not found:
        return Finding("not run yet")
    line = ", ".join(f"{name} {share:.2f}" for name, share in found.items())
    return Finding("holds" if max(found.values()) <= most else "does not hold", line, 1)


def generation(folder: str, ours: Sequence[str], baseline: str, most: float) -> Finding:
    """Whether generating takes at most a share of a baseline's time, from the files of benchmarks/hybrid.py."""
    lines, shares = [], []
    for path in sorted((RESULTS / folder).glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        middle = {row["name"]: row["ratio"][1] for row in found["rows"]}
        costs = {name: middle[name] / middle[baseline] for name in ours}
        shares += costs.values()
        lines.append(f"{found['model']} " + ", ".join(f"{name} {cost:.2f}" for name, cost in costs.items()))
    if not shares:
        return Finding("not run yet")
    return Finding("holds" if max(shares) <= most else "does not hold", "; ".join(lines), 1)


def lowest(study: str, says: str, begin: str | tuple[str, ...] = "") -> Finding:
    """Whether a label has the lowest held-out loss of all that begin so."""
    means = {cell.label: cell.mean(LOSS) for cell in read(study).cells if cell.label.startswith(begin)}
    if len(means) < 2:
        return Finding("not run yet")
    best, others = max(means, key=means.__getitem__), [mean for label, mean in means.items() if label != says]
    line = f"best {best}; held-out loss " + ", ".join(f"{-mean:.3f} ({label})" for label, mean in means.items())
    return Finding(judge([means[says] - max(others)], alone=APART) if says in means else "not run yet", line, 1)
