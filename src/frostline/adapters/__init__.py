"""What is added to a model's own tensors: LoRA and other methods through PEFT, gated LoRA, prefixes and adapters."""

from frostline.adapters._add import add_adapters, merge_adapters
from frostline.adapters._count import added_parameters, added_to
from frostline.adapters._hybrid import HybridConfig, HybridModel
from frostline.adapters._layer import adapter_names, check_mergeable
from frostline.adapters._mixture import beside_attention, feed_forward
from frostline.adapters._peft import copies_tensors, regularises
from frostline.adapters._peft_places import peft_modules
from frostline.adapters._ranks import begin_ranks, load_ranks_state, ranks_state, step_ranks
from frostline.adapters._routers import mixtures, router_statistics
from frostline.adapters._targets import LoraTarget, adaptable, lora_parameters, lora_targets, matrices

__all__ = [
    "HybridConfig",
    "HybridModel",
    "LoraTarget",
    "adaptable",
    "adapter_names",
    "add_adapters",
    "added_parameters",
    "added_to",
    "begin_ranks",
    "beside_attention",
    "check_mergeable",
    "copies_tensors",
    "feed_forward",
    "load_ranks_state",
    "lora_parameters",
    "lora_targets",
    "matrices",
    "merge_adapters",
    "mixtures",
    "peft_modules",
    "ranks_state",
    "regularises",
    "router_statistics",
    "step_ranks",
]
