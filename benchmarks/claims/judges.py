"""How the claims are judged: each function reads the records of a study and gives a finding."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from claims.records import RESULTS, Value, measured, metric, read
from claims.results import APART, Finding, Verdict, ahead, both, judge, lower, of_tasks, points, ratio, spread, together

LOSS = metric("loss")
CUTS = ("002-cost-quality", "002-cost-quality-base16")


def uncached(value: Value) -> Value:
    """A number of the runs without an activation cache, which the papers do not have."""

    def found(record: dict[str, Any]) -> float | None:
        used = any(notice.startswith("activation cache on") for notice in record["notices"])
        return None if used else value(record)

    return found


STEP, MEMORY = uncached(measured("cpu_seconds_per_step")), uncached(measured("peak_memory_bytes"))


def score_above(study: str, ours: Sequence[str], worse: str) -> Finding:
    """Whether settings have a higher ranking score than another one, over seeds."""
    found = points(study)
    if not {*ours, worse} <= found.keys():
        return Finding("not run yet")
    lines, verdicts, seeds = [], list[Verdict](), []
    for label in ours:
        apart = [score - found[worse][seed] for seed, score in found[label].items() if seed in found[worse]]
        verdicts.append(judge(apart, comparisons=len(ours)))
        seeds.append(len(apart))
        lines.append(f"{label} {spread(apart)}")
    whole = read(study)
    judged = {(cell.model, cell.task) for cell in whole.cells}
    line = f"points above {worse}: {', '.join(lines)}"
    return Finding(together(verdicts), line, tuple(seeds), of_tasks(len(judged), whole.tasks))


def best_of_all(study: str, ours: str, others: Sequence[str], names: Sequence[str]) -> Finding:
    """Whether a label leads all others in every metric; one that is 0 in every run tells nothing."""
    cells = read(study).cells
    told = [name for name in names if any(any(cell.values(metric(name)).values()) for cell in cells)]
    lines, findings = [], []
    for name in told:
        found = [ahead(study, ours, other, metric(name), comparisons=len(told) * len(others)) for other in others]
        findings += found
        lines.append(f"{name} " + ", ".join(one.line.removeprefix(f"{ours} ") for one in found if one.line))
    lines += [f"{name} is 0 in every run" for name in names if name not in told] if told else []
    joined = both(*findings)
    return Finding(joined.verdict, "; ".join(lines), joined.seeds, joined.part)


def helps(label: str) -> Finding:
    """Whether a part of hierarchical freezing helps, in held-out loss and in BLEU."""
    study = "000-table-1-steps"
    bleu = ahead(study, label, "hierarchical", metric("bleu"), comparisons=2)
    loss = ahead(study, label, "hierarchical", LOSS, alone=APART, comparisons=2)
    found = both(loss, bleu)
    line = f"held-out loss: {loss.line}; BLEU: {bleu.line}" if found.line else ""
    return Finding(found.verdict, line, found.seeds, found.part)


def leads(study: str, ours: str, others: Iterable[str]) -> Finding:
    """Whether a label leads others in held-out loss."""
    return both(*(lower(study, ours, other) for other in others))


def of_cuts(better: str, worse: str, least: float = 0.0) -> Finding:
    """Whether a label is ahead of another on the encoder (accuracy) and on the decoder (held-out loss).

    The line says how many blocks the first label freezes.
    """
    encoder, decoder = CUTS
    found = both(ahead(encoder, better, worse, least=least), lower(decoder, better, worse, least))
    line = f"{found.line} ({better} freezes {blocks_frozen(better)})" if found.line else ""
    return Finding(found.verdict, line, found.seeds, found.part)


def blocks_frozen(label: str) -> str:
    """How many blocks a label freezes in the studies of cuts."""
    found = []
    for study in CUTS:
        cells = [cell for cell in read(study).cells if cell.label == label]
        plans = [record["plan"]["blocks"] for cell in cells for record in cell.runs.values()]
        counts = sorted({sum(block["mode"] == "frozen" for block in blocks) for blocks in plans})
        if counts:
            found.append(f"{' or '.join(map(str, counts))} of {len(plans[0])} blocks")
    return ", ".join(found)


def levels_off(study: str, label: str, lengths: tuple[int, ...]) -> Finding:
    """Whether the quality grows with the length, and after the last but one by no more than seeds differ."""
    found = read(study)
    means = []
    for length in lengths:
        cells = [cell for cell in found.cells if cell.label == f"{label}-{length}"]
        if not cells:
            return Finding("not run yet")
        means.append(cells[0].mean(LOSS))
    grown, last = means[-2] - means[0], means[-1] - means[-2]
    line = "held-out loss " + ", ".join(f"{-mean:.3f} ({length})" for mean, length in zip(means, lengths, strict=True))
    holds = grown > APART and abs(last) <= APART
    return Finding("holds" if holds else "does not hold", line, (1,))


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
        return Finding(judge([lost[1] - lost[0]], alone=APART), line, (1,))
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
    return Finding("holds" if max(found.values()) <= most else "does not hold", line)


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
    return Finding("holds" if max(shares) <= most else "does not hold", "; ".join(lines))


def lowest(study: str, says: str, begin: str | tuple[str, ...] = "") -> Finding:
    """Whether a label has the lowest held-out loss of all that begin so, with the seeds that all of them have."""
    cells = [cell for cell in read(study).cells if cell.label.startswith(begin)]
    if len(cells) < 2 or says not in {cell.label for cell in cells}:
        return Finding("not run yet")
    seeds = sorted(set.intersection(*(set(cell.values(LOSS)) for cell in cells)))
    means = {cell.label: [cell.values(LOSS)[seed] for seed in seeds] for cell in cells}
    best = max(means, key=lambda label: statistics.mean(means[label]))
    second = max((label for label in means if label != says), key=lambda label: statistics.mean(means[label]))
    apart = [one - other for one, other in zip(means[says], means[second], strict=True)]
    shown = ", ".join(f"{-statistics.mean(values):.3f} ({label})" for label, values in means.items())
    verdict = judge(apart, alone=APART, comparisons=len(means) - 1)
    return Finding(verdict, f"best {best}; held-out loss {shown}", (len(seeds),))
