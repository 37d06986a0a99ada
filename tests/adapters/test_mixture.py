"""Mixtures of LoRA experts against a loop over tokens; the balance loss against its formula; as PEFT methods."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from transformers import BloomConfig, BloomForCausalLM
from transformers.pytorch_utils import Conv1D

from architectures import batch_for, tiny
from frostline.adapters import HybridConfig, added_parameters, mixtures, router_statistics
from frostline.adapters._routers import _PASSES, Routing, balance_loss
from frostline.anatomy import find_anatomy
from frostline.core.errors import FrostlineError, UserError
from frostline.plan import Frozen, Mixture, Plan
from hybrids import added, hybrid, inputs, logits, new, stir
from tolerances import outputs

FAMILIES = ["llama", "qwen3", "gpt2", "gpt_neox", "gemma3"]
MIXTURE = {"mode": "adapter", "kind": "mixture", "experts": 4, "r": 2, "alpha": 4, "dropout": 0.0, "attention": False}
BLOCKS = [{"index": "1-2", **MIXTURE}]


def mixed(name: str, **options: Any) -> PeftModel:
    return hybrid(tiny(name), [{"index": "1-2", **MIXTURE, **options}])


class Slow(nn.Module):
    """A feed-forward with experts, token by token and expert by expert, each with weights of its own."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer, self.part = [layer.base_layer], layer.hybrid_parts["default"]
        self.experts = {
            f"{path}.base_layer.weight": (inner.base_layer, inner.hybrid_parts["default"])
            for path, inner in layer.base_layer.named_modules()
            if hasattr(inner, "hybrid_parts")
        }

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.stack([torch.stack([self._token(token) for token in row]) for row in hidden])

    def _token(self, token: Tensor) -> Tensor:
        probabilities = torch.softmax((self.part.router @ token), -1, dtype=torch.float32)
        best = probabilities.argsort(descending=True)[:2]
        shares = probabilities[best] / probabilities[best].sum()
        return sum((s.to(token) * self._expert(int(e), token) for s, e in zip(shares, best, strict=True)), 0 * token)

    def _expert(self, expert: int, token: Tensor) -> Tensor:
        weights = {}
        for name, (linear, part) in self.experts.items():
            update = 4 / 2 * part.B[expert] @ part.A[expert]
            weights[name] = linear.weight + (update.T if isinstance(linear, Conv1D) else update)
        (module,) = self.layer
        with _plain(module):
            result: Tensor = functional_call(module, weights, (token[None, None],))[0, 0]
        return result


class _plain:
    """Inside, the adapters within a module do nothing."""

    def __init__(self, module: nn.Module) -> None:
        self.layers = [layer for layer in module.modules() if hasattr(layer, "hybrid_parts")]

    def __enter__(self) -> None:
        for layer in self.layers:
            layer._disable_adapters = True

    def __exit__(self, *_: Any) -> None:
        for layer in self.layers:
            layer._disable_adapters = False


def put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    trained = added(model)
    return dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))


def close(one: Tensor, other: Tensor, tolerance: float = 1e-6) -> bool:
    return bool((one - other).norm() <= tolerance * other.norm().clamp(min=1e-12))


@pytest.mark.parametrize("name", FAMILIES)
def test_forward_and_backward_are_those_of_a_loop_over_tokens(name: str) -> None:
    model = mixed(name, balance=0.0).double()
    fast = model(**(batch := batch_for(model)))
    own = gradients(model, fast.loss)
    layers = {path: layer for path, layer in model.named_modules() if hasattr(layer, "hybrid_parts")}
    around = {path: layer for path, layer in layers.items() if layer.hybrid_parts["default"] in mixtures(model)}
    assert len(around) == 2
    trained = added(model)
    for path, layer in around.items():
        put(model, path, Slow(layer))
    slow = model(**batch)
    assert close(fast.logits, slow.logits)
    assert close(fast.loss, slow.loss)
    found = torch.autograd.grad(slow.loss, list(trained.values()))
    for parameter, expected in zip(trained, found, strict=True):
        assert expected.norm() > 0
        assert close(own[parameter], expected, 1e-5), parameter


