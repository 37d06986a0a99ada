"""`adapter_names=[...]`: each row of a batch with its own adapter, in calls, generation, beams, threads and heads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from peft import PeftModel

from frostline.adapters import HybridConfig
from frostline.core.errors import AdapterError
from hybrids import GATED_LORA, HYBRID, PARALLEL, PLAIN_LORA, SERIES, added, hybrid, inputs, logits, new, stir
from tolerances import outputs

FIRST = [{"index": "0-1", **GATED_LORA}, {"index": "2-3", **PLAIN_LORA}]
SECOND = [{"index": "1-2", **SERIES}, {"index": 3, **PARALLEL}]
NAMES = ["__base__", "default", "second", "second", "default"]


def two(name: str, **options: Any) -> PeftModel:
    model = hybrid(new(name, **options), FIRST)
    model.add_adapter("second", HybridConfig(blocks=SECOND))
    stir(model, 0.2)
    return model.eval()


def by_adapter(model: PeftModel, run: Any) -> dict[str, Any]:
    with model.disable_adapter():
        found = {"__base__": run(model)}
    for name in ("default", "second"):
        model.set_adapter(name)
        found[name] = run(model)
    return found


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "qwen3", "gemma3", "bert", "t5"])
def test_each_row_is_what_its_adapter_alone_makes_of_it(name: str) -> None:
    depth = {"num_layers": 2, "num_decoder_layers": 2} if name == "t5" else {}
    model = two(name, **depth)
    batch = inputs(model.get_base_model(), batch=5)
    if name == "t5":
        batch["decoder_input_ids"] = batch["input_ids"]
    alone = by_adapter(model, lambda model: logits(model, **batch))
    assert len({float(found.sum()) for found in alone.values()}) == 3
    found = logits(model, **batch, adapter_names=NAMES)
    for row, adapter in enumerate(NAMES):
        expected = alone[adapter][row]
        torch.testing.assert_close(found[row], expected, atol=outputs(expected), rtol=0)
    assert torch.equal(logits(model, **batch), alone["second"])  # the next call goes by the active adapter


@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_goes_by_rows_too(name: str, beams: int) -> None:
    model = two(name, **({"num_layers": 2, "num_decoder_layers": 2} if name == "t5" else {}))
    batch = inputs(model.get_base_model(), batch=5)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "num_beams": beams}
    alone = by_adapter(model, lambda model: model.generate(**batch, **options))
    found = model.generate(**batch, **options, adapter_names=NAMES)
    assert all(torch.equal(found[row], alone[adapter][row]) for row, adapter in enumerate(NAMES))


def test_heads_that_train_whole_go_by_rows_too() -> None:
    model = hybrid(new("bert", task="classification"), FIRST, modules_to_save=["classifier"])
    model.add_adapter("second", HybridConfig(blocks=SECOND, modules_to_save=["classifier"]))
    stir(model, 0.2)
    for index, head in enumerate(model.get_submodule("base_model.model.classifier").modules_to_save.values()):
        head.weight.data.fill_(0.1 * (index + 1))
    batch = inputs(model.get_base_model(), batch=5)
    alone = by_adapter(model, lambda model: logits(model, **batch))
    found = logits(model, **batch, adapter_names=NAMES)
    for row, adapter in enumerate(NAMES):
        torch.testing.assert_close(found[row], alone[adapter][row])


def test_calls_at_the_same_time_have_their_own_rows() -> None:
    model = two("llama")
    batch = inputs(model.get_base_model(), batch=5)
    model.set_adapter("default")
    wanted = {names: logits(model, **batch, adapter_names=list(names)) for names in (tuple(NAMES), tuple(NAMES[::-1]))}
    plain = logits(model, **batch)

    def call(turn: int) -> bool:
        if turn % 3 == 2:
            return torch.equal(logits(model, **batch), plain)
        names = list(wanted)[turn % 3]
        return torch.equal(logits(model, **batch, adapter_names=list(names)), wanted[names])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(60)))
    assert all(not layer._forward_pre_hooks for layer in model.modules() if hasattr(layer, "hybrid_parts"))


def test_what_cannot_go_by_rows_is_pefts_kind_of_error() -> None:
    model = two("llama")
    batch = inputs(model.get_base_model(), batch=5)
    cases = {
        "Trying to infer with non-existing adapter.*: nope": [*NAMES[:4], "nope"],
        "Length of `adapter_names` should be the same as the number of inputs, but got 2 and 5": NAMES[:2],
    }
    for message, names in cases.items():
        with pytest.raises(ValueError, match=message):
            model(**batch, adapter_names=names)
    with pytest.raises(ValueError, match="in training mode"):
        model.train()(**batch, adapter_names=NAMES)
    lora = hybrid(new("llama"), [{"index": 0, **PLAIN_LORA}])
    lora.merge_adapter()
    with pytest.raises(ValueError, match="there are merged adapters: use unmerge_adapter first"):
        lora.eval()(**batch, adapter_names=["default"] * 5)
    with pytest.raises(AdapterError, match="prefixes and mixtures do not work row by row: use set_adapter"):
        hybrid(new("llama"), HYBRID).eval()(**batch, adapter_names=["default"] * 5)
    assert added(model)
