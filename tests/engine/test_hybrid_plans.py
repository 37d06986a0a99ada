"""Plans of several kinds of adapters, applied and trained: exactly what they name, as PEFT's config of them does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from architectures import BLOCKS, batch_for, tiny
from cache_cases import assert_same_training, trained
from frostline.adapters import HybridConfig
from frostline.anatomy import find_anatomy
from frostline.checkpoints import load, load_delta, merge, save_delta, trained_tensors
from frostline.cli.main import main
from frostline.core.errors import UserError
from frostline.core.seeding import derive_seed
from frostline.engine import Trainer
from frostline.loss_positions import pack_rows, use_loss_positions
from frostline.plan import BlockMode, Bottleneck, Frozen, Full, Lora, Plan, Prefix
from frostline.surgery import apply
from frostline.tasks import PackingCollator
from grids import slow_but
from hybrids import DECODERS, added, hybrid, inputs, logits, new, stir

GATED = Lora(r=2, targets="down", gate=True, dropout=0.0)
PLAIN = Lora(r=2, targets="attention", dropout=0.0)
PREFIX = Prefix(length=3)
HLPT = (GATED, GATED, GATED, PREFIX)
MIXED = (PLAIN, GATED, Full(), PREFIX)


def plan_of(*blocks: BlockMode, rest: Any = None) -> Plan:
    rest = rest or Frozen()
    return Plan(strategy="mine", blocks=blocks, embeddings=Frozen(), final_norm=rest, head=rest)


def loss_and_gradients(model: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found: Any, expected: Any) -> None:
    (loss, gradients), (own_loss, own) = found, expected
    torch.testing.assert_close(loss, own_loss, atol=0, rtol=1e-5)
    assert gradients.keys() == own.keys()
    largest = max(gradient.norm() for gradient in own.values())
    for name, gradient in own.items():
        assert (gradients[name] - gradient).norm() <= 1e-4 * max(gradient.norm(), 1e-2 * largest), name


def train(model: Any, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for seed in range(steps):
        model.train()(**batch_for(model, seed=seed)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_a_plan_is_pefts_config_of_it(name: str) -> None:
    """The same first values from the same seed, and the same outputs."""
    applied = tiny(name)
    plan = plan_of(GATED, Bottleneck(kind="series", bottleneck=4), PREFIX, Frozen())
    apply(plan, applied, seed=5)
    torch.manual_seed(derive_seed(5, "hybrid"))
    adapted = get_peft_model(tiny(name), HybridConfig.of(plan))
    assert all(torch.equal(value, added(adapted)[f"base_model.model.{key}"]) for key, value in added(applied).items())
    assert torch.equal(logits(applied), logits(adapted))
    stir(applied), stir(adapted)
    assert torch.equal(logits(applied), logits(adapted))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj", "opt"])
def test_full_training_beside_lora_and_a_prefix(name: str) -> None:
    """Exactly what the plan names trains; no layer is copied."""
    model = tiny(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    own = {id(parameter) for parameter in model.parameters()}
    block = find_anatomy(model).blocks[2]
    apply(plan_of(*MIXED), model)
    now = {id(parameter): key for key, parameter in model.named_parameters()}
    assert own <= now.keys()
    assert {now[i] for i in now.keys() - own} == set(added(model))
    wanted = set(added(model)) | {tensor.name for tensor in block.tensors}
    assert {key for key, parameter in model.named_parameters() if parameter.requires_grad} == wanted
    start = {key: value.clone() for key, value in model.state_dict().items()}
    train(model)
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, start[key])}
    silent = {key for key in wanted - moved if not model.get_parameter(key).any()}  # GPT-J's biases begin at 0
    assert moved <= wanted
    assert {key for key in wanted if ".2." not in key} <= moved
    assert len(moved) >= len(wanted) - len(silent) - 1  # OPT's bias of the keys has no gradient but rounding
    assert all(torch.equal(start[tensor.name], before[tensor.name]) for tensor in block.tensors)


@pytest.mark.parametrize("blocks", [HLPT, MIXED, (Frozen(), Bottleneck(kind="parallel", bottleneck=2), PREFIX, PREFIX)])
def test_a_delta_gives_the_model_back_and_gates_are_not_merged(blocks: Any, tmp_path: Path) -> None:
    base, run = tmp_path / "base", tmp_path / "run"
    tiny("llama").save_pretrained(base)
    model = type(tiny("llama")).from_pretrained(base)
    apply(plan_of(*blocks), model, seed=3)
    train(model)
    save_delta(model, run)
    again = load(run)
    ours, theirs = dict(model.named_parameters()), dict(again.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert torch.equal(logits(model), logits(again))
    fresh = type(model).from_pretrained(base)
    load_delta(fresh, run)
    assert torch.equal(logits(model), logits(fresh))
    with pytest.raises(UserError, match=r"(gate|prefix|adapter|activation).* \(nothing was merged\)$") as caught:
        merge(run, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_command_refuses_to_merge_gates_with_status_2(tmp_path: Path, capsys: Any) -> None:
    tiny("llama").save_pretrained(tmp_path / "base")
    model = type(tiny("llama")).from_pretrained(tmp_path / "base")
    apply(plan_of(*HLPT), model)
    save_delta(model, tmp_path / "run")
    capsys.readouterr()
    status = main(["merge", str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err.strip()
    assert status == 2
    assert len(error.splitlines()) == 1
    assert "the gate of its LoRA depends on the input" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", DECODERS)
def test_packed_rows_have_prefixes_as_padded_ones_have(name: str, implementation: str) -> None:
    if (name, implementation) == ("gptj", "sdpa"):
        pytest.skip("GPT-J has no sdpa")
    model = hybrid(new(name, implementation)).get_base_model()
    random = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 128, (length,), generator=random).tolist() for length in (5, 9, 2, 7)]
    encoded = [{"input_ids": row, "labels": row, "example_id": str(i)} for i, row in enumerate(rows)]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    mask = (ids > 0).long()
    padded = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    expected = loss_and_gradients(model, padded)
    pack_rows(model, encoded, PackingCollator())
    assert_close(loss_and_gradients(model, PackingCollator()(encoded)), expected)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(("name", "task"), [("llama", "causal"), ("gpt2", "causal"), ("bert", "classification")])
@pytest.mark.parametrize("mode", [PREFIX, Prefix(length=3, gate="output"), GATED, Prefix(length=3, gate="none")])
def test_the_last_block_where_it_is_read(mode: Any, name: str, task: str, implementation: str) -> None:
    """Loss and gradients are those of the whole block, which the feed-forward no longer sees."""
    model = tiny(name, task, tied=False, attn_implementation=implementation)
    anatomy = find_anatomy(model)
    apply(plan_of(Frozen(), GATED, Full(), mode, rest=Full()), model)
    stir(model)
    batch = batch_for(model, batch=3, length=12)
    if task == "causal":
        batch["labels"][:, :7] = -100
    expected = loss_and_gradients(model, batch)
    seen: list[int] = []
    feed_forward = [linear.name for linear in anatomy.blocks[BLOCKS - 1].linears if str(linear.role) == "feed_forward"]
    model.get_submodule(feed_forward[0]).register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    positions = use_loss_positions(model, anatomy, batch, chunk=2)
    assert positions.last_block, positions.notices
    seen.clear()
    assert_close(loss_and_gradients(model, batch), expected)
    assert max(seen) < 12


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    return TrainingArguments(
        folder, max_steps=4, per_device_train_batch_size=4, learning_rate=1e-2, report_to=[], logging_steps=1,
        use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, **{"save_strategy": "no", **options},
    )  # fmt: skip


def rows_of(model: Any) -> list[dict[str, Tensor]]:
    batch = batch_for(model, batch=16)
    return [{key: value[i] for key, value in batch.items()} for i in range(16)]


@pytest.mark.parametrize(("blocks", "bf16"), [(HLPT, True), (MIXED, False)])
def test_the_trainer_with_checkpointing_ends_where_it_ends_without(blocks: Any, bf16: bool, tmp_path: Path) -> None:
    def weights(**options: Any) -> dict[str, Tensor]:
        model = tiny("llama")
        args = arguments(tmp_path, bf16=bf16, **options)
        Trainer(model, args, plan=plan_of(*blocks), train_dataset=rows_of(model)).train()
        return {key: p.detach() for key, p in model.named_parameters() if p.requires_grad}

    plain = weights()
    checkpointed = weights(activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": False})
    for key, value in plain.items():
        assert torch.equal(checkpointed[key], value), f"{key}: the same operations, run again, give the same bits"


def test_over_a_bfloat16_base_what_is_added_trains_in_float32() -> None:
    model = tiny("llama").to(torch.bfloat16)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    apply(plan_of(*HLPT), model)
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert trained.keys() == added(model).keys()
    assert {p.dtype for p in trained.values()} == {torch.float32}
    start = {key: value.clone() for key, value in trained.items()}
    train(model)
    assert all(not torch.equal(value, start[key]) for key, value in trained.items())
    frozen = {key.replace(".base_layer.", "."): p for key, p in model.named_parameters() if not p.requires_grad}
    assert all(torch.equal(value, before[key]) and value.dtype == torch.bfloat16 for key, value in frozen.items())
    assert logits(model, **inputs(model)).dtype == torch.bfloat16


@pytest.mark.parametrize("name", slow_but(["llama"], ["llama", "gpt2", "bert"]))
@pytest.mark.parametrize("top", [PREFIX, GATED, Bottleneck(kind="parallel", bottleneck=4)])
def test_from_the_activation_cache_it_is_the_same_training(name: str, top: Any, tmp_path: Path) -> None:
    with_it, without = (trained(tmp_path, name, mode, top=top) for mode in ("on", "off"))
    assert_same_training(with_it, without)


def test_killed_and_resumed_is_never_killed(tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:
                raise KeyboardInterrupt

    def trainer(folder: str) -> Trainer:
        model = tiny("llama", dropout=0.1)
        options = {"save_strategy": "steps", "save_steps": 2}
        return Trainer(
            model, arguments(tmp_path / folder, **options), plan=plan_of(*MIXED), train_dataset=rows_of(model)
        )

    whole = trainer("whole")
    whole.train()
    killed = trainer("killed")
    killed.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = trainer("killed")
    resumed.train(resume_from_checkpoint=True)
    expected, found = trained_tensors(whole.model), trained_tensors(resumed.model)
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[key]) for key, value in expected.items())
