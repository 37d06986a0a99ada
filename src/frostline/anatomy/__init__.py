"""The anatomy of a transformers text model: where it keeps its embeddings, ordered blocks, final norm and head."""

from frostline.anatomy._drops import adapted, skippable, stacks
from frostline.anatomy._find import find_anatomy, get_block, text_model
from frostline.anatomy._hashes import fingerprint, tensor_hash, tensor_hashes
from frostline.anatomy._heads import Attention, attentions, sides
from frostline.anatomy._model import Anatomy, Block, Linear, Part, Role, Tensor
from frostline.anatomy._selection import Trained, notices, select
from frostline.anatomy._skeleton import skeleton
from frostline.anatomy._untie import untie, untied

__all__ = [
    "Anatomy",
    "Attention",
    "Block",
    "Linear",
    "Part",
    "Role",
    "Tensor",
    "Trained",
    "adapted",
    "attentions",
    "find_anatomy",
    "fingerprint",
    "get_block",
    "notices",
    "select",
    "sides",
    "skeleton",
    "skippable",
    "stacks",
    "tensor_hash",
    "tensor_hashes",
    "text_model",
    "untie",
    "untied",
]
