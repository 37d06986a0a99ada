"""`frostline generate`: what a run's model, or a pretrained one, writes after a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from frostline.cli.answer import Answer, Json

if TYPE_CHECKING:
    pass


def command(
    target: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run's folder, a hub id or a model's folder.")],
    prompt: Annotated[list[str], typer.Option(help="What to go on from; may be given several times.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate at most.")] = 64,
    temperature: Annotated[
        float, typer.Option(min=0, help="Of sampling; 0 takes the most likely token each time.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of sampling.")] = 42,
    as_json: Json = False,
) -> Answer:
    """What a run's model, or a pretrained one, writes after a prompt."""
    from frostline.run import generate_target

    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature > 0 else {}
    texts = generate_target(target, prompt, max_new_tokens=max_new_tokens, seed=seed, **sampling)
    written = [{"prompt": asked, "text": text} for asked, text in zip(prompt, texts, strict=True)]
    return Answer(
        {"target": target, "generated": written}, lambda: [pair["prompt"] + pair["text"] for pair in written], as_json
    )
