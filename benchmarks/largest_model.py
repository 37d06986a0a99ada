"""How large a model can be whose top is tuned on a machine of little memory: by formula, from configs alone.

With the bottom read block by block, memory holds the larger of two: the top, one block and (with the first block)
the embeddings while rows pass the bottom; and what training above the boundary takes. The head is frozen, in
bfloat16; batches are 4 x 512 tokens, half of them labelled, under bfloat16 autocast with checkpointing.

    python benchmarks/largest_model.py
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig

from frostline.anatomy import find_anatomy, skeleton
from frostline.cost import Workload, caching_flops, memory
from frostline.plan import Frozen, Full, Lora, Plan

# width, feed-forward width, blocks, heads, key-value heads, vocabulary
MODELS = {
    "Llama-2-7B": (4096, 11008, 32, 32, 32, 32000),
    "Llama-2-13B": (5120, 13824, 40, 40, 40, 32000),
    "Llama-3-70B": (8192, 28672, 80, 64, 8, 128256),
    "Llama-3.1-405B": (16384, 53248, 126, 128, 8, 128256),
}
TOPS = {"1 block, all of it": (Full(), 1), "1 block, LoRA r=8": (Lora(r=8), 1), "4 blocks, LoRA r=8": (Lora(r=8), 4)}


def main() -> None:
    table = Table(
        "model", "bfloat16 GB", "one block GB", "what trains", "weights GB", "peak GB", "caching pass PFLOP/1M tokens"
    )
    for name, (width, inner, blocks, heads, groups, vocabulary) in MODELS.items():
        config = LlamaConfig(
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=blocks,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            vocab_size=vocabulary,
            tie_word_embeddings=False,
        )
        anatomy = find_anatomy(skeleton(config, AutoModelForCausalLM))
        for what, (mode, count) in TOPS.items():
            plan = Plan(blocks=(Frozen(),) * (blocks - count) + (mode,) * count, final_norm=Frozen(), head=Frozen())
            work = Workload(
                rows=1953,
                per_device_train_batch_size=4,
                length=512,
                bf16=True,
                frozen_dtype="bfloat16",
                activation_cache=True,
                loss_positions=True,
                label_share=0.5,
                activation_checkpointing=True,
            )
            need = memory(plan, anatomy, work)
            block = 2 * anatomy.blocks[0].parameters
            embeddings = 2 * sum(tensor.numel for tensor in anatomy.embeddings)
            peak = max(need.peak, need.weights + block + embeddings)
            table.add_row(
                name,
                f"{2 * anatomy.total_parameters / 1e9:.1f}",
                f"{block / 1e9:.1f}",
                what,
                f"{need.weights / 1e9:.1f}",
                f"{peak / 1e9:.1f}",
                f"{caching_flops(plan, anatomy, work) / 1e15:.0f}",
            )
        table.add_section()
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
