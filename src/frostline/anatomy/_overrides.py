"""What the structure of a model does not tell. One line per model family, and as few lines as possible.

Keys are `config.model_type`. A path within the trunk (`model.base_model`) names a module, and its value the part to
which the module's tensors belong.
"""

from __future__ import annotations

from frostline.anatomy._model import Part

OVERRIDES: dict[str, dict[str, Part]] = {
    # It runs once, between the first two blocks, so it must be frozen when the first block is.
    "deberta-v2": {"encoder.conv": Part.EMBEDDINGS},
}
