"""Grids of runs: models x tasks x strategies x seeds, each run in a process of its own, resumable."""

from frostline.study._config import StudyConfig, StudyStrategy, read_study
from frostline.study._grid import Cell, cells
from frostline.study._report import table_of
from frostline.study._result import Result
from frostline.study._runner import recorded, run_study

__all__ = ["Cell", "Result", "StudyConfig", "StudyStrategy", "cells", "read_study", "recorded", "run_study", "table_of"]