@pytest.mark.parametrize("name", [*FAMILIES, "gptj", "phi3", "distilbert", "modernbert", "t5"])
def test_a_new_mixture_is_the_base_model_and_off_it_is_so_to_the_bit(name: str) -> None:
    model = tiny(name)
    batch = batch_for(model)
    before = logits(model, **batch)
    wrapped = get_peft_model(model, HybridConfig(blocks=[{"index": "1-2", **MIXTURE, "attention": True}]))
    torch.testing.assert_close(logits(wrapped, **batch), before, atol=outputs(before), rtol=0)
    stir(wrapped)
    assert not torch.allclose(logits(wrapped, **batch), before, atol=1e-3)
    with wrapped.disable_adapter():
        assert torch.equal(logits(wrapped, **batch), before)


@pytest.mark.parametrize("name", [*FAMILIES, "t5"])
@pytest.mark.parametrize("attention", [True, False])
def test_counts_are_exact(name: str, attention: bool) -> None:
    model = tiny(name)
    anatomy = find_anatomy(model)
    mode = Mixture(experts=4, r=2, attention=attention)
    blocks = (Frozen(), mode) + (Frozen(),) * (len(anatomy.blocks) - 2)
    counted = added_parameters(Plan(strategy="mixlora", blocks=blocks), anatomy)
    wrapped = get_peft_model(model, HybridConfig.of_modes(blocks))
    assert sum(counted) == counted[1] == sum(parameter.numel() for parameter in added(wrapped).values())


def test_the_balance_loss_is_the_formula_without_padding() -> None:
    model = mixed("llama", balance=0.5).train()
    batch = batch_for(model)
    seen: list[Tensor] = []
    for part in mixtures(model):
        part.register_forward_pre_hook(lambda _part, args: seen.append(args[2]))
    output = model(**batch)
    expected = []
    shares = []
    for part, hidden in zip(mixtures(model), seen, strict=True):
        tokens = hidden[batch["attention_mask"].bool()]
        probabilities = torch.softmax(tokens @ part.router.T, -1)
        of_expert = functional.one_hot(probabilities.topk(2).indices, 4).sum((0, 1)) / (2 * len(tokens))
        expected.append(4 * (of_expert * probabilities.mean(0)).sum())
        shares.append(of_expert)
    whole = 0.5 * torch.stack(expected).mean()
    plain = model.eval()(**batch).loss
    assert torch.allclose(output.loss, plain + whole)
    assert torch.allclose(output.balance_loss, whole)
    statistics = router_statistics(model.get_base_model())
    assert list(statistics) == ["model.layers.1.mlp", "model.layers.2.mlp"]
    for found, of_expert, loss in zip(statistics.values(), shares, expected, strict=True):
        assert torch.allclose(torch.tensor(found["shares"]), of_expert)
        assert found["balance_loss"] == pytest.approx(loss.item())


def test_equally_busy_experts_have_a_balance_loss_of_one() -> None:
    every = torch.arange(4).view(2, 2)
    loss, assigned = balance_loss(Routing(torch.full((2, 4), 0.25), every))
    assert loss == 1
    assert assigned.tolist() == [1, 1, 1, 1]
    one_sided, _ = balance_loss(Routing(torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([[0]])))
    assert one_sided == 4


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_checkpointing_changes_nothing_and_counts_once(name: str) -> None:
    model = mixed(name).train()
    again = copy.deepcopy(model)
    again.activation_checkpointing_enable({"use_reentrant": False})
    batch = batch_for(model)
    found = []
    for each in (model, again):
        loss = each(**batch).loss
        found.append((loss, gradients(each, loss), router_statistics(each)))
        assert not _PASSES.running
    assert torch.equal(found[0][0], found[1][0])
    assert all(close(found[1][1][key], value) for key, value in found[0][1].items())
    assert found[0][2] == found[1][2]
    assert {part.passes for part in mixtures(again)} == {1}


def test_what_would_hide_the_routers_is_refused() -> None:
    model = mixed("llama").train()
    model.enable_input_require_grads()
    model.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(FrostlineError, match="use_reentrant=False"):
        model(**batch_for(model))
    with pytest.raises(FrostlineError, match="return_dict"):
        mixed("llama").train()(**batch_for(model), return_dict=False)


