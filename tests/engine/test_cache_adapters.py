"""The activation cache and adapters of an earlier plan: blocks that carry them do not leave memory."""

from __future__ import annotations

import pytest

from architectures import tiny
from frostline.anatomy import find_anatomy
from frostline.bottom import CannotCut, hashes_of
from frostline.plan import BlockMode, Frozen, Lora, Plan, Prefix
from frostline.surgery import apply


@pytest.mark.parametrize("mode", [Lora(), Lora(gate=True), Prefix()], ids=["lora", "gated lora", "prefix"])
def test_blocks_with_adapters_of_an_earlier_plan_stay(mode: BlockMode) -> None:
    model = tiny("llama")
    names = [tensor.name for tensor in find_anatomy(model).blocks[0].tensors]
    assert set(hashes_of(model, names)) == set(names)
    apply(Plan(blocks=(mode, Frozen(), Frozen(), Frozen()), final_norm=Frozen(), head=Frozen()), model)
    with pytest.raises(CannotCut, match=r"q_proj\.weight carries an adapter of an earlier plan, and such blocks stay"):
        hashes_of(model, names)
