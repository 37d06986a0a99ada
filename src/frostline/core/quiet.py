"""Import this before libraries that log lines of no use to the user. They stay quiet then, and no line has control
characters."""

from __future__ import annotations

import logging

from frostline.core.shown import visible

# PEFT imports bitsandbytes where it is installed, and bitsandbytes warns of a kernel that is not used here.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


class _Visible(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


if logging.lastResort is not None:  # it prints the warnings that no other handler was made for
    logging.lastResort.setFormatter(_Visible())
