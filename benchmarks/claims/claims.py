"""Every claim of the papers and of this project, with what was measured here.

A claim is one line of this table: the paper, what it says, the study that tests it, and the function that judges it.
The file is long because it is that table and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from claims import equal
from claims.judges import (
    CUTS,
    MEMORY,
    best_of_all,
    cached,
    faster,
    generation,
    helps,
    leads,
    less_lost,
    levels_off,
    lowest,
    of_cuts,
    score_above,
)
from claims.records import predicted
from claims.results import Finding, ahead, both, lower, ratio


@dataclass(frozen=True)
class Claim:
    """A claim. `study` names a recipe of recipes/papers; `scale` says what cannot be seen at this scale."""

    paper: str
    says: str
    study: str
    judge: Callable[[], Finding]
    scale: str = ""


_SCALE = "MiniLM and base16 have 22 and 14 million parameters, the paper's models 2 billion and more"
BOTTOMS = ("bot50", "bot75", "bot75-untied")
_OTHERS = ("splitlora", "lisa", "mixlora", "flora")
_FOUR = ("rougeL", "rouge1", "exact_match", "bleu")

CLAIMS = (
    Claim(
        "001",
        "freezing the lowest 25% is at least as good as full fine-tuning",
        "001-table-minilm",
        lambda: ahead("001-table-minilm", "bot25", "all", least=-0.005),
        _SCALE,
    ),
    Claim(
        "001",
        "freezing the highest 25% is at least as good as full fine-tuning",
        "001-table-minilm",
        lambda: ahead("001-table-minilm", "top25", "all", least=-0.005),
        _SCALE,
    ),
    Claim(
        "001",
        "freezing every fourth block is at least as good as full fine-tuning",
        "001-table-minilm",
        lambda: ahead("001-table-minilm", "int25", "all", least=-0.005),
        _SCALE,
    ),
    Claim(
        "001",
        "bot25, top25 and int25 rank above LoRA",
        "001-table-minilm",
        lambda: score_above("001-table-minilm", ("bot25", "top25", "int25"), "lora"),
        _SCALE,
    ),
    Claim(
        "001",
        "at a learning rate at which 100 steps teach something, freezing the lowest 25% is not behind full fine-tuning",
        "001-table-rate",
        lambda: ahead("001-table-rate", "bot25", "all", least=-0.005),
        _SCALE,
    ),
    Claim(
        "001",
        "steps are 20 to 30% faster, or more: the lowest blocks frozen (no cache)",
        "001-table-minilm",
        lambda: both(*(faster("001-table-minilm", one, "all", 20) for one in ("bot25", "bot50", "bot75"))),
    ),
    Claim(
        "001",
        "steps are 20 to 30% faster, or more: every second or fourth block, or the highest, frozen (no cache)",
        "001-table-minilm",
        lambda: both(*(faster("001-table-minilm", one, "all", 20) for one in ("int25", "int50", "top25", "top50"))),
    ),
    Claim(
        "001",
        "training memory falls by 12 to 25% for bot25 and bot50, or more (measured peak, no cache)",
        "001-table-minilm",
        lambda: both(*(ratio("001-table-minilm", one, "all", MEMORY, 0.0, 0.88) for one in ("bot25", "bot50"))),
    ),
    Claim(
        "001",
        "training memory falls by 7 to 13% for int25 and int50, or more (measured peak, no cache)",
        "001-table-minilm",
        lambda: both(*(ratio("001-table-minilm", one, "all", MEMORY, 0.0, 0.93) for one in ("int25", "int50"))),
    ),
    Claim(
        "001",
        "on a decoder with a classifier's head, freezing the lowest 25% is at least as good as full fine-tuning",
        "001-table-base16",
        lambda: ahead("001-table-base16", "bot25", "all", least=-0.005),
        _SCALE,
    ),
    Claim(
        "001",
        "choosing blocks by their change (adt-l, adt-h) has no merit over choosing by position: bot is not behind",
        "001-table-minilm",
        lambda: both(
            *(
                ahead("001-table-minilm", f"bot{p}", f"adt-{kind}{p}", least=-0.005, comparisons=6)
                for p in (25, 50, 75)
                for kind in ("l", "h")
            )
        ),
    ),
    Claim(
        "000",
        "hierarchical freezing leads SplitLoRA, LISA, MixLoRA and FLORA in ROUGE-1, ROUGE-L, EM and BLEU, at "
        "equal steps",
        "000-table-1-steps",
        lambda: best_of_all("000-table-1-steps", "hierarchical", _OTHERS, _FOUR),
    ),
    Claim(
        "000",
        "hierarchical freezing leads these four in held-out loss, at equal steps",
        "000-table-1-steps",
        lambda: best_of_all("000-table-1-steps", "hierarchical", _OTHERS, ("loss",)),
    ),
    Claim(
        "000",
        "hierarchical freezing leads these four in ROUGE-L and BLEU, in the same time",
        "000-table-1-time",
        lambda: best_of_all("000-table-1-time", "hierarchical", _OTHERS, ("rougeL", "bleu")),
    ),
    Claim(
        "000",
        "the layered loss helps, in held-out loss and in BLEU",
        "000-table-1-steps",
        lambda: helps("hierarchical-layered"),
    ),
    Claim(
        "000",
        "the residual interaction helps, in held-out loss and in BLEU",
        "000-table-1-steps",
        lambda: helps("hierarchical-residual"),
    ),
    Claim(
        "000",
        "hierarchical freezing is as good as full fine-tuning",
        "000-table-1-steps",
        lambda: lower("000-table-1-steps", "hierarchical", "all", least=-0.02),
    ),
    Claim(
        "000",
        "the best learning rate of hierarchical freezing is near 5e-5",
        "000-sensitivity-rate",
        lambda: lowest("000-sensitivity-rate", "hierarchical-5.0e-5", "hierarchical-"),
    ),
    Claim(
        "000",
        "more length helps, and levels off at the end (each length is scored on the text that it keeps)",
        "000-sensitivity-length",
        lambda: levels_off("000-sensitivity-length", "hierarchical", (32, 64, 96, 128, 256, 512)),
    ),
    Claim(
        "000",
        "noise of 0.3 of the characters costs hierarchical freezing less than full fine-tuning",
        "000-sensitivity-noise",
        lambda: less_lost("000-sensitivity-noise", "hierarchical", "all", "0.0", "0.3"),
    ),
    Claim(
        "000",
        "a tenth of the rows costs hierarchical freezing less than full fine-tuning",
        "000-sensitivity-share",
        lambda: less_lost("000-sensitivity-share", "hierarchical", "all", "800", "80"),
    ),
    Claim(
        "002",
        "the semantic cut is better than as many frozen blocks at random",
        "002-cost-quality, -base16",
        lambda: of_cuts("semantic", "semantic-random"),
    ),
    Claim(
        "002",
        "freezing the blocks that deviate most instead is worse",
        "002-cost-quality, -base16",
        lambda: of_cuts("semantic", "semantic-reversed"),
    ),
    Claim(
        "002",
        "the semantic cut costs 40 to 62% less than full training, or still less (operations)",
        "002-cost-quality, -base16",
        lambda: both(*(ratio(one, "semantic", "all", predicted("flops_ratio"), 0.0, 0.60) for one in CUTS)),
    ),
    Claim(
        "003",
        "the semantic cut is as good as full fine-tuning",
        "002-cost-quality, -base16",
        lambda: of_cuts("semantic", "all", least=-0.01),
    ),
    Claim(
        "003",
        "the semantic cut goes with LoRA: as good as LoRA on all blocks",
        "002-cost-quality",
        lambda: ahead("002-cost-quality", "semantic+lora", "all+lora", least=-0.01),
    ),
    Claim(
        "004",
        "hlpt is better than LoRA (queries and values) and than prefix tuning (webnlg, held-out loss)",
        "004-methods-webnlg",
        lambda: leads("004-methods-webnlg", "hlpt", ("lora", "prefix")),
    ),
    Claim(
        "004",
        "hlpt is better than LoRA and than prefix tuning (sums in words, held-out loss)",
        "004-methods-math",
        lambda: leads("004-methods-math", "hlpt", ("lora", "prefix")),
    ),
    Claim(
        "004",
        "hlpt is better than LoRA and than prefix tuning (questions with choices, held-out loss)",
        "004-methods-commonsense",
        lambda: leads("004-methods-commonsense", "hlpt", ("lora", "prefix")),
    ),
    Claim(
        "004",
        "gates help: hlpt is better than without them",
        "004-methods-webnlg",
        lambda: lower("004-methods-webnlg", "hlpt", "hlpt-ungated"),
    ),
    Claim(
        "004",
        "LoRA in the lowest three quarters and prefix above is better than prefix in the lowest quarter and LoRA above",
        "004-methods-webnlg",
        lambda: lower("004-methods-webnlg", "hlpt", "hlpt-mirrored"),
    ),
    Claim(
        "004",
        "the prefix earns its place: hlpt is better than LoRA on the down projections of all blocks",
        "004-methods-webnlg",
        lambda: lower("004-methods-webnlg", "hlpt", "lora-down"),
    ),
    Claim(
        "004",
        "h2lpt, which leaves half of the blocks out, is as good as LoRA",
        "004-methods-webnlg",
        lambda: lower("004-methods-webnlg", "h2lpt", "lora", least=-0.02),
    ),
    Claim(
        "004",
        "with 500 rows hlpt still leads LoRA",
        "004-rows",
        lambda: lower("004-rows", "hlpt-500", "lora-500"),
    ),
    Claim(
        "004",
        "of all splits the one with three quarters of LoRA is best",
        "004-splits",
        lambda: lowest("004-splits", "hlpt-12-4"),
    ),
    Claim(
        "004",
        "of the ways to leave half of the blocks out, keeping both ends (3/8 below, 1/8 above) is best",
        "004-omissions",
        lambda: lowest("004-omissions", "outer", ("outer", "inner", "lower", "upper")),
    ),
    Claim(
        "004",
        "h2lpt is better than LoRA with as many parameters (r 4)",
        "004-omissions",
        lambda: lower("004-omissions", "h2lpt", "lora-r4"),
    ),
    Claim(
        "004",
        "a quarter of the blocks (3 below, 1 above) is better than LoRA with as many parameters (r 2)",
        "004-omissions",
        lambda: lower("004-omissions", "low-3-high-1", "lora-r2"),
    ),
    Claim(
        "004",
        "an eighth of the blocks (1 below, 1 above) is better than LoRA with as many parameters (r 1)",
        "004-omissions",
        lambda: lower("004-omissions", "low-1-high-1", "lora-r1"),
    ),
    Claim(
        "004",
        "text is generated in 0.75 of the time of prefix tuning, or less, with LoRA, hlpt and h2lpt",
        "004-inference",
        lambda: generation("004-inference", ("lora", "hlpt", "h2lpt"), "prefix", 0.75),
    ),
    Claim(
        "own",
        "in 0.4 of full fine-tuning's time a frozen bottom with its cache is ahead of full fine-tuning in that time",
        "equal-time",
        lambda: equal.ahead(BOTTOMS, ["all"], 0.4),
    ),
    Claim(
        "own",
        "in 0.2 of full fine-tuning's time a frozen bottom with its cache is ahead of full fine-tuning in that time",
        "equal-time",
        lambda: equal.ahead(BOTTOMS, ["all"], 0.2),
    ),
    Claim(
        "own",
        "a frozen bottom in 0.4 of the time is not behind full fine-tuning in all of its time",
        "equal-time",
        lambda: equal.ahead(BOTTOMS, ["all"], 0.4, least=-0.02, whole=True),
    ),
    Claim(
        "own",
        "time to quality: a frozen bottom or `auto` reaches full fine-tuning's final quality in less than its time",
        "equal-time",
        lambda: equal.reached([*BOTTOMS, "auto"]),
    ),
    Claim(
        "own",
        "`auto`, which has no learning rate given, is ahead of full fine-tuning cut to 0.4 of its time",
        "equal-time",
        lambda: equal.ahead(["auto"], ["all"], 0.4),
    ),
    Claim(
        "own",
        "`auto` is not behind the best simple plan at the best of three rates in 0.4 of the time",
        "equal-time",
        lambda: equal.ahead(["auto"], ["all", *BOTTOMS], 0.4, least=-0.02),
    ),
    Claim(
        "own",
        "three epochs with a frozen bottom and its cache take at most half of `transformers.Trainer`'s time (README)",
        "own-frozen-bottom",
        lambda: cached("own-frozen-bottom", "three epochs", 0.5),
    ),
    Claim(
        "own",
        "they take at most half of its memory too (README)",
        "own-frozen-bottom",
        lambda: cached("own-frozen-bottom", "peak memory", 0.5),
    ),
    Claim(
        "own",
        "a step of bot50 with the cache costs at most 0.6 of a step of full fine-tuning",
        "equal-time",
        lambda: equal.step("bot50", 0.6),
    ),
)
