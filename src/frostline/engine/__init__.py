"""Apply a schedule and train: what a plan does to a model, the trainer, the delta, merge."""

from frostline.engine._apply import Applied, applied_to, apply, change, to_plain
from frostline.engine._cold import ColdReport
from frostline.engine._cold_work import cut_boundary
from frostline.engine._delta import CARD_FILE, DeltaCard, load_delta, read_card, save_delta, trained_tensors
from frostline.engine._fingerprint import fingerprint, tensor_hashes
from frostline.engine._flora import Flora
from frostline.engine._merge import load, merge
from frostline.engine._meter import MemoryMeter, StepMeter
from frostline.engine._models import (
    class_called,
    load_above,
    load_config,
    load_part,
    load_tokenizer,
    load_weights,
    quiet_libraries,
)
from frostline.engine._packing import SplitAttention, pack_rows
from frostline.engine._progress import ProgressBar, pass_bar
from frostline.engine._quantise import Quantised, quantise_frozen
from frostline.engine._sampler import GroupedByLength
from frostline.engine._trainer import Trainer

__all__ = [
    "CARD_FILE",
    "Applied",
    "ColdReport",
    "DeltaCard",
    "Flora",
    "GroupedByLength",
    "MemoryMeter",
    "ProgressBar",
    "Quantised",
    "SplitAttention",
    "StepMeter",
    "Trainer",
    "applied_to",
    "apply",
    "change",
    "class_called",
    "cut_boundary",
    "fingerprint",
    "load",
    "load_above",
    "load_config",
    "load_delta",
    "load_part",
    "load_tokenizer",
    "load_weights",
    "merge",
    "pack_rows",
    "pass_bar",
    "quantise_frozen",
    "quiet_libraries",
    "read_card",
    "save_delta",
    "tensor_hashes",
    "to_plain",
    "trained_tensors",
]
