"""What a process of ours imports before libraries that log what is of no use to the user: from then on they do not."""

from __future__ import annotations

import logging

# PEFT imports bitsandbytes where it is installed, which warns of a kernel that is not used here.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