def test_only_routers_that_train_are_in_the_balance_loss() -> None:
    model = mixed("llama").train()
    frozen, trains = mixtures(model)
    frozen.router.requires_grad_(False)
    balance = model(**batch_for(model)).balance_loss.detach()
    assert frozen.passes == 1
    assert balance == pytest.approx(trains.balance * float(trains.balance_sum))


def test_batches_that_make_one_step_share_one_balance_loss() -> None:
    """As `transformers.Trainer` accumulates: every batch's loss is its share of all labels."""
    model = mixed("llama", balance=5.0).train()
    batch = batch_for(model)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    items = batch["labels"][:, 1:].ne(-100).sum()
    balance = model(**batch).balance_loss
    twice = [model(**batch, num_items_in_batch=2 * items) for _ in range(2)]
    plain = model.eval()(**batch).loss
    assert torch.allclose(sum(output.loss for output in twice), plain + balance)


def test_an_expert_that_no_token_reached_stays() -> None:
    model = mixed("llama", balance=0.0, experts=16, top_k=1).train()
    before = {name: parameter.detach().clone() for name, parameter in added(model).items()}
    optimizer = torch.optim.AdamW(added(model).values(), lr=0.1, weight_decay=0.0)
    batch = batch_for(model, length=4)
    model(**batch).loss.backward()
    optimizer.step()
    for part, path in zip(mixtures(model), ("1", "2"), strict=True):
        for name, parameter in added(model).items():
            if f"layers.{path}.mlp" in name and name.endswith(".A"):
                assert parameter.grad is not None
                reached = parameter.grad.flatten(1).any(1)
                assert 0 < reached.sum() < len(part.router)
                moved = (parameter != before[name]).flatten(1).any(1)
                assert torch.equal(moved, reached)


def test_saved_and_loaded_and_beside_another(tmp_path: Path) -> None:
    model = hybrid(tiny("llama"), [{"index": "1-2", **MIXTURE, "attention": True}])
    model.train()(**batch_for(model))
    own = logits(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny("llama"), tmp_path)
    assert all(torch.equal(added(loaded)[name], parameter) for name, parameter in added(model).items())
    torch.testing.assert_close(logits(loaded), own, atol=outputs(own), rtol=0)
    assert not router_statistics(loaded)
    loaded.add_adapter("other", HybridConfig(blocks=[{"index": "2-3", **MIXTURE, "experts": 3}]))
    torch.testing.assert_close(logits(loaded), own, atol=outputs(own), rtol=0)
    loaded.set_adapter("other")
    base = logits(tiny("llama"), **inputs(loaded))
    torch.testing.assert_close(logits(loaded), base, atol=outputs(base), rtol=0)
    loaded.base_model.set_adapter(["default", "other"])
    with pytest.raises(UserError, match="use set_adapter to keep only one active"):
        logits(loaded)


def test_the_hooks_end_with_the_adapters() -> None:
    model = mixed("llama").train()
    base = model.get_base_model()
    model(**batch_for(model))
    plain = model.unload()
    assert plain is base
    plain(**batch_for(plain))
    assert not any(hasattr(module, "hybrid_parts") for module in plain.modules())
    assert not plain._forward_hooks
    assert not plain._forward_pre_hooks


def test_merging_is_refused() -> None:
    model = mixed("llama")
    with pytest.raises(UserError, match="the choice of experts depends on the input"):
        model.merge_and_unload()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("opt", "block 1: mixture: no module of the block holds only fc1, fc2,"),
        ("bert", "block 1: mixture: no module of the block holds only intermediate.dense, output.dense,"),
        ("mixtral", "block 1: mixture: the feed-forward has experts already"),
    ],
)
def test_feed_forwards_that_cannot_be_mixed_are_refused(name: str, line: str) -> None:
    model = new(name)
    with pytest.raises(UserError) as caught:
        get_peft_model(model, HybridConfig(blocks=BLOCKS))
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_feed_forward_that_reads_more_than_hidden_states_is_refused() -> None:
    config = BloomConfig(vocab_size=32, hidden_size=16, n_layer=3, n_head=2)
    with pytest.raises(UserError, match=r"block 1: mixture: transformer\.h\.1\.mlp reads more than hidden states"):
        get_peft_model(BloomForCausalLM(config), HybridConfig(blocks=BLOCKS))
