"""Do signals order the blocks as training does?

    PYTHONPATH=benchmarks python -m signals_judged WHAT docs/results/signals

WHAT is `run` (measures and trains; what is done stays done), `table` (rank correlations, in Markdown), `cuts` (which
cut each signal would choose, and what it gains) or `page` (puts both tables into docs/signals.md).

A finding is one small JSON. `run` can be stopped at any time: the smaller pairs and the first seed come first, then the
second seed, then the cuts. Models and data are looked for under $FROSTLINE_MODELS and $FROSTLINE_DATA.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from signals_judged import tables
from signals_judged.pairs import PAIRS
from signals_judged.trials import run


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
        tables.PAGE.write_text(tables.page(given.out, tables.PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print((tables.table if given.what == "table" else tables.cuts)(given.out))


if __name__ == "__main__":
    main()
