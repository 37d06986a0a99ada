"""The anatomy of a transformers text model: its embeddings, ordered blocks, final norm and head."""

from frostline.anatomy._find import find_anatomy, get_block
from frostline.anatomy._model import Anatomy, Block, Linear, Part, Role, Tensor
from frostline.anatomy._selection import Trained, notices, select
from frostline.anatomy._skeleton import skeleton
from frostline.anatomy._untie import untie, untied

__all__ = [
    "Anatomy",
    "Block",
    "Linear",
    "Part",
    "Role",
    "Tensor",
    "Trained",
    "find_anatomy",
    "get_block",
    "notices",
    "select",
    "skeleton",
    "untie",
    "untied",
]
