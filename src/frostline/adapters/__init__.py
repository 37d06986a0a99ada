"""Adapters: new parameters beside a model's own. One file per kind: LoRA, prefix, bottleneck, mixture, PEFT's."""

from frostline.adapters._add import add_adapters, merge_adapters
from frostline.adapters._added import Added, Branch, Shape
from frostline.adapters._hybrid import HybridModel
from frostline.adapters._hybrid_config import HybridConfig
from frostline.adapters._hybrid_keys import as_pefts
from frostline.adapters._kind import AdapterKind, BesideMatrices, LossTerm
from frostline.adapters._kinds import KINDS, adapters_in, added_parameters, added_to, kind_of
from frostline.adapters._layer import AdapterPart, adapter_names, check_mergeable
from frostline.adapters._low_rank import OneRank, Update, lora_updates, of_one_rank
from frostline.adapters._ranks import begin_ranks, load_ranks_state, ranks_state, step_ranks
from frostline.adapters._routers import mixtures, router_statistics
from frostline.adapters._targets import adaptable, transposed

__all__ = [
    "KINDS",
    "AdapterKind",
    "AdapterPart",
    "Added",
    "BesideMatrices",
    "Branch",
    "HybridConfig",
    "HybridModel",
    "LossTerm",
    "OneRank",
    "Shape",
    "Update",
    "adaptable",
    "adapter_names",
    "adapters_in",
    "add_adapters",
    "added_parameters",
    "added_to",
    "as_pefts",
    "begin_ranks",
    "check_mergeable",
    "kind_of",
    "load_ranks_state",
    "lora_updates",
    "merge_adapters",
    "mixtures",
    "of_one_rank",
    "ranks_state",
    "router_statistics",
    "step_ranks",
    "transposed",
]
