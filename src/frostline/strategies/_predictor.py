"""A small attention network that says whether a block has settled, from how far its weights moved before.

N histories, H moments in each, F numbers for a moment, S for the block, D width of the network
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.resources import files

import torch
from safetensors.torch import load
from torch import Tensor, nn

HISTORY = 8
"""So many of the last moments are looked at."""
MOMENT, BLOCK, WIDTH = 5, 2, 8
WEIGHTS = "smartfrz.safetensors"
_LEAST = 1e-8


class Predictor(nn.Module):
    """One query, which depends on the block, attends to the moments of its history; the result is a logit.

    It has 217 parameters. `benchmarks/smartfrz.py` trains it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(BLOCK, WIDTH)
        self.key = nn.Linear(MOMENT, WIDTH)
        self.value = nn.Linear(MOMENT, WIDTH)
        self.hidden = nn.Linear(WIDTH + BLOCK, WIDTH)
        self.settled = nn.Linear(WIDTH, 1)

    def forward(self, moments: Tensor, block: Tensor, mask: Tensor) -> Tensor:
        """Logits [N] that the blocks have settled.

        Args:
            moments: [N, H, F].
            block: [N, S].
            mask: [N, H], False where a history is shorter.
        """
        scores = (self.key(moments) @ self.query(block).unsqueeze(-1)).squeeze(-1) / math.sqrt(WIDTH)
        shares = scores.masked_fill(~mask, -math.inf).softmax(dim=-1)
        seen = (shares.unsqueeze(-1) * self.value(moments)).sum(dim=1)
        logits: Tensor = self.settled(self.hidden(torch.cat([seen, block], dim=-1)).relu()).squeeze(-1)
        return logits


def trained_predictor() -> Predictor:
    """The predictor with the weights that come with frostline."""
    made = Predictor()
    made.load_state_dict(load((files("frostline.strategies") / WEIGHTS).read_bytes()))
    return made.eval()


def features(
    motion: Sequence[Sequence[float]], rates: Sequence[float], block: int, progress: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What the predictor reads for one block: moments [1, H, F], block [1, S], mask [1, H]. No number depends on sizes.

    Args:
        motion: at each moment so far, `weight_motion` of every block (0: it was frozen).
        rates: at each moment the learning rate, as a share.
        block: its number.
        progress: the share of the training that is over.
    """
    blocks = len(motion[0])
    own = [max(moment[block], _LEAST) for moment in motion]
    largest, highest = max(own), max(max(rates), _LEAST)
    found = torch.zeros(1, HISTORY, MOMENT)
    first = max(0, len(own) - HISTORY)
    for place, (value, moment, rate) in enumerate(zip(own[first:], motion[first:], rates[first:], strict=True)):
        moving = [other for other in moment if other > 0] or [_LEAST]
        found[0, place] = torch.tensor(
            [
                math.log10(value) + 2,
                math.log10(value / largest),
                math.log10(value / (sum(moving) / len(moving))),
                max(rate, _LEAST) / highest,
                (len(own) - 1 - first - place) / HISTORY,
            ]
        )
    mask = torch.arange(HISTORY).unsqueeze(0) < len(own) - first
    return found, torch.tensor([[block / max(1, blocks - 1), progress]]), mask
