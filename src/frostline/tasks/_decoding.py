"""How texts are generated in an evaluation."""

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
    """How texts are generated: a preset, and keywords of transformers' `generate` that change it. Greedy by default.

    Attributes:
        preset: `greedy`, or `llm-adapters`, the published decoding of the math and commonsense tasks: four beams and at
            most 256 new tokens. It also has temperature 0.1, top_p 0.75 and top_k 40, which have an effect only with
            `do_sample: true`. The published programs do not set it, so they use beam search without sampling.
        max_new_tokens: generate at most this many tokens; None is the run's own number.
        do_sample: draw the next token, by `seed`, instead of using the most likely one. The draw also depends on the
            batch size. `temperature`, `top_p` and `top_k` need it.
        num_beams: number of beams.
        repetition_penalty, length_penalty, no_repeat_ngram_size: as in transformers.
        seed: seed of the sampling.
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
            raise ValueError(f"{given[0]} has no effect without sampling: use do_sample: true, or leave it out")
        return self

    def keywords(self, max_new_tokens: int) -> dict[str, Any]:
        """The keywords for `generate`. `max_new_tokens` is used where neither the user nor the preset has a number."""
        given = self.model_dump(exclude={"preset", "seed"}, exclude_none=True)
        chosen = {"max_new_tokens": max_new_tokens, **PRESETS[self.preset], **given}
        return {key: value for key, value in chosen.items() if self.do_sample or key not in SAMPLING}
