"""How texts are generated when a model is evaluated."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from frostline.core.settings import Options

SAMPLING = ("temperature", "top_p", "top_k")
PRESETS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "llm-adapters": {"num_beams": 4, "temperature": 0.1, "top_p": 0.75, "top_k": 40, "max_new_tokens": 256},
}


class Decoding(Options):
    """How texts are generated: keywords of transformers' `generate`, over a preset. Greedy by default.

    Attributes:
        preset: `greedy`, or `llm-adapters`, the published decoding of the math and commonsense tasks: four beams and at
            most 256 new tokens. It also names a temperature of 0.1, top_p 0.75 and top_k 40, which count only beside
            `do_sample: true`; the published programs leave that out, so that they search beams and draw nothing.
        max_new_tokens: tokens to generate at most; the run's own number by default.
        do_sample: draw the next token, by `seed`, instead of taking the likeliest; a draw also depends on the batch
            size. `temperature`, `top_p` and `top_k` are for it alone.
        num_beams: how many texts are kept in the search.
        repetition_penalty, length_penalty, no_repeat_ngram_size: as transformers has them.
        seed: of the sampling.
    """

    preset: Literal["greedy", "llm-adapters"] = "greedy"
    max_new_tokens: PositiveInt | None = None
    do_sample: bool | None = None
    num_beams: PositiveInt | None = None
    temperature: PositiveFloat | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: PositiveInt | None = None
    repetition_penalty: PositiveFloat | None = None
    length_penalty: float | None = None
    no_repeat_ngram_size: PositiveInt | None = None
    seed: int = Field(42, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _sampled(self) -> Decoding:
        given = [name for name in SAMPLING if getattr(self, name) is not None]
        if given and not self.do_sample:
            raise ValueError(f"{given[0]} has no effect unless texts are sampled: add do_sample: true")
        return self

    def keywords(self, max_new_tokens: int) -> dict[str, Any]:
        """The keywords for `generate`, with `max_new_tokens` where neither the user nor the preset has a number."""
        given = self.model_dump(exclude={"preset", "seed"}, exclude_none=True)
        chosen = {"max_new_tokens": max_new_tokens, **PRESETS[self.preset], **given}
        return {key: value for key, value in chosen.items() if self.do_sample or key not in SAMPLING}
