"""The tables of docs/cluster.md: what an activation cache costs on 1 to 1,024 devices, on paper.

One device computes at a flat share of its peak. Eight devices are a node, with one path to a shared file system and one
to other nodes. Rows pass the frozen bottom once (the fill), and the top trains from the cache, whose states are read in
every epoch. Gradients of the trained tensors are summed over all devices in each step (a ring, in bfloat16). A stage
takes as long as its slowest part: they overlap at best, so real figures are lower.

    python benchmarks/cluster.py [--tokens 1e9] [--epochs 3] [--strategy bot50] [--length 1024]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from transformers import LlamaConfig, LlamaForCausalLM

from frostline.anatomy import find_anatomy, skeleton
from frostline.cost import Workload, bottom_flops, memory, predict, step_flops
from frostline.run import make_plan

MODELS = {
    "7B": LlamaConfig(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32),
    "70B": LlamaConfig(
        vocab_size=128256,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    ),
}
DEVICES = (1, 8, 64, 1024)
SEQUENCES = 8
"""Rows of a step on each device."""


@dataclass(frozen=True)
class Machines:
    """What is assumed, in units of 1e9 bytes or 1e12 operations a second."""

    tflops: float = 400.0  # a device with a peak of 989 in bfloat16, at 40 %
    node: int = 8
    storage: float = 5.0  # of one node, to and from the shared file system
    shared: float = 100.0  # of that file system, for all nodes together
    network: float = 50.0  # of one node, to others
    inside: float = 200.0  # between the devices of a node


@dataclass(frozen=True)
class Stage:
    """Seconds of the parts of a stage; they overlap."""

    compute: float
    storage: float
    network: float

    @property
    def seconds(self) -> float:
        return max(self.compute, self.storage, self.network)

    def __str__(self) -> str:
        limit = max(("compute", "storage", "network"), key=lambda name: getattr(self, name))
        hours = self.seconds / 3600
        return f"{hours:,.0f} h ({limit})" if hours >= 100 else f"{hours:.2g} h ({limit})"


def storage_seconds(amount: float, devices: int, at: Machines) -> float:
    nodes = max(1, devices / at.node)
    return amount / 1e9 / min(nodes * at.storage, at.shared)


def gradient_seconds(trained_bytes: float, devices: int, at: Machines) -> float:
    """A ring sends each byte twice; between nodes, the devices of a node share its path."""
    if devices == 1:
        return 0.0
    speed = at.inside if devices <= at.node else at.network
    return 2 * trained_bytes / 1e9 / speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=1e9)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--strategy", default="bot50")
    args = parser.parse_args()
    at, rows = Machines(), int(args.tokens / args.length)
    print(
        "| model | cache | a device's memory in training | fill, operations | training, operations | plain training |"
    )
    print("|---|--:|--:|--:|--:|--:|")
    table = []
    for name, config in MODELS.items():
        bare = skeleton(config, LlamaForCausalLM)
        anatomy, plan = find_anatomy(bare), make_plan(bare, args.strategy)
        cached = Workload(
            rows=rows,
            length=args.length,
            per_device_train_batch_size=SEQUENCES,
            num_train_epochs=args.epochs,
            bf16=True,
            frozen_dtype="bfloat16",
            activation_checkpointing=True,
            activation_cache=True,
        )
        plain = cached.model_copy(update={"activation_cache": False})
        steps = rows / SEQUENCES * args.epochs
        found = predict(plan, anatomy, cached)
        below, step, whole = (
            bottom_flops(plan, anatomy, plain),
            step_flops(plan, anatomy, cached).total,
            step_flops(plan, anatomy, plain).total,
        )
        print(
            f"| {name} | {found.disk_bytes / 1e12:.2f} TB | {memory(plan, anatomy, cached).peak / 2**30:.0f} GiB "
            f"| {below:.2g} | {step * steps:.2g} | {whole * steps:.2g} |"
        )
        for devices in DEVICES:
            fill = Stage(below / devices / at.tflops / 1e12, storage_seconds(found.disk_bytes, devices, at), 0.0)
            train = Stage(
                step * steps / devices / at.tflops / 1e12,
                storage_seconds(args.epochs * found.disk_bytes, devices, at),
                steps / devices * gradient_seconds(2 * found.trainable_parameters, devices, at),
            )
            without = Stage(
                whole * steps / devices / at.tflops / 1e12,
                0.0,
                steps / devices * gradient_seconds(2 * found.trainable_parameters, devices, at),
            )
            share = (fill.seconds + train.seconds) / without.seconds
            written = found.disk_bytes / 1e9 / fill.compute
            read = args.epochs * found.disk_bytes / 1e9 / train.compute
            table.append(
                f"| {name} | {devices:,} | {fill} | {train} | {without} | {share:.2f} | {written:,.1f} | {read:,.1f} |"
            )
    print()
    print("| model | devices | fill | training | plain training | with the cache / plain | GB/s written | GB/s read |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    print("\n".join(table))


if __name__ == "__main__":
    main()
