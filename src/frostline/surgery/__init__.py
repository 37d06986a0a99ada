"""What a plan does to a model, in any training loop."""

from frostline.surgery._apply import Applied, applied_to, apply, change, remember, to_plain
from frostline.surgery._forward import check_loss_is_the_models, reads_below
from frostline.surgery._quantize import Quantised, quantise_frozen

__all__ = [
    "Applied",
    "Quantised",
    "applied_to",
    "apply",
    "change",
    "check_loss_is_the_models",
    "quantise_frozen",
    "reads_below",
    "remember",
    "to_plain",
]
