"""Signals: a measured number for each block. Strategies choose by them."""

from frostline.signals._cache import cached, probe_identity
from frostline.signals._choose import DEVIATIONS, SIGNALS, choose_signals
from frostline.signals._deviation import (
    SemanticBasis,
    cut_at_largest,
    difference_gain,
    log_gain,
    semantic_deviation,
    shift,
    similarity,
)
from frostline.signals._figure import save_figure
from frostline.signals._gradients import loss_gradients, row_gradients
from frostline.signals._measure import measure
from frostline.signals._measurement import Measurement
from frostline.signals._probe import Form, Probe
from frostline.signals._reading import ReadTokens, Tokens, reads_of, token_text
from frostline.signals._trace import trace
from frostline.signals._warm_up import FIVE_STEPS, WarmUp
from frostline.signals._weights import (
    block_norms,
    block_snr,
    low_rank_norms,
    relative_norms,
    spectral_snr,
    weight_change,
)

__all__ = [
    "DEVIATIONS",
    "FIVE_STEPS",
    "SIGNALS",
    "Form",
    "Measurement",
    "Probe",
    "ReadTokens",
    "SemanticBasis",
    "Tokens",
    "WarmUp",
    "block_norms",
    "block_snr",
    "cached",
    "choose_signals",
    "cut_at_largest",
    "difference_gain",
    "log_gain",
    "loss_gradients",
    "low_rank_norms",
    "measure",
    "probe_identity",
    "reads_of",
    "relative_norms",
    "row_gradients",
    "save_figure",
    "semantic_deviation",
    "shift",
    "similarity",
    "spectral_snr",
    "token_text",
    "trace",
    "weight_change",
]
