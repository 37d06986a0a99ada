"""llama.cpp's own converters on what frostline writes: merged models and exported LoRA.

For each model, LoRA of two ranks is put on some blocks and given random values. Then:

    merged   `frostline merge`, converted; every matrix in the GGUF file is the one in the merged folder
    lora     `frostline export`, converted; scale B A of the file is the update that the model learned
    model    llama.cpp computes the trained model's logits, merged and with the LoRA (where `llama_cpp` is installed)

A check that fails without a reason in REASONS ends the script with status 1, and so does a reason that is no longer
needed.

    python benchmarks/peers/llama_cpp.py --checkout FOLDER [--only MODEL]

FOLDER is a checkout of ggml-org/llama.cpp; the source distribution of `llama-cpp-python` has one too, in
`vendor/llama.cpp`. Its converters run in this Python, and need `sentencepiece`. Real models are looked for under
$FROSTLINE_MODELS; the others are tiny and random, and have no tokenizer, so only their LoRA is converted.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).resolve().parent
sys.path.remove(str(HERE))  # this file has the name of llama.cpp's Python package
sys.path.insert(0, str(HERE.parents[1] / "tests"))

import frostline as fl  # noqa: E402
from architectures import tiny  # noqa: E402
from frostline.checkpoints import quiet_libraries, save_delta  # noqa: E402
from frostline.plan import Frozen, Lora, Plan  # noqa: E402

REAL = ("stories260K", "base16")
TINY = ("qwen3", "gemma3", "phi3", "gpt_neox", "gpt2", "opt")
REASONS: dict[str, str] = {
    "base16 merged": "its tokenizer is its own, and the converter takes only tokenizers that it knows",
    "gpt2 lora": "its converter transposes LoRA as it does GPT-2's matrices, but PEFT's A and B are not transposed",
    "opt lora": "llama.cpp does not know OPT",
}
"""What does not pass, and why."""


def learned(base: Path) -> Any:
    """The model in `base` with LoRA of two ranks and two scales on every other block."""
    with quiet_libraries():
        model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    depth = model.config.num_hidden_layers
    kinds = (Lora(r=3, alpha=5, targets="all"), Frozen(), Lora(r=2, alpha=6, targets="attention"), Frozen())
    blocks = tuple(kinds[index % 4] for index in range(depth))
    fl.apply(Plan(blocks=blocks, final_norm=Frozen(), head=Frozen()), model)
    random = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=random)
    return model.eval()


class Converters:
    """llama.cpp's converters, and its reader of GGUF files."""

    def __init__(self, checkout: Path) -> None:
        self._checkout = checkout
        sys.path.insert(0, str(checkout / "gguf-py"))
        from gguf import GGUFReader, dequantize

        self._reader, self._dequantize = GGUFReader, dequantize

    def convert(self, script: str, folder: Path, out: Path, *options: str | Path) -> str:
        """Convert a folder. Returns the last line of the converter's error; empty where it ended well."""
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONPATH", None)  # it needs no frostline
        arguments = (folder, "--outtype", "f32", "--outfile", out, *options)
        command = [sys.executable, str(self._checkout / script), *map(str, arguments)]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
        return "" if ended.returncode == 0 else ended.stderr.strip().splitlines()[-1]

    def read(self, file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors of a GGUF file, and its numbers and texts, by name."""
        reader = self._reader(file)
        tensors = {t.name: torch.tensor(self._dequantize(t.data, t.tensor_type)) for t in reader.tensors}
        return tensors, {name: field.contents() for name, field in reader.fields.items()}


def same_matrices(found: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> str:
    """What is amiss where the file's matrices are not, up to the order of their rows, those that are `right`.

    The converter permutes the rows of queries and keys for its own rotary embeddings.
    """
    by_size: dict[tuple[int, ...], list[Tensor]] = {}
    for tensor in right.values():
        by_size.setdefault(tuple(tensor.shape), []).append(_sorted(tensor))
    for name, tensor in found.items():
        alike = by_size.get(tuple(tensor.shape), [])
        if name != "rope_freqs.weight" and not any(torch.equal(_sorted(tensor), other) for other in alike):
            return f"{name} is not in the merged folder"
    return ""


def _sorted(tensor: Tensor) -> Tensor:
    rows = tensor.float().reshape(len(tensor), -1)
    return rows[rows.sum(-1).argsort()]


def same_updates(found: Mapping[str, Tensor], alpha: float, model: Any) -> str:
    """What is amiss where scale B A of the file is not, up to the order of rows, the update of each matrix."""
    layers = [layer for layer in model.modules() if hasattr(layer, "lora_A")]
    deltas = [(layer.get_delta_weight("default").detach(), layer.fan_in_fan_out) for layer in layers]
    right = [delta.T if transposed else delta for delta, transposed in deltas]  # [out, in]
    pairs = {name.removesuffix(".lora_a") for name in found if name.endswith(".lora_a")}
    if len(pairs) != len(layers):
        return f"it has {len(pairs)} matrices, and {len(layers)} have LoRA"
    for name in sorted(pairs):
        a, b = found[f"{name}.lora_a"], found[f"{name}.lora_b"]
        if b.shape[1] != len(a):
            return f"{name} has shapes {tuple(a.shape)} and {tuple(b.shape)}"
        update = _sorted(alpha / len(a) * b @ a)
        near = [r for r in map(_sorted, right) if r.shape == update.shape]
        if not any(torch.allclose(update, other, atol=1e-5 * float(other.abs().max())) for other in near):
            return f"the update of {name} is none that the model learned"
    return ""


def same_logits(files: Path, model: Any, tokenizer: Any) -> str:
    """What is amiss where llama.cpp does not compute the logits of `model`, merged or with the LoRA over its base.

    llama.cpp keeps keys and values in float16.
    """
    from llama_cpp import Llama

    ids = tokenizer("Once upon a time there was a little girl named Lily.")["input_ids"]
    with torch.no_grad():
        right = model(torch.tensor([ids])).logits[0]
    for file, lora in (("merged.gguf", None), ("base.gguf", str(files / "lora.gguf"))):
        llama = Llama(str(files / file), lora_path=lora, n_ctx=64, logits_all=True, verbose=False)
        llama.eval(ids)
        away = float((torch.tensor(llama.scores[: len(ids)]) - right).abs().max() / right.abs().max())
        if away > 2e-3:
            return f"{file}{' with the LoRA' if lora else ''}: logits are away by {away:.1e} of the largest"
    return ""


def checks(name: str, converters: Converters, place: Path) -> dict[str, str]:
    """Check -> what is amiss, empty where it passes, for one model."""
    base = Path(os.environ.get("FROSTLINE_MODELS", "")) / name if name in REAL else place / "base"
    if name not in REAL:
        tiny(name).save_pretrained(base)
    model = learned(base)
    save_delta(model, place / "run")
    fl.export_lora(place / "run", place / "lora")
    amiss = converters.convert("convert_lora_to_gguf.py", place / "lora", place / "lora.gguf", "--base", base)
    if not amiss:
        tensors, facts = converters.read(place / "lora.gguf")
        amiss = same_updates(tensors, float(facts["adapter.lora.alpha"]), model)
    found = {"lora": amiss}
    if name not in REAL:
        return found
    with quiet_libraries():
        merged = fl.merge(place / "run", place / "merged").folder
    for source, file in ((base, "base.gguf"), (merged, "merged.gguf")):
        found["merged"] = converters.convert("convert_hf_to_gguf.py", source, place / file)
    if not found["merged"]:
        tensors, _ = converters.read(place / "merged.gguf")
        found["merged"] = same_matrices(tensors, load_file(merged / "model.safetensors"))
        if importlib.util.find_spec("llama_cpp"):
            found["model"] = same_logits(place, model, AutoTokenizer.from_pretrained(base))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, required=True, metavar="FOLDER", help="of ggml-org/llama.cpp")
    parser.add_argument("--only", choices=(*REAL, *TINY), help="one model")
    given = parser.parse_args()
    converters = Converters(given.checkout.resolve())
    table = Table("model", "check", "", Column("why", overflow="fold"))
    wrong = False
    for name in [given.only] if given.only else (*REAL, *TINY):
        with tempfile.TemporaryDirectory() as scratch:
            found = checks(name, converters, Path(scratch))
        for check, amiss in found.items():
            reason = REASONS.get(f"{name} {check}", "")
            wrong |= bool(amiss) != bool(reason)
            note = (
                f"{amiss}: {reason or 'NO REASON IS NAMED'}" if amiss else reason and "its reason is no longer needed"
            )
            table.add_row(name, check, "fails" if amiss else "passes", escape(note))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    raise SystemExit(wrong)


if __name__ == "__main__":
    main()
