"""The anatomy of a transformers text model: its embeddings, ordered blocks, final norm and head."""

from frostline.anatomy._attention import (
    AttentionHandle,
    AttentionHook,
    NotHookable,
    attention_implementation,
    hook_attention,
    hookable,
    uses_attention_function,
)
from frostline.anatomy._find import find_anatomy, get_block
from frostline.anatomy._heads import Attention, attentions, sides
from frostline.anatomy._model import Anatomy, Block, Linear, Part, Role, Tensor
from frostline.anatomy._running import device_of, evaluation_mode, hidden_of
from frostline.anatomy._selection import Trained, notices, select
from frostline.anatomy._skeleton import skeleton
from frostline.anatomy._trace import hollow
from frostline.anatomy._untie import untie, untied

__all__ = [
    "Anatomy",
    "Attention",
    "AttentionHandle",
    "AttentionHook",
    "Block",
    "Linear",
    "NotHookable",
    "Part",
    "Role",
    "Tensor",
    "Trained",
    "attention_implementation",
    "attentions",
    "device_of",
    "evaluation_mode",
    "find_anatomy",
    "get_block",
    "hidden_of",
    "hollow",
    "hook_attention",
    "hookable",
    "notices",
    "select",
    "sides",
    "skeleton",
    "untie",
    "untied",
    "uses_attention_function",
]
