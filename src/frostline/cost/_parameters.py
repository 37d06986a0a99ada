"""How many parameters train, and how many there are: exact."""

from __future__ import annotations

from frostline.adapters import added_parameters
from frostline.anatomy import Anatomy, select
from frostline.cost._flow import as_trained
from frostline.plan import Full, Plan


def trainable_parameters(plan: Plan, anatomy: Anatomy) -> int:
    """Parameters that train under `plan`: the model's own (of a matrix that trains in part, the rows that do)
    and what adapters add. A tied tensor counts once. Raises `UserError` when the plan does not fit."""
    return sum(item.parameters for item in select(plan, anatomy)) + sum(added_parameters(plan, anatomy))


def total_parameters(plan: Plan, anatomy: Anatomy) -> int:
    """Parameters of the model as it trains: the model's own, a head's copy if the plan unties, and adapters'."""
    return as_trained(plan, anatomy).total_parameters + sum(added_parameters(plan, anatomy))


def full_plan(anatomy: Anatomy) -> Plan:
    """Full fine-tuning: everything trains. The yardstick of every ratio."""
    return Plan(strategy="all", embeddings=Full(), blocks=tuple(Full() for _ in anatomy.blocks))
