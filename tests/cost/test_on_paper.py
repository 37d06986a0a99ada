"""Published models, from the configs among the recipes: parameters and bytes by hand arithmetic."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from frostline.anatomy import Anatomy, find_anatomy, skeleton
from frostline.cost import Workload, full_plan, memory, predict, step_flops, total_parameters, trainable_parameters
from frostline.plan import BlockMode, Frozen, Full, Lora, Plan

RECIPES = Path(__file__).parents[2] / "recipes" / "models"
VOCABULARY = 32000


@cache
def anatomy_of(name: str) -> Anatomy:
    return find_anatomy(skeleton(AutoConfig.from_pretrained(RECIPES / name), AutoModelForCausalLM))


def cut(anatomy: Anatomy, boundary: int, mode: BlockMode) -> Plan:
    rest = Frozen() if isinstance(mode, Lora) else Full()
    above = len(anatomy.blocks) - boundary
    return Plan(blocks=(Frozen(),) * boundary + (mode,) * above, final_norm=rest, head=rest)


# Attention's four matrices, the three of the feed-forward, two norms.
BLOCK_7B = 4 * 4096 * 4096 + 3 * 4096 * 11008 + 2 * 4096
BLOCK_13B = 4 * 5120 * 5120 + 3 * 5120 * 13824 + 2 * 5120
BLOCK_70B = 2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672 + 2 * 8192
# Queries and output, keys and values, two norms of heads, 128 experts of three matrices, router, two norms.
BLOCK_QWEN = 2 * 2048 * 4096 + 2 * 2048 * 512 + 2 * 128 + 128 * 3 * 2048 * 768 + 128 * 2048 + 2 * 2048

PARAMETERS = {
    "llama-2-7b": 2 * VOCABULARY * 4096 + 32 * BLOCK_7B + 4096,
    "llama-2-13b": 2 * VOCABULARY * 5120 + 40 * BLOCK_13B + 5120,
    "llama-2-70b": 2 * VOCABULARY * 8192 + 80 * BLOCK_70B + 8192,
    "qwen3-30b-a3b": 2 * 151936 * 2048 + 48 * BLOCK_QWEN + 2048,
}


def test_every_config_is_counted() -> None:
    assert {path.parent.name for path in RECIPES.glob("*/config.json")} == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name: str) -> None:
    anatomy = anatomy_of(name)
    assert total_parameters(full_plan(anatomy), anatomy) == PARAMETERS[name]
    millions = {"llama-2-7b": 6738, "llama-2-13b": 13016, "llama-2-70b": 68977, "qwen3-30b-a3b": 30532}
    assert round(PARAMETERS[name] / 1e6) == millions[name]  # as published


@pytest.mark.parametrize("name", PARAMETERS)
def test_full_fine_tuning_takes_sixteen_bytes_a_parameter(name: str) -> None:
    """Weight 4, gradient 4, AdamW 8, whatever the type of the checkpoint."""
    anatomy, count = anatomy_of(name), PARAMETERS[name]
    found = memory(
        full_plan(anatomy), anatomy, Workload(per_device_train_batch_size=1, bf16=True, frozen_dtype="bfloat16")
    )
    assert (found.weights, found.gradients, found.optimizer) == (4 * count, 4 * count, 8 * count)
    assert found.gathered == 0 and 16 * count < found.peak < 16.5 * count


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        # rank 8 beside queries and values: 8 (in + out) each, in half of the blocks
        ("llama-2-7b", 16 * 8 * 2 * (4096 + 4096)),
        ("llama-2-13b", 20 * 8 * 2 * (5120 + 5120)),
        ("llama-2-70b", 40 * 8 * ((8192 + 8192) + (8192 + 1024))),
        # all four of attention
        ("qwen3-30b-a3b", 24 * 8 * (2 * (2048 + 4096) + 2 * (2048 + 512))),
    ],
)
def test_lora_above_half_of_the_blocks(name: str, trained: int) -> None:
    anatomy = anatomy_of(name)
    plan = cut(anatomy, len(anatomy.blocks) // 2, Lora())
    assert trainable_parameters(plan, anatomy) == trained
    found = memory(plan, anatomy, Workload(per_device_train_batch_size=1, frozen_dtype="bfloat16"))
    assert found.weights == 2 * PARAMETERS[name] + 4 * trained
    assert (found.gradients, found.optimizer) == (4 * trained, 8 * trained)


def test_a_cold_bottom_of_13b() -> None:
    """bot75: blocks 30-39, final norm and head train; the 30 below and the embeddings leave memory for the store."""
    anatomy = anatomy_of("llama-2-13b")
    work = Workload(
        rows=50_000, length=512, num_train_epochs=3, bf16=True, frozen_dtype="bfloat16", activation_cache=True
    )
    found = predict(cut(anatomy, 30, Full()), anatomy, work)
    trained = 10 * BLOCK_13B + 5120 + VOCABULARY * 5120
    assert found.memory.weights == 4 * trained
    assert found.disk_bytes == 50_000 * 512 * 5120 * 2 == found.document()["disk_bytes"]
    assert found.memory.read_ahead == 2 * 32 * 512 * 5120 * 2
    assert predict(cut(anatomy, 30, Full()), anatomy, work.plain).disk_bytes == 0


def test_operations_of_7b_per_token() -> None:
    """Six for each number of the blocks' matrices and the head, and twelve per key for the products of attention."""
    anatomy = anatomy_of("llama-2-7b")
    matrices = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008) + VOCABULARY * 4096
    step = step_flops(full_plan(anatomy), anatomy, Workload(per_device_train_batch_size=3, length=512))
    assert step.total == 3 * 512 * (6 * matrices + 32 * 12 * 4096 * 512)


