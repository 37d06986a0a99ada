"""`frostline inspect`: the blocks of a model, their sizes, what can be trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from frostline.cli.answer import Answer, Json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from frostline.anatomy import Anatomy, Block, Tensor

ROLES = ("attention", "feed_forward", "norm", "other")


def command(
    model: Annotated[str, typer.Argument(help="A hub id or a folder; a config.json alone is enough.")],
    task: Annotated[str | None, typer.Option(help="A task: the model then has the head that it needs.")] = None,
    as_json: Json = False,
) -> Answer:
    """Show the blocks of a model, their sizes, and what can be trained."""
    from frostline.run import inspect_model

    anatomy = inspect_model(model, task=task)
    return Answer(_document(model, anatomy), lambda: _view(model, anatomy), as_json)


def _document(model: str, anatomy: Anatomy) -> dict[str, Any]:
    return {
        "model": model,
        "model_class": anatomy.model_class,
        "model_type": anatomy.model_type,
        "hidden_size": anatomy.hidden_size,
        "vocab_size": anatomy.vocab_size,
        "encoder_decoder": anatomy.encoder_decoder,
        "tied": anatomy.tied,
        "total_parameters": anatomy.total_parameters,
        "embeddings": _part(anatomy.embeddings),
        "blocks": [
            {"index": block.index, "name": block.name, "stack": block.stack, **_sizes(block)}
            for block in anatomy.blocks
        ],
        "final_norm": _part(anatomy.final_norm),
        "head": _part(anatomy.head),
    }


def _part(tensors: Sequence[Tensor]) -> dict[str, Any]:
    return {"parameters": _count(tensors), "tensors": [tensor.name for tensor in tensors]}


def _sizes(block: Block) -> dict[str, int]:
    by_role = {role: _count([tensor for tensor in block.tensors if tensor.role == role]) for role in ROLES}
    return {"parameters": block.parameters, **by_role}


def _count(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel for tensor in tensors)


def _view(model: str, anatomy: Anatomy) -> list[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    from frostline.report import count_text, share_text

    sizes = [_sizes(block) for block in anatomy.blocks]
    roles = [role for role in ROLES if any(size[role] for size in sizes)]
    table = Table("part", "where", box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for heading in (*(role.replace("_", "-") for role in roles), "parameters", "share"):
        table.add_column(heading, justify="right")
    total = anatomy.total_parameters

    def add(part: str, where: str, parameters: int, by_role: Sequence[int] = (), end: bool = False) -> None:
        cells = [count_text(count) for count in by_role] or [""] * len(roles)
        table.add_row(
            part,
            where,
            *cells,
            count_text(parameters),
            share_text(parameters / total if total else None),
            end_section=end,
        )

    add("embeddings", _where(anatomy.embeddings), _count(anatomy.embeddings))
    for block, size in zip(anatomy.blocks, sizes, strict=True):
        add(f"block {block.index}", block.name, block.parameters, [size[role] for role in roles])
    add("final norm", _where(anatomy.final_norm), _count(anatomy.final_norm))
    head = "tied to embedding" if anatomy.tied else ""
    add("head", _where(anatomy.head) or head, _count(anatomy.head))
    add("total", "", total)
    kind = "encoder-decoder, " if anatomy.encoder_decoder else ""
    title = (
        f"{anatomy.model_class} ({anatomy.model_type}): {kind}{len(anatomy.blocks)} blocks, width {anatomy.hidden_size}"
    )
    return [Text(f"{model}: {title}", style="bold"), table]


def _where(tensors: Sequence[Tensor]) -> str:
    """The modules that hold `tensors`: the first one, and how many more there are."""
    modules = list(dict.fromkeys(tensor.name.rpartition(".")[0] or tensor.name for tensor in tensors))
    return modules[0] + (f" and {len(modules) - 1} more" if len(modules) > 1 else "") if modules else ""
