"""What is added to a model's own tensors: LoRA, through PEFT."""

from frostline.adapters._lora import add_lora, load_lora_state, lora_state, merge_lora
from frostline.adapters._targets import LoraTarget, lora_parameters, lora_targets

__all__ = [
    "LoraTarget",
    "add_lora",
    "load_lora_state",
    "lora_parameters",
    "lora_state",
    "lora_targets",
    "merge_lora",
]
