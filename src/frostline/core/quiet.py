"""Import this before libraries that log lines of no use to the user. They stay quiet then."""

from __future__ import annotations

import logging

# PEFT imports bitsandbytes where it is installed, and bitsandbytes warns of a kernel that is not used here.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
