"""What a plan does to a model, in any training loop."""

from frostline.surgery._apply import Applied, applied_to, apply, change, remember, to_plain
from frostline.surgery._forward import check_loss_is_the_models
from frostline.surgery._quantize import Quantized, quantize_frozen

__all__ = [
    "Applied",
    "Quantized",
    "applied_to",
    "apply",
    "change",
    "check_loss_is_the_models",
    "quantize_frozen",
    "remember",
    "to_plain",
]
