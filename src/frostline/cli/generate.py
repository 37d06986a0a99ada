"""`frostline generate`: what a run's model, or a pretrained one, writes after a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from frostline.cli.answer import Answer, Base, Json
from frostline.core.errors import ConfigError


def command(
    target: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run's folder, a hub id or a model's folder.")],
    prompt: Annotated[
        list[str] | None, typer.Option(help="A text to continue; the option may be given several times.")
    ] = None,
    messages: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A chat to answer, or several: a JSON list of messages with role and content, or an object with "
            "messages, system and tools on each line. The tokenizer's chat template renders it.",
        ),
    ] = None,
    base: Base = None,
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
    """Show what a run's model, or a pretrained one, writes after a prompt, or as the next turn of a chat."""
    narrowed = {key: value for key, value in (("top_p", top_p), ("top_k", top_k)) if value is not None}
    if narrowed and temperature == 0:
        raise ConfigError(f"--{min(narrowed).replace('_', '-')} needs sampling: use it with a --temperature above 0")
    if not prompt and messages is None:
        raise ConfigError("there is nothing to continue: use --prompt TEXT, or --messages FILE for a chat")

    from frostline.run import generate_target
    from frostline.tasks import read_chats

    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature, **narrowed} if temperature > 0 else {}
    searched = {"num_beams": num_beams, "repetition_penalty": repetition_penalty}
    asked, chats = list(prompt or []), [] if messages is None else read_chats(messages)
    texts = generate_target(
        target, [*asked, *chats], base=base, max_new_tokens=max_new_tokens, seed=seed, **searched, **sampling
    )
    given: list[dict[str, Any]] = [{"prompt": text} for text in asked]
    given += [{"messages": [message._asdict() for message in chat.messages]} for chat in chats]
    written = [{**one, "text": text} for one, text in zip(given, texts, strict=True)]
    return Answer(
        {"target": target, "generated": written},
        lambda: [one.get("prompt", "") + one["text"] for one in written],
        as_json,
    )
