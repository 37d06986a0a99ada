"""What a run ran on: versions of the libraries that shape its numbers, and the machine."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch

from frostline.run._device import uses_bfloat16

LIBRARIES = ("frostline", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers")


def versions(bf16: bool | None = None) -> dict[str, str]:
    """Library -> version, with python, the platform, the device, the number of threads and the precision of matrices.

    Args:
        bf16: the setting of the run; None: bfloat16 where this machine is fast at it.
    """
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "python": platform.python_version(),
        **{library: version(library) for library in LIBRARIES},
        "platform": platform.system(),
        "device": device,
        "threads": str(torch.get_num_threads()),
        "autocast": "bfloat16" if uses_bfloat16(bf16) else "none",
    }