def test_a_token_passes_8_of_128_experts() -> None:
    anatomy = anatomy_of("qwen3-30b-a3b")
    block = 2 * 2048 * 4096 + 2 * 2048 * 512 + 128 * 2048 + 8 * 3 * 2048 * 768
    step = step_flops(full_plan(anatomy), anatomy, Workload(per_device_train_batch_size=1, length=100))
    assert step.blocks[7].forward == 100 * (2 * block + 4 * 4096 * 100)


def test_shares_of_70b_on_8_devices() -> None:
    anatomy, count = anatomy_of("llama-2-70b"), PARAMETERS["llama-2-70b"]
    work = Workload(per_device_train_batch_size=1, length=512, bf16=True, frozen_dtype="bfloat16", devices=8)
    found = memory(full_plan(anatomy), anatomy, work)
    assert (found.weights, found.gradients, found.optimizer) == (count * 4 // 8, count * 4 // 8, count * 8 // 8)
    # In bfloat16: embeddings, norm and head; two blocks; the gradients of two blocks, of norm and head.
    table = VOCABULARY * 8192
    assert found.gathered == 2 * (2 * table + 8192) + 2 * 2 * BLOCK_70B + 2 * 2 * BLOCK_70B + 2 * (table + 8192)
    # At the end every share of a gradient is there, and the activations of one block at the most.
    assert 16 * count // 8 < found.peak < 16 * count // 8 + found.gathered + found.activations // 80


def test_shares_of_a_70b_half_frozen() -> None:
    anatomy = anatomy_of("llama-2-70b")
    table = VOCABULARY * 8192
    trained = 40 * BLOCK_70B + 8192 + table
    plan = cut(anatomy, 40, Full())
    work = Workload(per_device_train_batch_size=1, length=512, bf16=True, frozen_dtype="bfloat16", devices=8)
    assert memory(plan, anatomy, work).weights == (4 * trained + 2 * (40 * BLOCK_70B + table)) // 8
    cached = work.model_copy(update={"activation_cache": True})
    assert memory(plan, anatomy, cached).weights == 4 * trained // 8


@pytest.mark.parametrize(("bits", "each"), [(8, 1.0), (4, 1 / 2 + 1 / 64 + 4 / (64 * 256))])
def test_a_rounded_base_of_7b(bits: int, each: float) -> None:
    anatomy = anatomy_of("llama-2-7b")
    plan = cut(anatomy, 0, Lora())
    work = Workload(per_device_train_batch_size=1, bf16=True, frozen_dtype="bfloat16", frozen_bits=bits)
    matrices = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    rows = 32 * (4 * 4096 + 2 * 11008 + 4096)
    tables = 4 * rows if bits == 8 else 32 * 7 * 1256
    others = 2 * (PARAMETERS["llama-2-7b"] - matrices) + 4 * trainable_parameters(plan, anatomy)
    found = memory(plan, anatomy, work)
    assert found.weights == pytest.approx(each * matrices + tables + others, abs=1)
    assert found.gathered == 2 * 4096 * 11008 * (2 if bits == 8 else 1)
