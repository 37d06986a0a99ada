"""The processes that train together: one decision for all of them, and an error of one is an error of all."""

from frostline.processes._errors import is_of_all, watching
from frostline.processes._group import ALONE, Processes
from frostline.processes._start import ending, refuse, running, start

__all__ = ["ALONE", "Processes", "ending", "is_of_all", "refuse", "running", "start", "watching"]
