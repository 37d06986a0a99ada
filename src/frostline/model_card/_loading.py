"""How a model is loaded: Python that runs as it is, and commands."""

from __future__ import annotations

from shlex import quote

from frostline.core.shown import one_line
from frostline.model_card._about import ModelCard
from frostline.model_card._code import needs_torch, python_string, use_lines


def how_to_load(card: ModelCard) -> str:
    """The section on how to load the model and use it once."""
    use = [] if card.use is None or not card.tokenizer else use_lines(card.use)
    folder = f"folder = {python_string(card.folder)}  # where this folder is"
    tokenizer = "tokenizer = AutoTokenizer.from_pretrained(folder)"
    names = [*(["AutoTokenizer"] if card.tokenizer else []), *([card.model_class] if card.form != "run" else [])]
    imports = ["import torch"] if needs_torch(use) else []
    if card.form == "run":
        imports.append("import frostline")
        loads = [folder, "model = frostline.load(folder)"]
    elif card.form == "merged":
        loads = [folder, f"model = {card.model_class}.from_pretrained(folder)"]
    else:
        imports.append("from peft import PeftModel")
        base = python_string(card.base or "BASE")
        loads = [
            folder,
            f"base = {card.model_class}.from_pretrained({base}, dtype={python_string(card.dtype)})",
            "model = PeftModel.from_pretrained(base, folder)",
        ]
    if names:
        imports.append(f"from transformers import {', '.join(sorted(names))}")
    code = "\n".join([*imports, "", *loads, *([tokenizer] if card.tokenizer else []), *([""] if use else []), *use])
    lines = ["## How to load it", f"```python\n{code}\n```"]
    if card.form == "run":
        lines += [_commands(card)]
    if card.form == "lora" and not card.base:
        lines.append("BASE was made in memory: save it, and use its folder.")
    return "\n\n".join([*lines, *([card.more] if card.more else [])])


def _commands(card: ModelCard) -> str:
    run = quote(one_line(card.folder, 4000))
    writes = card.use is not None and card.use.task in ("generation", "language")
    commands = [
        (f"frostline evaluate {run}", "the metrics below, measured again"),
        *([(f'frostline generate {run} --prompt "Some text."', "what it writes")] if writes else []),
        *([(f"frostline merge {run} --out merged", "a whole model for transformers")] if "merge" in card.ways else []),
        *([(f"frostline export {run} --out lora", "a LoRA folder for PEFT")] if "export" in card.ways else []),
    ]
    moved = (
        "`frostline.load` looks for the base where it was in training. If it has moved: "
        "`frostline.load(folder, base=...)`."
    )
    hint = "" if "merge" in card.ways else "\n\nIt cannot be merged into an ordinary model: frostline has to load it."
    shown = "\n".join(f"{command}  # {what}" for command, what in commands)
    return f"{moved}\n\n```\n{shown}\n```{hint}"
