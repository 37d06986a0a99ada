"""The anatomy of a transformers text model: its embeddings, ordered blocks, final norm and head."""

from frostline.anatomy.find import find_anatomy, get_block
from frostline.anatomy.model import Anatomy, Block, Linear, Part, Role, Tensor
from frostline.anatomy.selection import Trained, notices, select
from frostline.anatomy.skeleton import skeleton
from frostline.anatomy.untie import untie, untied

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
