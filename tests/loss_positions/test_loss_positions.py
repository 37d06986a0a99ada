"""Only what the loss reads: the same loss and gradients as the model's own forward, at fewer positions."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainingArguments

from architectures import BLOCKS, batch_for, decoder_names, encoder_names, natural_task, tiny
from frostline.anatomy import find_anatomy, get_block
from frostline.loss_positions import LossPositions, LossRule, use_loss_positions
from frostline.plan import Frozen, Full, Lora, Plan
from frostline.surgery import apply
from tolerances import after_sgd

OWN_ATTENTION = {"gptj", "deberta-v2"}
CASES = [
    *((name, task) for name in decoder_names for task in ("causal", "classification")),
    *((name, task) for name in encoder_names for task in ("classification", "masked")),
    ("t5", "seq2seq"),
]
RULES = {"causal": {LossRule.BEFORE_LABELS}, "masked": {LossRule.LABELS}, "seq2seq": {LossRule.LABELS}}
POOLED = {LossRule.FIRST, LossRule.LAST_TOKEN}


def batch_of(model: Any, side: str = "right", length: int = 12) -> dict[str, torch.Tensor]:
    """Three rows of 12 tokens, the last padded by 2; labels at the last tokens, fewer in the second row."""
    batch = batch_for(model, batch=3, length=length)
    if side == "left":
        batch = {key: value.roll(2, 1) if value.dim() == 2 else value for key, value in batch.items()}
        batch["input_ids"][:-1], batch["attention_mask"][:-1] = batch["input_ids"][:-1].roll(-2, 1), 1
    if batch["labels"].dim() == 2:
        batch["labels"][:, :7] = -100
        batch["labels"][1, :10] = -100
    return batch


def loss_and_gradients(model: Any, batch: Any, train: bool = True) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.train(train)
    model.zero_grad(set_to_none=True)
    loss = model(**batch).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return loss.detach(), gradients


def assert_same(found: Any, expected: Any, of_loss: float = 1e-5, of_gradients: float = 1e-4) -> None:
    (loss, gradients), (own_loss, own_gradients) = found, expected
    assert abs(loss - own_loss) <= of_loss * abs(own_loss)
    assert set(gradients) == set(own_gradients)
    largest = max(gradient.norm() for gradient in own_gradients.values())
    for name, own in own_gradients.items():
        away = (gradients[name] - own).norm() / max(own.norm(), 1e-2 * largest)
        assert away <= of_gradients, f"{name}: {away}"


def installed(model: Any, batch: Any, **options: Any) -> LossPositions:
    return use_loss_positions(model, find_anatomy(model), batch, **options)


def positions_seen(model: Any) -> dict[str, list[int]]:
    """How many positions a row of the last feed-forward, and rows of the head, get in each call."""
    seen: dict[str, list[int]] = {"block": [], "head": []}
    anatomy = find_anatomy(model)
    widest = [linear for linear in anatomy.blocks[-1].linears if str(linear.role) == "feed_forward"][-1]
    model.get_submodule(widest.name).register_forward_pre_hook(
        lambda _, args: seen["block"].append(args[0].shape[:-1].numel())
    )
    if anatomy.has_lm_head:
        model.get_output_embeddings().register_forward_pre_hook(
            lambda _, args: seen["head"].append(args[0].shape[:-1].numel())
        )
    return seen


@pytest.mark.parametrize(("name", "task"), CASES)
def test_same_loss_and_gradients_on_every_architecture(name: str, task: str) -> None:
    model = tiny(name, task)
    batches = [batch_of(model), batch_of(model, "left"), batch_of(model, length=16)]
    batches.append({key: value for key, value in batches[0].items() if key != "attention_mask"})
    own = [loss_and_gradients(model, batch) for batch in batches]
    positions = installed(model, batches[0], chunk=2)
    assert positions.rule in RULES.get(task, POOLED)
    assert positions.last_block == (name not in OWN_ATTENTION)
    assert positions.chunked_head == (task != "classification")
    assert len(positions.notices) == (name in OWN_ATTENTION)
    for batch, expected in zip(batches, own, strict=True):
        assert_same(loss_and_gradients(model, batch), expected)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        *((name, "causal") for name in ("llama", "gemma2", "gpt2")),
        *((name, "classification") for name in ("mistral", "bert", "modernbert")),
        ("t5", "seq2seq"),
    ],
)
def test_same_with_eager_attention_and_with_checkpointing(name: str, task: str) -> None:
    model = tiny(name, task, attn_implementation="eager")
    batch = batch_of(model, "left")
    expected = loss_and_gradients(model, batch)
    positions = installed(model, batch, chunk=2)
    assert positions.last_block
    assert_same(loss_and_gradients(model, batch), expected)
    model.activation_checkpointing_enable({"use_reentrant": False})
    # Backward runs the block again, after another batch has come by.
    model.train()
    loss = model(**batch).loss
    model(**batch_of(model, length=16))
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_same((loss.detach(), gradients), expected)


@pytest.mark.parametrize(("name", "task"), [("llama", "causal"), ("gpt2", "causal"), ("bert", "classification")])
def test_same_under_autocast(name: str, task: str) -> None:
    model = tiny(name, task)
    batch = batch_of(model)
    with torch.autocast("cpu", torch.bfloat16):
        expected = loss_and_gradients(model, batch)
        positions = installed(model, batch, chunk=2)
        assert positions.last_block and not positions.notices
        assert_same(loss_and_gradients(model, batch), expected, 2e-2, 2e-2)


@pytest.mark.parametrize("mode", [Lora(dropout=0.0), Full()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_under_a_plan(mode: Any, dtype: torch.dtype) -> None:
    """A frozen bottom, LoRA or a trained block on top, parts of two dtypes, a tied frozen head."""
    model = tiny("llama", tied=True).to(dtype)
    anatomy = find_anatomy(model)
    frozen = Frozen()
    plan = Plan(strategy="x", blocks=(frozen,) * 2 + (mode,) * 2, embeddings=frozen, final_norm=Full(), head=frozen)
    apply(plan, model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    batch = batch_of(model)
    expected = loss_and_gradients(model, batch)
    positions = use_loss_positions(model, anatomy, batch, chunk=2)
    assert positions.last_block and positions.chunked_head, positions.notices
    near = (1e-5, 1e-4) if dtype is torch.float32 else (2e-2, 5e-2)
    assert_same(loss_and_gradients(model, batch), expected, *near)


def test_a_frozen_last_block_passes_gradients_down() -> None:
    model = tiny("llama")
    model.model.layers[-1].requires_grad_(False)
    batch = batch_of(model)
    expected = loss_and_gradients(model, batch)
    assert installed(model, batch).last_block
    assert_same(loss_and_gradients(model, batch), expected)


def test_a_parametrised_head_trains_too() -> None:
    class Doubled(torch.nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    model = tiny("llama", tied=False)
    parametrize.register_parametrization(model.lm_head, "weight", Doubled())
    model.model.requires_grad_(False)
    batch = batch_of(model)
    expected = loss_and_gradients(model, batch)
    assert list(expected[1]) == ["lm_head.parametrizations.weight.original"]
    anatomy = find_anatomy(tiny("llama", tied=False))
    assert use_loss_positions(model, anatomy, batch, chunk=2).chunked_head
    assert_same(loss_and_gradients(model, batch), expected)


def test_only_positions_that_are_read_run() -> None:
    model = tiny("llama")
    batch = batch_of(model)  # labels at 5, 2 and 3 positions
    seen = positions_seen(model)
    installed(model, batch, chunk=4)
    seen["block"].clear(), seen["head"].clear()
    loss_and_gradients(model, batch)
    assert seen == {"block": [3 * 5], "head": [4, 4, 2]}


def test_a_classifier_runs_its_last_block_at_one_position() -> None:
    model = tiny("bert")
    batch = batch_of(model)
    seen = positions_seen(model)
    installed(model, batch)
    seen["block"].clear()
    loss_and_gradients(model, batch)
    assert seen["block"] == [3]


@pytest.mark.parametrize(("name", "queries"), [("bert", True), ("gpt2", False)])
def test_the_operations_are_those_of_the_positions_read(name: str, queries: bool) -> None:
    """Counted, against the count by hand of what is left out (GPT-2 makes queries together with the keys)."""
    model = tiny(name, "classification", attn_implementation="eager")
    anatomy, batch = find_anatomy(model), batch_of(model)
    model.requires_grad_(False)
    get_block(model, anatomy, BLOCKS - 1).requires_grad_(True)

    def flops() -> int:
        with FlopCounterMode(display=False) as counter:
            model.train()
            model(**batch).loss.backward()
        model.zero_grad()
        counted: int = counter.get_total_flops()
        return counted

    before = flops()
    assert installed(model, batch).last_block
    (rows, length), width = batch["input_ids"].shape, anatomy.hidden_size
    left_out = rows * (length - 1)
    # Forward, gradient of the weight, gradient of the input: BERT's queries, made of what is frozen, need none.
    feed_forward = sum(
        linear.in_features * linear.out_features
        for linear in anatomy.blocks[-1].linears
        if str(linear.role) == "feed_forward"
    )
    matrices = 3 * 2 * left_out * (width * width + feed_forward)
    matrices += 2 * 2 * left_out * width * width if queries else -3 * 2 * rows * 3 * width * width
    attention = 2 * 3 * 2 * left_out * length * width
    assert before - flops() == matrices + attention


def test_what_trains_may_change_afterwards() -> None:
    model = tiny("llama", tied=False)
    model.lm_head.requires_grad_(False)
    batch = batch_of(model)
    positions = installed(model, batch, chunk=2)
    assert positions.chunked_head
    model.requires_grad_(True)
    thawed = loss_and_gradients(model, batch)
    model.model.requires_grad_(False)
    head_only = loss_and_gradients(model, batch)
    positions.remove()
    assert_same(head_only, loss_and_gradients(model, batch))
    model.requires_grad_(True)
    assert_same(thawed, loss_and_gradients(model, batch))


def test_what_reaches_the_last_block_may_be_replaced_before_it() -> None:
    model, states = tiny("llama"), torch.randn(3, 12, 32)
    batch = batch_of(model)

    def replace(_module: Any, args: Any, kwargs: Any) -> Any:
        return (states, *args[1:]), kwargs

    model.model.layers[-1].register_forward_pre_hook(replace, with_kwargs=True)
    expected = loss_and_gradients(model, batch)
    assert set(expected[1]) == {"lm_head.weight", "model.norm.weight"} | {
        f"model.layers.{BLOCKS - 1}.{name}" for name, _ in model.model.layers[-1].named_parameters()
    }
    positions = installed(model, batch, chunk=2)
    assert positions.last_block and positions.chunked_head
    assert_same(loss_and_gradients(model, batch), expected)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_the_number_of_items_divides_as_in_the_own_forward(name: str) -> None:
    """T5 pays no heed to it."""
    model = tiny(name)
    batch = batch_of(model) | {"num_items_in_batch": torch.tensor(77)}
    expected = loss_and_gradients(model, batch)
    installed(model, batch_of(model), chunk=2)
    assert_same(loss_and_gradients(model, batch), expected)


@pytest.mark.parametrize(
    ("name", "bf16", "near"),
    [("llama", False, after_sgd(1e-2, 3)), ("llama", True, 1e-4), ("bert", False, after_sgd(1e-2, 3))],
)
def test_the_trainer_ends_with_the_same_weights(name: str, bf16: bool, near: float, tmp_path: Path) -> None:
    """Three optimizer steps of two batches each, through accelerate's wrappers."""

    def trained(economical: bool) -> dict[str, torch.Tensor]:
        model = tiny(name, natural_task(name))
        batch = batch_of(model)
        rows = [{key: value[i % 3] for key, value in batch.items()} for i in range(12)]
        if economical:
            assert installed(model, batch, chunk=2).last_block
        args = TrainingArguments(
            tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=3, learning_rate=1e-2,
            optim="sgd", use_cpu=True, bf16=bf16, report_to=[], save_strategy="no", logging_strategy="no",
            disable_tqdm=True,
        )  # fmt: skip
        transformers.Trainer(model, args, train_dataset=rows).train()
        return model.state_dict()

    own, found, start = trained(False), trained(True), tiny(name, natural_task(name)).state_dict()
    moved = max((own[key] - start[key]).abs().max() for key in own)
    away = max((own[key] - found[key]).abs().max() for key in own)
    assert moved > 10 * near
    assert away < near


