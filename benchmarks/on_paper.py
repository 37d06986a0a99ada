"""What fine-tuning large models takes, on paper: memory and time per strategy and cut, from configs alone.

Frozen weights are bfloat16, trained ones float32 with AdamW, matrices multiply under bfloat16 autocast. Plans with a
frozen bottom train from the activation cache (the pass through the bottom counts in the time; read block by block, it
never takes more memory than training). Every position has a label, and the logits are made in chunks. A batch is that
of one device; several share the model by FSDP. Time is operations at a flat share of a card's peak: an assumption, not
a measurement; hours are those of training without checkpointing where that fits.

    python benchmarks/on_paper.py [MODEL ...] [--length 512] [--rows 50000] [--epochs 3] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM

from frostline.anatomy import Anatomy, find_anatomy, skeleton
from frostline.cost import Workload, full_plan, memory, predict
from frostline.plan import BlockMode, Frozen, Full, Lora, Plan

MODELS = Path(__file__).parent.parent / "recipes" / "models"
GIB = 2**30
MOST = 999
"""Batches are not looked at above this."""


@dataclass(frozen=True)
class Cards:
    """Devices of one kind: their memory in GiB, and the bfloat16 TFLOP/s of one (dense) that its maker states."""

    name: str
    devices: int
    gib: float
    tflops: float


CARDS = (Cards("1 x 24 GB", 1, 24, 165), Cards("1 x 80 GB", 1, 80, 989), Cards("8 x 80 GB", 8, 80, 989))


@dataclass(frozen=True)
class Method:
    """A strategy as a plan; `bits` rounds the frozen matrices, which goes without an activation cache."""

    name: str
    plan: Plan
    bits: int | None = None


def methods(anatomy: Anatomy) -> Iterator[Method]:
    """Full fine-tuning, LoRA, and cuts below which everything is frozen; above them blocks train whole, or LoRA."""
    count = len(anatomy.blocks)
    cuts = {f"bot{25 * quarter}": count * quarter // 4 for quarter in (1, 2, 3)} | {"top2": count - 2}
    yield Method("all", full_plan(anatomy))
    yield Method("lora", above(0, Lora(), count))
    yield Method("lora, 4 bits", above(0, Lora(), count), bits=4)
    for name, cut in cuts.items():
        yield Method(name, above(cut, Full(), count))
    for name, cut in cuts.items():
        yield Method(f"{name}+lora", above(cut, Lora(), count))
    yield Method("head", above(count, Full(), count))


def above(cut: int, mode: BlockMode, count: int) -> Plan:
    """Blocks from `cut` on train as `mode` says. With LoRA the final norm and the head stay frozen."""
    rest = Frozen() if isinstance(mode, Lora) else Full()
    return Plan(blocks=(Frozen(),) * cut + (mode,) * (count - cut), final_norm=rest, head=rest)


def work(options: argparse.Namespace, method: Method, cards: Cards, **details: Any) -> Workload:
    return Workload(
        rows=options.rows,
        length=options.length,
        num_train_epochs=options.epochs,
        devices=cards.devices,
        bf16=True,
        frozen_dtype="bfloat16",
        frozen_bits=method.bits,
        activation_cache=method.bits is None and method.plan.boundary > 0,
        loss_positions=True,
        **details,
    )


def largest_batch(method: Method, anatomy: Anatomy, workload: Workload, limit: float) -> int:
    """The most rows of a forward pass on one device with which training stays below `limit` bytes; 0: not one."""

    def fits(batch: int) -> bool:
        return (
            memory(method.plan, anatomy, workload.model_copy(update={"per_device_train_batch_size": batch})).peak
            <= limit
        )

    if not fits(1):
        return 0
    low, high = 1, 2
    while high <= MOST and fits(high):
        low, high = high, 2 * high
    while high - low > 1 and low < MOST:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def on_cards(method: Method, anatomy: Anatomy, cards: Cards, options: argparse.Namespace) -> dict[str, Any]:
    """Memory of one device at batch 1, the largest batch that fits, and the hours that it takes."""
    limit = (cards.gib - options.reserve) * GIB
    found: dict[str, Any] = {"cards": cards.name, "hours": None}
    for checkpointing in (False, True):
        workload = work(options, method, cards, batch=1, checkpointing=checkpointing)
        batch = largest_batch(method, anatomy, workload, limit)
        one = predict(method.plan, anatomy, workload)
        found["on" if checkpointing else "off"] = {
            "batch_1": asdict(one.memory),
            "largest_batch": batch,
            "gflop_per_token": one.run_flops / (options.rows * options.length * options.epochs) / 1e9,
            "run_flops_ratio": one.run_flops_ratio,
        }
        if batch and found["hours"] is None:
            speed = options.utilisation * cards.tflops * 1e12 * cards.devices
            found["hours"] = one.run_flops / speed / 3600
    found |= {"disk_bytes": one.disk_bytes, "trained": one.trainable_parameters}
    return found


def table(name: str, anatomy: Anatomy, results: dict[str, list[dict[str, Any]]]) -> Table:
    title = f"{name}: {anatomy.total_parameters / 1e9:.2f}B parameters, {len(anatomy.blocks)} blocks"
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    parts = ("weights", "gradients", "optimizer", "activations")
    headings = ("weights", "gradients", "optimizer", "saved", "peak", f"peak, {CARDS[-1].name}")
    fitting = (f"fits {cards.name}" for cards in CARDS)
    shown.add_column("strategy", no_wrap=True)
    for column in ("trained M", *headings, *fitting, "FLOPs", "GFLOP/token", "store GB"):
        shown.add_column(column, justify="right", no_wrap=True)
    for method, found in results.items():
        one, several = found[0], found[-1]
        shown.add_row(
            method,
            f"{one['trained'] / 1e6:,.1f}",
            *(_gib(one["off"]["batch_1"][part]) for part in parts),
            *map(_peaks, (one, several)),
            *map(_fits, found),
            f"{one['off']['run_flops_ratio']:.3f}",
            f"{one['off']['gflop_per_token']:.1f}",
            f"{one['disk_bytes'] / 1e9:.0f}" if one["disk_bytes"] else "",
        )
    return shown


def _gib(number: float) -> str:
    return f"{number / GIB:.1f}"


def _peaks(found: dict[str, Any]) -> str:
    return " / ".join(_gib(found[way]["batch_1"]["peak"]) for way in ("off", "on"))


def _fits(found: dict[str, Any]) -> str:
    batches = [found[way]["largest_batch"] for way in ("off", "on")]
    if not any(batches):
        return "-"
    texts = ("-" if not batch else f"{MOST}+" if batch >= MOST else str(batch) for batch in batches)
    return f"{' / '.join(texts)} {found['hours']:5.2f}h"


def main() -> None:
    known = sorted(path.parent.name for path in MODELS.glob("*/config.json"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"by default all: {', '.join(known)}")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--utilisation", type=float, default=0.4, help="share of a card's peak that training reaches")
    parser.add_argument("--reserve", type=float, default=2, help="GiB of a card that training cannot have")
    parser.add_argument("--out", type=Path, default=Path("runs/on-paper.json"))
    options = parser.parse_args()
    unknown = set(options.models) - set(known)
    if unknown:
        parser.error(f"no config of {', '.join(sorted(unknown))} in {MODELS}, which has {', '.join(known)}")
    document: dict[str, Any] = {"assumes": {k: v for k, v in vars(options).items() if k not in ("models", "out")}}
    document["cards"] = [asdict(cards) for cards in CARDS]
    console = Console(width=210)
    for name in options.models or known:
        config = AutoConfig.from_pretrained(MODELS / name)
        anatomy = find_anatomy(skeleton(config, AutoModelForCausalLM))
        results = {
            method.name: [on_cards(method, anatomy, cards, options) for cards in CARDS] for method in methods(anatomy)
        }
        document[name] = results
        console.print(table(name, anatomy, results))
    console.print(
        f"Memory: GiB of one device at batch 1 and length {options.length}; the parts of a single one, without "
        "checkpointing; saved: for the backward pass. Fits: the largest batch of a device, of which "
        f"{options.reserve:g} GiB stay free, and the hours of {options.rows:,} rows, {options.epochs:g} epochs at "
        f"{options.utilisation:.0%} of the peak. a / b: without and with checkpointing. FLOPs: of the run, relative to "
        "full fine-tuning's."
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
