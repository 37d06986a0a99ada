"""Several devices: what FSDP shards and gathers, by hand, and against torch with collectives in name only."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as distributed
from cost_cases import named_plans, small, training, whole_batch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from allocator import live_bytes_at_peak
from architectures import tiny
from frostline.anatomy import Anatomy, find_anatomy
from frostline.cost import EvaluationWork, Workload, evaluation_memory, memory, predict, run_flops
from frostline.plan import Plan
from frostline.surgery import apply

DEVICES = 4
WIDE = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 8, "vocab_size": 1024}


def plan_of(name: str) -> tuple[Plan, Anatomy]:
    anatomy = find_anatomy(small("llama"))
    return named_plans(anatomy)[name], anatomy


def test_devices_share_the_rows() -> None:
    plan, anatomy = plan_of("bot50")
    work = Workload(rows=1000, per_device_train_batch_size=5, num_train_epochs=2, activation_cache=True)
    shared = work.model_copy(update={"devices": 4})
    assert (work.steps, shared.steps) == (400, 100)
    assert run_flops(plan, anatomy, shared) == pytest.approx(run_flops(plan, anatomy, work))
    alone, together = (predict(plan, anatomy, each) for each in (work, shared))
    assert together.run_flops_ratio == pytest.approx(alone.run_flops_ratio)
    assert together.disk_bytes == alone.disk_bytes == 1000 * 128 * 32 * 4


@pytest.mark.parametrize("name", ["all", "bot50", "lora"])
def test_shares(name: str) -> None:
    plan, anatomy = plan_of(name)
    alone, shared = (
        memory(plan, anatomy, Workload(per_device_train_batch_size=4, length=16, devices=n)) for n in (1, 8)
    )
    for part in ("weights", "gradients", "optimizer"):
        assert getattr(shared, part) == getattr(alone, part) / 8
    for part in ("activations", "logits"):
        assert getattr(shared, part) == getattr(alone, part)


def test_what_is_gathered() -> None:
    """A block of width 32: queries and output, keys and values, three of the feed-forward, two norms."""
    plan, anatomy = plan_of("bot50")
    block = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
    root, head = 2 * 128 * 32 + 32, 128 * 32 + 32
    # In backward, two blocks and the gradients of two; blocks 2 and 3 train.
    assert memory(plan, anatomy, Workload(devices=2)).gathered == 4 * (root + 2 * block + 2 * block + head)
    # Accumulated gradients are shared out with the last batch; in forward there are copies of two blocks.
    several = memory(plan, anatomy, Workload(devices=2, gradient_accumulation_steps=2)).gathered
    assert several == 4 * (root + 3 * block + head + 2 * block)
    frozen, _ = plan_of("head")
    assert memory(frozen, anatomy, Workload(devices=2)).gathered == 4 * (root + 3 * block)
    assert memory(frozen, anatomy, Workload()).gathered == 0


def test_rows_that_train_leave_their_matrix_whole_on_each_device() -> None:
    """A parametrised matrix is a buffer, which FSDP does not shard."""
    plan, anatomy = plan_of("rows of the top")
    matrices = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
    alone, shared = (memory(plan, anatomy, Workload(devices=n)).weights for n in (1, 4))
    assert shared == (alone - 4 * matrices) / 4 + 4 * matrices


@pytest.fixture
def in_name_only() -> Iterator[None]:
    """Devices of which only this one is there: collectives take their memory and move nothing."""
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=DEVICES)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("in_name_only")
@pytest.mark.parametrize(
    "options",
    [{}, {"per_device_train_batch_size": 8, "length": 64}, {"activation_checkpointing": True}, {"bf16": True}],
)
@pytest.mark.parametrize("name", ["all", "bot50", "lora", "head"])
def test_against_fully_shard(name: str, options: dict[str, object]) -> None:
    model = tiny("llama", **WIDE)
    model.set_attn_implementation("sdpa")
    anatomy = find_anatomy(model)
    plan = named_plans(anatomy)[name]
    apply(plan, model)
    work = Workload(**{"per_device_train_batch_size": 2, "length": 32, "devices": DEVICES, **options})
    if work.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    mesh = init_device_mesh("cpu", (DEVICES,))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if work.bf16 else MixedPrecisionPolicy()
    for module in (*model.model.layers, model):
        fully_shard(module, mesh=mesh, mp_policy=policy)
    batch = whole_batch(model, work.per_device_train_batch_size, work.length)
    step, optimizer = training(model, lambda: batch, work.bf16)
    step()  # the optimizer's state is there from the first step on
    kept = [*model.parameters(), *(item for state in optimizer.state.values() for item in state.values())]
    own = sum(tensor.to_local().nbytes for tensor in kept if hasattr(tensor, "to_local"))
    found = own + live_bytes_at_peak(step)
    assert memory(plan, anatomy, work).peak / found == pytest.approx(1.04, abs=0.06)


@pytest.mark.usefixtures("in_name_only")
@pytest.mark.parametrize("name", ["all", "bot50", "lora"])
def test_against_ddp(name: str) -> None:
    """Two steps: after the first, DDP makes its buckets anew."""
    model = tiny("llama", **WIDE)
    model.set_attn_implementation("sdpa")
    anatomy = find_anatomy(model)
    plan = named_plans(anatomy)[name]
    apply(plan, model)
    batch = whole_batch(model, 8, 32)

    def unsummed(_, bucket):  # type: ignore[no-untyped-def] # DDP reads annotations as objects
        done = torch.futures.Future[torch.Tensor]()
        done.set_result(bucket.buffer())
        return done

    def train() -> None:
        wrapped = DistributedDataParallel(model)
        wrapped.register_comm_hook(None, unsummed)
        step, _ = training(wrapped, lambda: batch)
        step()
        step()

    found = sum(tensor.nbytes for tensor in model.parameters()) + live_bytes_at_peak(train)
    work = Workload(per_device_train_batch_size=8, length=32)
    alone, together = memory(plan, anatomy, work), memory(plan, anatomy, work.model_copy(update={"processes": DEVICES}))
    trained = sum(tensor.nbytes for tensor in model.parameters() if tensor.requires_grad)
    assert (alone.buckets, together.buckets) == (0, trained)
    assert together.peak == alone.peak + trained == pytest.approx(found, rel=0.03)


def test_an_evaluation_has_the_whole_model_on_each_device() -> None:
    plan, anatomy = plan_of("all")
    work = EvaluationWork(4, 16, 16, anatomy.vocab_size)
    alone, shared, side = (Workload(**given) for given in ({}, {"devices": 4}, {"processes": 4}))
    kept = memory(plan, anatomy, alone)
    found = evaluation_memory(plan, anatomy, alone, work)
    assert evaluation_memory(plan, anatomy, side, work) == found + kept.gradients
    assert evaluation_memory(plan, anatomy, shared, work) == found + kept.weights / 4 - kept.optimizer * 3 / 4