def test_all_else_takes_the_own_forward() -> None:
    model = tiny("llama")
    batch = batch_of(model)
    installed(model, batch)
    assert model.eval()(**batch).logits.shape == (3, 12, 128)
    model.train()
    assert model(input_ids=batch["input_ids"]).logits.shape == (3, 12, 128)
    assert len(model(**batch, output_hidden_states=True).hidden_states) == BLOCKS + 1
    with torch.no_grad():
        assert model(**batch).logits.shape == (3, 12, 128)
    assert model(**batch, return_dict=False)[1].shape == (3, 12, 128)
    unlabelled = batch | {"labels": torch.full_like(batch["labels"], -100)}
    assert model(**unlabelled).logits.shape == (3, 12, 128)
    output = model(**batch)
    assert output.logits is None and output.loss.requires_grad
    assert type(output) is type(model.eval()(**batch))


@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
def test_nothing_is_left_behind(name: str) -> None:
    model = tiny(name, dropout=0.1).train()
    model.get_input_embeddings().eval()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    attributes = [dict(vars(module)) for module in model.modules()]
    random, signature = torch.get_rng_state(), inspect.signature(model.forward)
    positions = installed(model, batch_of(model), exact=False)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert inspect.signature(model.forward) == signature
    positions.remove()
    positions.remove()
    found = [dict(vars(module)) for module in model.modules()]
    for before, after in zip(attributes, found, strict=True):
        assert before.keys() == after.keys()
        assert before.get("config") is after.get("config")


