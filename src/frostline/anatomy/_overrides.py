"""What structure cannot tell: one line per family of models, as few as possible.

Keys are `config.model_type`; a module's tensors go to the part given for its path within the trunk
(`model.base_model`).
"""

from __future__ import annotations

from frostline.anatomy._model import Part

OVERRIDES: dict[str, dict[str, Part]] = {
    # Runs once, between the first block and the second: it must freeze with what lies below.
    "deberta-v2": {"encoder.conv": Part.EMBEDDINGS},
}
