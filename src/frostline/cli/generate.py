"""`frostline generate`: what a run's model, or a pretrained one, writes after a prompt."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from frostline.cli.answer import Answer, Json
from frostline.core.errors import ConfigError


def command(
    target: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run's folder, a hub id or a model's folder.")],
    prompt: Annotated[list[str], typer.Option(help="A text to continue; the option may be given several times.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The most tokens to generate.")] = 64,
    temperature: Annotated[
        float, typer.Option(min=0, help="Temperature of sampling; 0: always the most likely token.")
    ] = 0.0,
    top_p: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Sample from the most likely tokens that have this probability together."),
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Sample from this many of the most likely tokens.")] = None,
    num_beams: Annotated[int, typer.Option(min=1, help="Beams of a beam search.")] = 1,
    repetition_penalty: Annotated[
        float, typer.Option(min=0.01, help="Penalty on tokens that are there already.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of sampling.")] = 42,
    as_json: Json = False,
) -> Answer:
    """Show what a run's model, or a pretrained one, writes after a prompt."""
    from frostline.run import generate_target

    narrowed = {key: value for key, value in (("top_p", top_p), ("top_k", top_k)) if value is not None}
    if narrowed and temperature == 0:
        raise ConfigError(f"--{min(narrowed).replace('_', '-')} needs sampling: use it with a --temperature above 0")
    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature, **narrowed} if temperature > 0 else {}
    searched = {"num_beams": num_beams, "repetition_penalty": repetition_penalty}
    texts = generate_target(target, prompt, max_new_tokens=max_new_tokens, seed=seed, **searched, **sampling)
    written = [{"prompt": asked, "text": text} for asked, text in zip(prompt, texts, strict=True)]
    return Answer(
        {"target": target, "generated": written}, lambda: [pair["prompt"] + pair["text"] for pair in written], as_json
    )
