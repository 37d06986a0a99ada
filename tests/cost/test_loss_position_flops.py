"""Operations where only what the loss reads is computed: against a real step, and by hand."""

from __future__ import annotations

import pytest
import torch
from cost_cases import named_plans, small, whole_batch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from architectures import tiny
from frostline.anatomy import Anatomy, find_anatomy
from frostline.cost import Flops, Workload, step_flops
from frostline.loss_positions import use_loss_positions
from frostline.plan import Plan
from frostline.surgery import apply
from grids import slow_but

BATCH, LENGTH, READ = 2, 12, 3
N, M = BATCH * LENGTH, BATCH * READ
READS = Workload(per_device_train_batch_size=BATCH, length=LENGTH, label_share=READ / LENGTH, loss_positions=True)

PLANS = ["all", "bot50", "top50", "lora", "lora on all of the top", "attention of the top", "rows of the top", "head"]
DECODERS = [
    "llama",
    "gemma2",
    "gpt2",
    "gpt_neox",
    "gptj",
    "minicpm3",
    "mixtral",
    "olmo2",
    "opt",
    "phi",
    "phi3",
    "qwen3",
]


def counted(model: PreTrainedModel, plan: Plan, checkpointing: bool = False) -> int:
    """Operations of a step whose last `READ` positions carry the labels that the loss reads."""
    anatomy = apply(plan, model).anatomy
    model.train()
    model.config._experts_implementation = "eager"
    batch = whole_batch(model, BATCH, LENGTH)
    if batch["labels"].dim() == 2:
        batch["labels"] = torch.where(torch.arange(LENGTH) < LENGTH - READ, -100, batch["input_ids"])
    use_loss_positions(model, anatomy, batch, exact=False)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    with FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("family", slow_but(["llama", "mixtral"], DECODERS))
def test_decoders(family: str) -> None:
    anatomy = find_anatomy(small(family))
    for name in PLANS:
        plan = named_plans(anatomy)[name]
        predicted = step_flops(plan, anatomy, READS).total
        assert predicted == pytest.approx(counted(small(family), plan), rel=0.001), name


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "llama", "gpt2"])
def test_classifiers_read_one_position(family: str) -> None:
    def make() -> PreTrainedModel:
        model = tiny(family, "classification")
        model.set_attn_implementation("eager")
        return model

    anatomy = find_anatomy(make())
    for name in ("all", "bot75"):
        plan = named_plans(anatomy)[name]
        predicted = step_flops(plan, anatomy, READS).total
        assert predicted == pytest.approx(counted(make(), plan), rel=0.001), name


def test_an_encoder_decoder_reads_in_its_decoder() -> None:
    anatomy = find_anatomy(small("t5"))
    for name in ("all", "bot50", "top50", "head"):
        plan = named_plans(anatomy)[name]
        assert step_flops(plan, anatomy, READS).total == pytest.approx(counted(small("t5"), plan), rel=0.001), name


@pytest.mark.parametrize("family", ["gptj", "deberta-v2"])
def test_a_block_whose_attention_is_its_own_runs_whole(family: str) -> None:
    anatomy = find_anatomy(small(family))
    plan = named_plans(anatomy)["all"]
    assert step_flops(plan, anatomy, READS).blocks == step_flops(plan, anatomy, READS.plain).blocks


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_checkpointing(family: str) -> None:
    anatomy = find_anatomy(small(family))
    plan = named_plans(anatomy)["bot50"]
    predicted = step_flops(plan, anatomy, READS.model_copy(update={"activation_checkpointing": True})).total
    assert predicted == pytest.approx(counted(small(family), plan, checkpointing=True), rel=0.001)


def last_block(family: str) -> tuple[Anatomy, Flops, Flops]:
    """The last block's operations, trained, and the head's."""
    anatomy = find_anatomy(small(family))
    step = step_flops(named_plans(anatomy)["bot50"], anatomy, READS)
    return anatomy, step.blocks[-1], step.head


def test_by_hand() -> None:
    anatomy, block, head = last_block("llama")
    d, inner, keys = 32, 64, 16
    everywhere = 2 * (2 * N * d * keys)
    read = 2 * (2 * M * d * d) + 3 * (2 * M * d * inner)
    products = 2 * (2 * M * LENGTH * d)
    assert block == Flops(everywhere + read + products, everywhere + read + 2 * products, everywhere + read)
    scores = 2 * M * d * anatomy.vocab_size
    assert head == Flops(scores, scores, scores)


def test_a_matrix_that_makes_all_three_runs_twice() -> None:
    _, block, _ = last_block("gpt2")
    d = 32
    fused = 2 * (N + M) * d * 3 * d
    read = 2 * M * d * d + 2 * (2 * M * d * 4 * d)
    assert block.forward == fused + read + 2 * (2 * M * LENGTH * d)
    assert block.weight_gradient == fused + read


def test_blocks_before_the_last_run_whole() -> None:
    anatomy = find_anatomy(small("llama"))
    plan = named_plans(anatomy)["all"]
    assert step_flops(plan, anatomy, READS).blocks[:-1] == step_flops(plan, anatomy, READS.plain).blocks[:-1]
