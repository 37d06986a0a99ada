"""Save and load: deltas, the states of optimizer and random generators, models, merged checkpoints, LoRA folders."""

from frostline.checkpoints._delta import (
    CARD_FILE,
    DeltaCard,
    load_delta,
    put_tensors,
    read_card,
    save_delta,
    trained_tensors,
)
from frostline.checkpoints._export import Exported, export_lora
from frostline.checkpoints._merge import Merged, load, merge
from frostline.checkpoints._model_cards import write_run_card
from frostline.checkpoints._models import (
    class_called,
    load_above,
    load_config,
    load_part,
    load_tokenizer,
    load_weights,
    quiet_libraries,
)
from frostline.checkpoints._precision import bfloat16_is_fast, imitated, kept_dtype
from frostline.checkpoints._resize import resize_embeddings, resized_tensors, rows_of_the_base
from frostline.checkpoints._state import (
    OPTIMIZER_FILE,
    OPTIMIZER_TENSORS,
    SCHEDULER_FILE,
    load_optimizer,
    load_scheduler,
    random_state,
    save_optimizer,
    save_scheduler,
    set_random_state,
)
from frostline.checkpoints._tensors import read_tensors

__all__ = [
    "CARD_FILE",
    "OPTIMIZER_FILE",
    "OPTIMIZER_TENSORS",
    "SCHEDULER_FILE",
    "DeltaCard",
    "Exported",
    "Merged",
    "bfloat16_is_fast",
    "class_called",
    "export_lora",
    "imitated",
    "kept_dtype",
    "load",
    "load_above",
    "load_config",
    "load_delta",
    "load_optimizer",
    "load_part",
    "load_scheduler",
    "load_tokenizer",
    "load_weights",
    "merge",
    "put_tensors",
    "quiet_libraries",
    "random_state",
    "read_card",
    "read_tensors",
    "resize_embeddings",
    "resized_tensors",
    "rows_of_the_base",
    "save_delta",
    "save_optimizer",
    "save_scheduler",
    "set_random_state",
    "trained_tensors",
    "write_run_card",
]