def test_dropout_in_the_last_block_is_a_reason_to_run_it_whole() -> None:
    model = tiny("bert", dropout=0.1)
    positions = installed(model, batch_of(model))
    assert not positions.last_block
    assert "dropout" in positions.notices[0]
    positions.remove()
    assert installed(model, batch_of(model), exact=False).last_block


def test_a_router_loss_is_a_reason_to_run_whole() -> None:
    model = tiny("mixtral", output_router_logits=True)
    batch = batch_of(model)
    expected = loss_and_gradients(model, batch)
    positions = installed(model, batch)
    assert not positions.last_block and not positions.chunked_head
    assert len(positions.notices) == 2
    assert_same(loss_and_gradients(model, batch), expected)


def test_a_block_that_mixes_tokens_outside_attention_is_caught() -> None:
    model = tiny("llama")
    block = model.model.layers[-1]
    own = block.mlp.forward
    block.mlp.forward = lambda states: own(states + states.roll(1, dims=1))
    batch = batch_of(model)
    expected = loss_and_gradients(model, batch)
    positions = installed(model, batch)
    assert not positions.last_block and positions.chunked_head
    assert "at the loss positions alone" in positions.notices[0]
    assert_same(loss_and_gradients(model, batch), expected)


def test_a_classifier_that_reads_every_token_runs_whole() -> None:
    model = tiny("modernbert", classifier_pooling="mean")
    positions = installed(model, batch_of(model))
    assert positions.rule is LossRule.ALL and not positions.last_block
    assert "reads all of its output" in positions.notices[0]


def test_a_text_that_ends_in_the_padding_token_is_read_where_the_model_reads_it() -> None:
    model = tiny("llama", "classification")
    batch = batch_of(model)
    positions = installed(model, batch)
    assert positions.rule is LossRule.LAST_TOKEN
    batch["input_ids"][0, -1] = model.config.pad_token_id
    found = loss_and_gradients(model, batch)
    positions.remove()
    assert_same(found, loss_and_gradients(model, batch))


def test_labels_that_come_shifted_are_taken_so() -> None:
    model = tiny("llama")
    batch = batch_of(model)
    shifted = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    expected = loss_and_gradients(model, batch)
    installed(model, batch, chunk=2)
    assert_same(loss_and_gradients(model, batch | {"shift_labels": shifted}), expected)


def test_most_positions_labelled_runs_the_block_whole_and_the_head_in_chunks() -> None:
    model = tiny("llama")
    batch = batch_for(model, batch=3, length=12)
    expected, seen = loss_and_gradients(model, batch), positions_seen(model)
    installed(model, batch, chunk=8)
    seen["block"].clear(), seen["head"].clear()
    assert_same(loss_and_gradients(model, batch), expected)
    assert seen == {"block": [3 * 12], "head": [8, 8, 8, 7]}
