"""What a plan does to a model, in any training loop."""

from frostline.surgery._apply import (
    Applied,
    applied_to,
    apply,
    change,
    check_plain,
    one_dtype,
    remember,
    renew,
    to_plain,
)
from frostline.surgery._forward import check_loss_is_the_models
from frostline.surgery._given import AS_GIVEN, as_given, partly_frozen
from frostline.surgery._quantize import Quantized, quantize_frozen

__all__ = [
    "AS_GIVEN",
    "Applied",
    "Quantized",
    "applied_to",
    "apply",
    "as_given",
    "change",
    "check_loss_is_the_models",
    "check_plain",
    "one_dtype",
    "partly_frozen",
    "quantize_frozen",
    "remember",
    "renew",
    "to_plain",
]
