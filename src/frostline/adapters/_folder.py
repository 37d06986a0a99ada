"""What a folder of `HybridConfig` is to others: an ordinary LoRA folder, or one whose README says what it needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peft import LoraConfig

from frostline.adapters._kind import AdapterKind
from frostline.adapters._lora import LoraKind
from frostline.anatomy import Anatomy, Block
from frostline.core.files import read_text, write_text
from frostline.plan import Adding

_NOTE = """\
> **Import frostline before you load this adapter.** It is a `HybridConfig`, which PEFT knows only then; without it,
> PEFT ends with `KeyError: 'HYBRID'`.
>
> ```python
> import frostline.adapters
> from peft import PeftModel
>
> model = PeftModel.from_pretrained(base, "this folder")
> ```

"""


def ordinary_lora(members: Sequence[tuple[AdapterKind[Adding], Block]], anatomy: Anatomy) -> LoraConfig | None:
    """PEFT's own config that does the same; None where the adapters are more than LoRA, or differ in dropout."""
    lora = [(kind, block) for kind, block in members if isinstance(kind, LoraKind) and kind.lora_scale is not None]
    if len(lora) < len(members) or len({kind.mode.dropout for kind, _ in lora}) > 1:
        return None
    (adapter,) = LoraKind.peft_adapters(lora, anatomy)
    config: LoraConfig = adapter.config
    return config


def note_import(folder: Path, needed: bool) -> None:
    """Begin the folder's README.md with the note that frostline is needed, or take the note away where it is not."""
    path = folder / "README.md"
    text = read_text(path, "README.md") if path.exists() else ""
    plain = text.replace(_NOTE, "")
    head, end, body = plain.partition("\n---\n") if plain.startswith("---\n") else ("", "", plain)
    wanted = f"{head}{end}{_NOTE}{body}" if needed else plain
    if wanted != text:
        write_text(path, wanted)
