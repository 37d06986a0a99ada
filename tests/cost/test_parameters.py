"""Predicted parameters are those of the model as it really trains."""

from __future__ import annotations

import pytest
from cost_cases import named_plans, small

from frostline.anatomy import find_anatomy
from frostline.cost import total_parameters, trainable_parameters
from frostline.surgery import apply


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2", "mixtral", "minicpm3", "bert", "t5"])
def test_exact(family: str) -> None:
    anatomy = find_anatomy(small(family))
    for name, plan in named_plans(anatomy).items():
        model = small(family)
        apply(plan, model)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        assert trainable_parameters(plan, anatomy) == trained > 0, name
        if "rows" not in name:  # the frozen rest of such a matrix is a buffer while it trains
            assert total_parameters(plan, anatomy) == sum(p.numel() for p in model.parameters()), name


def test_rows_are_part_of_the_model_not_added_to_it() -> None:
    anatomy = find_anatomy(small("llama"))
    assert total_parameters(named_plans(anatomy)["rows of the top"], anatomy) == anatomy.total_parameters
