"""What a model card is written from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from frostline.model_card._code import Use
from frostline.model_card._licence import Licence
from frostline.plan import Plan
from frostline.records import RunRecord

Form = Literal["run", "merged", "lora"]


@dataclass(frozen=True)
class ModelCard:
    """What a card is written from.

    Attributes:
        form: what the folder holds: a `run`'s delta, a `merged` model, or a `lora` adapter of PEFT.
        folder: where it is, as the code names it.
        base: where the base model came from; empty for one that was made in memory.
        model_class: the class of transformers.
        plan: the last plan; None where it is not known.
        record: of the run; None where there is none.
        use: how the model is used; None where that is not known.
        dtype: of the base.
        licence: of the base; None where it is not known.
        ways: the commands of frostline that make another folder of a run: `merge`, `export`.
        beside: the record that the run is compared with: full fine-tuning, or the baseline of a study.
        tokenizer: whether the folder has one.
        more: further Markdown on how to load it.
    """

    form: Form
    folder: str
    base: str
    model_class: str
    plan: Plan | None = None
    record: RunRecord | None = None
    use: Use | None = None
    dtype: str = "auto"
    licence: Licence | None = None
    ways: tuple[str, ...] = ()
    beside: RunRecord | None = None
    tokenizer: bool = True
    more: str = ""
