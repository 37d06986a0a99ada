"""Apply a schedule and train: what a plan does to a model, the trainer, the delta, merge."""

from frostline.engine._apply import Applied, applied_to, apply, to_plain
from frostline.engine._delta import CARD_FILE, DeltaCard, load_delta, read_card, save_delta, trained_tensors
from frostline.engine._fingerprint import fingerprint, tensor_hashes
from frostline.engine._merge import load, merge
from frostline.engine._meter import MemoryMeter, StepMeter
from frostline.engine._models import class_called, load_config, load_tokenizer, load_weights, quiet_libraries
from frostline.engine._progress import ProgressBar
from frostline.engine._trainer import Trainer

__all__ = [
    "CARD_FILE",
    "Applied",
    "DeltaCard",
    "MemoryMeter",
    "ProgressBar",
    "StepMeter",
    "Trainer",
    "applied_to",
    "apply",
    "class_called",
    "fingerprint",
    "load",
    "load_config",
    "load_delta",
    "load_tokenizer",
    "load_weights",
    "merge",
    "quiet_libraries",
    "read_card",
    "save_delta",
    "tensor_hashes",
    "to_plain",
    "trained_tensors",
]
