"""What a run ran on: versions of the libraries that shape its numbers, and the machine."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch

LIBRARIES = ("frostline", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers")


def versions() -> dict[str, str]:
    """Library -> version, with python, the platform, the device and the number of threads."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "python": platform.python_version(),
        **{library: version(library) for library in LIBRARIES},
        "platform": platform.system(),
        "device": device,
        "threads": str(torch.get_num_threads()),
    }
