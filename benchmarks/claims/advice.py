"""What a user should do: ten lines, each with what was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from claims import equal
from claims.claims import BOTTOMS
from claims.judges import CUTS
from claims.results import Finding, ahead, both, lower

_TABLE, _STEPS = "001-table-minilm", "000-table-1-steps"


@dataclass(frozen=True)
class Advice:
    """A line of advice. `evidence` has to hold, and `study` names where it comes from."""

    says: str
    study: str
    evidence: Callable[[], Finding]


ADVICE = (
    Advice(
        "With 0.4 of the time of three epochs of full fine-tuning, freeze a bottom and cache it (`bot50`).",
        "equal-time",
        lambda: equal.ahead(["bot50"], ["all"], 0.4),
    ),
    Advice(
        "Without a learning rate that you know, use `--strategy auto --budget time=0.4`: it finds one in its time.",
        "equal-time",
        lambda: equal.ahead(["auto"], ["all"], 0.4),
    ),
    Advice(
        "Where the head is tied to the embeddings, untie it (`untie: true` in a plan) and freeze three quarters (the "
        "two were not tried apart); of an encoder freeze half of the blocks, not five of six.",
        "equal-time",
        lambda: both(equal.ahead(["bot75-untied"], ["bot50"], 0.4), equal.ahead(["bot50"], ["bot75"], 0.4)),
    ),
    Advice(
        "With time for all steps, train everything: at equal steps freezing half of the blocks costs quality.",
        "002-cost-quality-base16",
        lambda: lower(CUTS[1], "all", "bot50"),
    ),
    Advice(
        "Raise the learning rate when blocks are frozen, up to four times: try three.",
        "equal-time",
        lambda: equal.rates(("all", *BOTTOMS)),
    ),
    Advice(
        "Freeze the lowest blocks, not the highest: the lowest save the backward pass, the highest save little.",
        "001-table-minilm, equal-time",
        lambda: both(ahead(_TABLE, "bot50", "top50"), equal.ahead(["bot50"], ["top50"], 0.4)),
    ),
    Advice(
        "Choose by position: the semantic cut (here one block) saves less than `bot25`, and is not better.",
        "002-cost-quality-base16",
        lambda: lower(CUTS[1], "bot25", "semantic"),
    ),
    Advice(
        "If you freeze a single block, freeze the lowest: another one costs more quality.",
        "002-cost-quality-base16",
        lambda: both(*(lower(CUTS[1], "semantic", other) for other in ("semantic-random", "semantic-reversed"))),
    ),
    Advice(
        "On a small model use LoRA for its small files, not for time: in the same time full fine-tuning is ahead.",
        "equal-time",
        lambda: equal.ahead(["all"], ["all+lora"], 0.4),
    ),
    Advice(
        "Leave the layered loss and the residual interaction of hierarchical freezing off: held-out loss does not "
        "gain.",
        "000-table-1-steps",
        lambda: both(
            lower(_STEPS, "hierarchical", "hierarchical-layered"),
            lower(_STEPS, "hierarchical", "hierarchical-residual"),
        ),
    ),
)
