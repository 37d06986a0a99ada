"""Cut at any boundary, a model that replays its own boundary states computes the same."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from architectures import ARCHITECTURES, batch_for, decoder_names, tiny
from frostline.anatomy import find_anatomy
from frostline.bottom import CannotCut, Cut, OffloadedWeights, StandIns, find_cut, last_blocks, names_above, names_below
from frostline.bottom._cut import MADE
from frostline.bottom._weights import only_in_bottom
from frostline.hooks import observe
from tolerances import GRADIENT, LOSS

DECODERS_AS_CLASSIFIERS = [name for name in decoder_names if name != "minicpm3"]
CASES = [(name, None) for name in ARCHITECTURES] + [(name, "classification") for name in DECODERS_AS_CLASSIFIERS]


def boundaries(blocks: int) -> tuple[int, ...]:
    return (1, 2, blocks - 1, blocks)


def loss_and_gradients(model: Any, above: list[nn.Parameter]) -> tuple[Tensor, list[Tensor | None]]:
    loss = model(**batch_for(model)).loss
    return loss.detach(), list(torch.autograd.grad(loss, above, allow_unused=True))


def replay(model: Any, cut: Cut) -> None:
    """Assert that the model's own boundary states, given back, make the same loss and gradients."""
    below = names_below(find_anatomy(model), cut)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in below)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with observe(model, last_blocks(cut)) as states:
        loss, gradients = loss_and_gradients(model, trained)
    standins = StandIns(model, cut)
    standins.feed(states)
    again, replayed = loss_and_gradients(model, trained)
    standins.remove()
    assert float(again) == pytest.approx(float(loss), rel=LOSS)
    largest = max(float(gradient.norm()) for gradient in gradients if gradient is not None)
    for mine, its in zip(gradients, replayed, strict=True):
        assert (mine is None) == (its is None)
        assert mine is None or its is None or float((mine - its).norm()) <= GRADIENT * largest


@pytest.mark.parametrize(("name", "task"), CASES)
def test_replayed_states_give_the_same_loss_and_gradients(name: str, task: str | None) -> None:
    model = tiny(name, task, tied=False if name == "t5" else None).eval()  # its head alone trains above all blocks
    anatomy = find_anatomy(model)
    for boundary in boundaries(len(anatomy.blocks)):
        cut = find_cut(model, anatomy, boundary)
        assert find_cut(model, anatomy, boundary, weightless=True) == cut
        assert sum(len(stack.blocks) for stack in cut.stacks) == boundary
        replay(model, cut)


@pytest.mark.parametrize("boundary", [3, 4, 5])
def test_t5_around_the_end_of_its_encoder(boundary: int) -> None:
    model = tiny("t5").eval()
    cut = find_cut(model, find_anatomy(model), boundary)
    assert cut.streams == (("encoder",) if boundary <= 4 else ("encoder", "decoder"))
    replay(model, cut)


def test_only_a_block_whose_making_is_read_above_keeps_running() -> None:
    def running(name: str, boundary: int) -> tuple[str, ...]:
        model = tiny(name)
        return find_cut(model, find_anatomy(model), boundary).running

    # T5's first block makes the position bias that those above it read; at the stack's end nobody is above.
    assert running("t5", 2) == ("encoder.block.0",)
    assert running("t5", 4) == ()
    assert running("t5", 6) == ("decoder.block.0",)
    # GPT-J returns attention weights, which no block is given.
    assert running("gptj", 2) == ()
    model = tiny("gptj", attn_implementation="eager")
    (stack,) = find_cut(model, find_anatomy(model), 2).stacks
    assert all(MADE not in returned.extras for returned in stack.returns)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_leaves_memory_is_the_bottom_s_alone(name: str) -> None:
    model = tiny(name)
    anatomy = find_anatomy(model)
    boundary = len(anatomy.blocks)
    cut = find_cut(model, anatomy, boundary)
    standins = StandIns(model, cut)
    names = {parameter: name for name, parameter in model.named_parameters()}
    leaving = {names[parameter] for parameter in only_in_bottom(model, standins)}
    running = tuple(f"{path}." for path in cut.running)
    inside = {tensor.name for block in anatomy.blocks for tensor in block.tensors}
    assert leaving >= {name for name in inside if not name.startswith(running)}
    assert not leaving & names_above(tiny(name), anatomy, boundary)
    assert all(standins.cover(name) for name in leaving)
    standins.remove()


@pytest.mark.parametrize("name", ["llama", "t5", "deberta-v2", "modernbert"])
def test_the_model_is_whole_with_stand_ins_and_after_them(name: str, tmp_path: Path) -> None:
    model = tiny(name).eval()
    before = dict(model.named_modules())
    state = {key: value.clone() for key, value in model.state_dict().items()}
    expected = model(**batch_for(model)).logits
    standins = StandIns(model, find_cut(model, find_anatomy(model), 2))
    weights = OffloadedWeights(model, standins, tmp_path)
    for step in (lambda: None, weights.offload, weights.restore, standins.remove):
        step()
        after = dict(model.named_modules())
        assert before.keys() == after.keys() and all(after[key] is module for key, module in before.items())
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert torch.equal(model(**batch_for(model)).logits, expected)  # nothing is fed: the bottom runs
        copied = copy.deepcopy(model)
        assert torch.equal(copied(**batch_for(model)).logits, expected)
    assert standins.modules == ()


def test_a_copy_made_while_states_are_fed_runs_its_own_bottom() -> None:
    model = tiny("llama").eval()
    cut = find_cut(model, find_anatomy(model), 2)
    expected = model(**batch_for(model)).logits
    standins = StandIns(model, cut)
    standins.feed({"decoder": torch.zeros(2, 8, 32)})
    assert not torch.allclose(model(**batch_for(model)).logits, expected)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(**batch_for(model)).logits, expected)
    standins.remove()


def test_finding_a_cut_leaves_mode_generator_and_hooks_alone() -> None:
    model = tiny("t5", dropout=0.1).train()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    find_cut(model, find_anatomy(model), 5)
    assert torch.equal(torch.rand(2), expected)
    assert model.training and model.encoder.block[0].training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_cannot_be_cut() -> None:
    routed = tiny("mixtral", output_router_logits=True)
    with pytest.raises(CannotCut, match="the router loss reads every block"):
        find_cut(routed, find_anatomy(routed), 2)

    broken = tiny("llama")
    anatomy = find_anatomy(broken)
    broken.model.forward = lambda **_: (_ for _ in ()).throw(ValueError("wants pixels\nand more"))
    with pytest.raises(CannotCut, match=r"does not run on a plain batch \(wants pixels\)$"):
        find_cut(broken, anatomy, 2)

    class Odd(nn.Module):
        def forward(self, hidden_states: Tensor, **_: Any) -> dict[str, Tensor]:
            return {"hidden_states": hidden_states}

    odd = tiny("llama")
    anatomy = find_anatomy(odd)
    odd.model.layers[1] = Odd()
    with pytest.raises(CannotCut, match=r"model\.layers\.1 does not return its hidden states"):
        find_cut(odd, anatomy, 2)
