"""Damage every input that frostline reads, and look how it ends: exit status 0 or 2, and lines that can be shown.

A finding is another exit status, "a fault of frostline", a traceback, a raw control character, a line of more than 300
characters in an error, or more than ten seconds for one input. Each is kept in a folder with its files and the command.

python benchmarks/fuzz.py [--seconds 600] [--seed 1] [--surfaces plan CSV ...] [--out runs/fuzz]
"""

from __future__ import annotations

import argparse
import io
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz_surfaces import Input, Surface, surfaces, undamaged
from transformers.utils import logging

LONGEST_LINE = 300
SECONDS = 10
UNDAMAGED = 5
"""So many inputs of a surface are tried without damage; most of them have to end with status 0."""
MEMORY = 6 * 2**30
"""No input may need more than this: what asks for all of the memory is then an error, and a finding."""
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class TooLong(BaseException):
    """An input took more than ten seconds."""


@dataclass
class Count:
    """What was tried on one surface."""

    inputs: int = 0
    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)


def tried(given: Input) -> tuple[int, str | None, str]:
    """The exit status of one input, what is wrong with how it ended, and what was printed."""
    out, err = io.StringIO(), io.StringIO()
    status, problem = -1, None
    signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            status = given.call(given.arguments)
    except TooLong:
        problem = f"more than {SECONDS} seconds"
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        problem = f"traceback: {type(error).__name__} in {Path(place.filename).name}:{place.name}: {str(error)[:80]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    printed = out.getvalue() + err.getvalue()
    return status, problem or _wrong(status, out.getvalue(), err.getvalue(), given.fine), printed


def _too_long(*_: Any) -> None:
    raise TooLong


def _wrong(status: int, out: str, err: str, fine: Sequence[int]) -> str | None:
    if "a fault of frostline" in err:
        return f"fault: {err[err.rindex('error: ') :][:200]}"
    if "Traceback (most recent" in err + out:
        return "a printed traceback"
    if status not in fine:
        return f"status {status}: {err[-200:]}"
    for text in (out, err):
        if found := CONTROL.search(text):
            return f"raw {found[0]!r} in {text[max(0, found.start() - 60) : found.end() + 20]!r}"
    if long := next((line for line in err.splitlines() if len(line) > LONGEST_LINE), None):
        return f"a long line: {len(long)} characters: {long[:150]}"
    if status == 2 and not err.splitlines()[-1:][0].startswith("error: "):
        return f"an error of several lines: {err[-200:]}"
    return None


def kind(problem: str) -> str:
    """A finding without what changes from one input to the next."""
    if problem.startswith(("raw", "a long line", "an error of several lines")):
        return problem.partition(":")[0][:20]
    return re.sub(r"\d+|'[^']*'|\"[^\"]*\"|/\S+", "_", problem)[:130]


def check_undamaged(made: Mapping[str, Surface]) -> None:
    """Raise `RuntimeError` for a surface whose inputs are refused undamaged: it would try nothing."""
    for name, make in made.items():
        draw, refused = random.Random(1), []
        with undamaged():
            for _ in range(UNDAMAGED):
                status, _, printed = tried(make(draw))
                refused += [printed] if status else []
        if len(refused) > UNDAMAGED / 2:
            raise RuntimeError(f"{name}: most inputs are refused undamaged: {refused[0][-300:]}")


def fuzz(seconds: float, seed: int, names: Sequence[str], out: Path) -> dict[str, Count]:
    """Try inputs for this long, each surface as long as the others.

    Args:
        seconds: to try.
        seed: of what is drawn. The same seed tries the same inputs in each surface.
        names: of surfaces; empty: all.
        out: where findings are kept.
    """
    counts: dict[str, Count] = defaultdict(Count)
    kept = set[str]()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    with tempfile.TemporaryDirectory() as temporary, surfaces(Path(temporary)) as made:
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, limits[1]))
        check_undamaged({name: made[name] for name in names or made})
        draws = {name: random.Random(f"{seed}{name}") for name in names or made}
        end = time.monotonic() + seconds
        try:
            # Each surface has its first input, however slow the machine is.
            while time.monotonic() < end or not all(counts[name].inputs for name in draws):
                name = min(draws, key=lambda name: counts[name].seconds)
                count = counts[name]
                begun = time.monotonic()
                given = made[name](draws[name])
                status, problem, printed = tried(given)
                count.seconds += time.monotonic() - begun
                count.inputs += 1
                count.statuses[status] += 1
                if problem is not None:
                    count.findings[kind(problem)] += 1
                    if (of := f"{name} {kind(problem)}") not in kept:
                        kept.add(of)
                        _keep(out / f"{len(kept):03}", name, given, problem, printed)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
    return counts


def _keep(folder: Path, surface: str, given: Input, problem: str, printed: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, path in enumerate(given.files):
        if path.is_file():
            shutil.copy(path, folder / f"{number}-{path.name}")
    text = f"{surface}\n{given.arguments!r}\n{[str(path) for path in given.files]}\n{problem}\n\n{printed[-4000:]}"
    (folder / "finding.txt").write_bytes(text.encode("utf-8", "backslashreplace"))


def table(counts: dict[str, Count]) -> str:
    """What was tried and found, as Markdown."""
    lines = ["| surface | inputs | refused | findings |", "|---|---:|---:|---:|"]
    for name, count in counts.items():
        lines.append(f"| {name} | {count.inputs:,} | {count.statuses[2]:,} | {count.findings.total():,} |")
    inputs, refused = sum(c.inputs for c in counts.values()), sum(c.statuses[2] for c in counts.values())
    findings = sum(c.findings.total() for c in counts.values())
    return "\n".join([*lines, f"| all | {inputs:,} | {refused:,} | {findings:,} |"])


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--surfaces", nargs="*", default=())
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    given = parser.parse_args()
    counts = fuzz(given.seconds, given.seed, given.surfaces, given.out.resolve())
    print(table(counts))
    for name, count in counts.items():
        for finding, times in count.findings.most_common():
            print(f"{name}: {times} x {finding.encode('ascii', 'backslashreplace').decode()}")
    return 1 if any(count.findings for count in counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
