"""The built-in tasks whose answers are extracted from generated texts: their local files and hub data sets.

The word problems have worked solutions, which were written for a published training mix. The hub has those of gsm8k
only, so the others are read from a local copy.
"""

from __future__ import annotations

from frostline.rows import HubSource, exported
from frostline.tasks import _hub_questions as convert
from frostline.tasks._questions import AnswerTask

MATH_SETS = ("svamp", "aqua", "addsub", "multiarith", "singleeq", "gsm8k")


def _of_the_mix(*sets: str) -> AnswerTask:
    return AnswerTask("math/split80_20/train.jsonl", "math/split80_20/test.jsonl", sets)


def _commonsense(name: str, file: str, hub: HubSource, hub_test: str = "validation") -> AnswerTask:
    train, test = (f"commonsense/{split}/{file}.jsonl" for split in ("train", "test"))
    return AnswerTask(train, test, (name,), solved=True, hub=hub, hub_test=hub_test)


def _exported(path: str, subset: str, make: convert.Make) -> HubSource:
    return exported(path, subset, "train", "validation", convert=make)


def _arc(subset: str) -> HubSource:
    return HubSource("allenai/ai2_arc", subset, convert=convert.arc)


GSM8K = AnswerTask(
    "math/train/gsm8k_train.jsonl",
    "math/test/gsm8k.jsonl",
    ("gsm8k",),
    hub=HubSource("openai/gsm8k", "main", convert=convert.gsm8k),
)
BOOLQ = HubSource("google/boolq", convert=convert.boolq)
PIQA = _exported("ybisk/piqa", "plain_text", convert.piqa)
SIQA = _exported("allenai/social_i_qa", "default", convert.siqa)
WINOGRANDE = _exported("allenai/winogrande", "winogrande_xl", convert.winogrande)
OPENBOOKQA = HubSource("allenai/openbookqa", "main", convert=convert.openbookqa)

QUESTION_TASKS = {
    "math-mix": _of_the_mix(*MATH_SETS),
    "svamp": _of_the_mix("svamp"),
    "aqua": _of_the_mix("aqua"),
    "addsub": _of_the_mix("addsub"),
    "multiarith": _of_the_mix("multiarith"),
    "singleeq": _of_the_mix("singleeq"),
    "gsm8k": GSM8K,
    "boolq": _commonsense("boolq", "boolq", BOOLQ),
    "piqa": _commonsense("piqa", "piqa", PIQA),
    "siqa": _commonsense("siqa", "social_i_qa", SIQA),
    "winogrande": _commonsense("winogrande", "winogrande", WINOGRANDE),
    "arc-e": _commonsense("arc-e", "ARC-Easy", _arc("ARC-Easy"), "test"),
    "arc-c": _commonsense("arc-c", "ARC-Challenge", _arc("ARC-Challenge"), "test"),
    "obqa": _commonsense("obqa", "openbookqa", OPENBOOKQA, "test"),
}
