"""What must hold for every strategy on every kind of model. A new strategy in the table is tested too."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from functools import cache

import pytest
from anatomies import CLASSIFIERS, MODELS, TIED, anatomy
from probes import made_up

from frostline.adapters import adapters_in, added_parameters
from frostline.anatomy import Anatomy, notices, select
from frostline.core.errors import UserError
from frostline.cost import trainable_parameters
from frostline.plan import Plan, Schedule, from_text, to_json, to_yaml
from frostline.run import make_plan, make_schedule
from frostline.strategies import STRATEGIES, Situation, known_names, make_selection, parse_name
from rotating import ROTATING

FORMS = [
    *("bot25", "bot75", "bot50+lora"),
    "int25",
    *("adt-l25", "adt-l50+lora"),
    *("semantic+lora", "semantic-threshold+lora"),
    *("hierarchical+lora", "surgical+lora", "discriminative+lora", "spectrum+lora"),
    "hlpt(2,1)",
    *("lisa+lora", "badam+lora", "freezeout+lora", "autofreeze+lora", "gradual+lora"),
    *("egeria+lora", "smartfrz+lora"),
    *("layerdrop+lora", "adapterdrop+lora", "bot50+unipelt", "layerdrop+unipelt"),
]
"""Further forms of some strategies' names."""

NAMES = [*known_names(), *FORMS, "rotating"]
"""`rotating` is a test's own: its plan never stops changing."""

CASES = list(itertools.product(MODELS, NAMES))
WITH_EMBEDDINGS = ("all", "layerdrop", "lisa")
"""The embeddings train."""

STEPS = range(1, 9)
IN_TIME = list(itertools.product(["llama, untied", "bert classifier", "t5, tied"], NAMES))
"""What a schedule does over time is no matter of the architecture."""

WITHOUT_BIASES = ["llama, untied", "llama, tied", "mixtral, untied", "t5, tied", "t5, untied"]
BITFIT = {(model, "bitfit") for model in WITHOUT_BIASES}
WITHOUT_ONE_FEED_FORWARD = ["bert classifier", "deberta classifier", "bert masked, tied"]
"""Their feed-forward is two modules, and no one runs it: it cannot become a mixture."""

MIXTURE = {(model, "mixlora") for model in (*WITHOUT_ONE_FEED_FORWARD, "mixtral, untied")}
HYBRID = {("mixtral, untied", name) for name in ("hlpt", "hlpt(2,1)", "h2lpt")}
WITHOUT_PREFIX = ["deberta classifier"]
"""Their attention is none of transformers' registered functions."""
UNIPELT = {
    (model, name)
    for model in (*WITHOUT_PREFIX, "mixtral, untied")
    for name in ("unipelt", "bot50+unipelt", "layerdrop+unipelt")
}
REFUSED = BITFIT | MIXTURE | HYBRID | UNIPELT
FITTING = [case for case in CASES if case not in REFUSED]


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STRATEGIES._entries, "rotating", ROTATING)
        yield


def schedule_for(model: str, name: str, seed: int = 0) -> Schedule:
    measure = made_up(anatomy(model), seed)
    return make_selection(name, Situation(anatomy(model), seed, measure=measure, steps=len(STEPS) + 1)).schedule


def observed(schedule: Schedule, model: str) -> dict[str, list[float]]:
    """A made-up value for every block, for each signal that the schedule needs."""
    blocks = range(len(anatomy(model).blocks))
    return {signal: [float((5 * block + 3) % 7) for block in blocks] for signal in sorted(schedule.observes)}


def drive(schedule: Schedule, model: str, steps: Iterable[int]) -> list[Plan | None]:
    return [schedule.next(step, observed(schedule, model)) for step in steps]


@cache
def plans_for(model: str, name: str) -> list[Plan]:
    """Every plan that the schedule gives in its first steps."""
    schedule = schedule_for(model, name)
    return [schedule.first, *(plan for plan in drive(schedule, model, STEPS) if plan is not None)]


def plan_for(model: str, name: str) -> Plan:
    """The plan that it settles on, or the last of its first steps."""
    return plans_for(model, name)[-1]


def names_of(part: str, found: Anatomy) -> set[str]:
    return {tensor.name for tensor in getattr(found, part)}


def trained_names(model: str, name: str) -> set[str]:
    return {item.tensor.name for item in select(plan_for(model, name), anatomy(model))}


def test_every_strategy_is_named_and_summed_up() -> None:
    for stem, name in zip(STRATEGIES, known_names(), strict=True):
        assert parse_name(name)[0] == STRATEGIES.get(stem)
        assert STRATEGIES.get(stem).summary


@pytest.mark.parametrize(("model", "name"), CASES)
def test_every_plan_has_the_typed_name_and_can_be_written(model: str, name: str) -> None:
    schedule = schedule_for(model, name)
    assert isinstance(schedule, Schedule)
    plans = plans_for(model, name)
    assert schedule.first == plans[0]
    for plan in plans:
        assert plan.strategy == name
        assert len(plan.blocks) == len(anatomy(model).blocks)
        assert from_text(to_json(plan)) == from_text(to_yaml(plan)) == plan


@pytest.mark.parametrize(("model", "name"), IN_TIME)
def test_a_schedule_resumes_anywhere(model: str, name: str) -> None:
    whole = drive(schedule_for(model, name), model, STEPS)
    for stop in (0, 3, 5, 7):
        stopped, resumed = schedule_for(model, name), schedule_for(model, name)
        drive(stopped, model, STEPS[:stop])
        resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
        assert (resumed.settled, resumed.observes) == (stopped.settled, stopped.observes)
        assert resumed.first == stopped.first == plans_for(model, name)[0]
        assert drive(resumed, model, STEPS[stop:]) == whole[stop:]


@pytest.mark.parametrize(("model", "name"), IN_TIME)
def test_a_settled_schedule_changes_and_observes_nothing_more(model: str, name: str) -> None:
    schedule = schedule_for(model, name)
    fixed, changes = schedule.settled, name.startswith("adt-") or name == "rotating"
    drive(schedule, model, STEPS)
    settled, later = schedule.settled, drive(schedule, model, range(9, 120))
    if settled:
        assert not schedule.observes
        assert later == [None] * 111
    assert fixed or settled or schedule.settled or any(later), "it says that it will change, and never does"
    assert len(plans_for(model, name)) == 1 or not fixed
    assert len(plans_for(model, name)) > 1 or not changes


@pytest.mark.parametrize(("model", "name"), FITTING)
def test_the_plans_fit_the_model_and_train_something(model: str, name: str) -> None:
    found = anatomy(model)
    for plan in plans_for(model, name):
        assert trainable_parameters(plan, found) > 0


@pytest.mark.parametrize(("model", "name"), FITTING)
def test_nothing_below_the_boundary_trains(model: str, name: str) -> None:
    found, plan = anatomy(model), plan_for(model, name)
    trained = {item.tensor.name for item in select(plan, found)}
    below = {tensor.name for block in found.blocks[: plan.boundary] for tensor in block.tensors}
    if plan.boundary > 0:
        below |= names_of("embeddings", found)
    assert not below & trained
    added = added_parameters(plan, found)
    assert not any(added[: plan.boundary])
    if plan.boundary < len(found.blocks):
        own = {tensor.name for tensor in found.blocks[plan.boundary].tensors} & trained
        assert own or added[plan.boundary]


@pytest.mark.parametrize(("model", "name"), FITTING)
def test_few_strategies_train_the_embeddings(model: str, name: str) -> None:
    embeddings = names_of("embeddings", anatomy(model))
    trained = trained_names(model, name)
    assert embeddings & trained == (embeddings if name in WITH_EMBEDDINGS else set())


@pytest.mark.parametrize(("model", "name"), [case for case in FITTING if case[0] in CLASSIFIERS])
def test_a_task_head_always_trains(model: str, name: str) -> None:
    trained = {item.tensor.name: item for item in select(plan_for(model, name), anatomy(model))}
    for tensor in anatomy(model).head:
        assert trained[tensor.name].trained_rows == tensor.shape[0]


@pytest.mark.parametrize(("model", "name"), [case for case in FITTING if case[0] in TIED])
def test_a_tied_head_stays_with_the_embedding_and_a_notice_says_so(model: str, name: str) -> None:
    found, plan = anatomy(model), plan_for(model, name)
    assert found.tied
    assert plan.untie == (name == "head")
    lines = [line for line in notices(plan, found) if not line.startswith("layerdrop")]
    if name in (*WITH_EMBEDDINGS, "head"):
        assert lines == []
    else:
        assert plan.head.mode == "frozen"
        assert len(lines) == 1
        assert lines[0].startswith("tied embeddings: the head shares the frozen embedding's tensor")


@pytest.mark.parametrize("model", MODELS)
def test_all_trains_all(model: str) -> None:
    assert trained_names(model, "all") == {tensor.name for tensor in anatomy(model).tensors}
    assert plan_for(model, "all").boundary == 0
    assert notices(plan_for(model, "all"), anatomy(model)) == []


@pytest.mark.parametrize("model", MODELS)
def test_head_trains_the_head_alone_on_a_tensor_of_its_own(model: str) -> None:
    found = anatomy(model)
    trained = select(plan_for(model, "head"), found)
    embeddings = names_of("embeddings", found)
    assert names_of("head", found) <= {item.tensor.name for item in trained}
    assert {item.tensor.part for item in trained} == {"head"}
    assert not embeddings & {item.tensor.name for item in trained}
    if model not in CLASSIFIERS:
        width = found.hidden_size
        assert (found.vocab_size, width) in [item.tensor.shape for item in trained], "the LM head itself trains"


@pytest.mark.parametrize("name", ["bitfit", "lora"])
@pytest.mark.parametrize("model", MODELS)
def test_small_methods_leave_a_pretrained_head_alone(model: str, name: str) -> None:
    plan = plan_for(model, name)
    assert plan.head.mode == ("full" if model in CLASSIFIERS else "frozen")
    assert plan.final_norm.mode == "frozen"
    assert plan.boundary == 0
    if (model, name) not in REFUSED:
        in_head = {item for item in select(plan, anatomy(model)) if item.tensor.part != "block"}
        assert {item.tensor.name for item in in_head} == (
            names_of("head", anatomy(model)) if model in CLASSIFIERS else set()
        )


def test_bitfit_trains_every_bias_of_the_blocks_and_no_other_tensor() -> None:
    found = anatomy("gpt2, tied")
    biases = {f"transformer.h.{i}.{piece}.bias" for i in range(4) for piece in ("ln_1", "ln_2")}
    biases |= {f"transformer.h.{i}.attn.{piece}.bias" for i in range(4) for piece in ("c_attn", "c_proj")}
    biases |= {f"transformer.h.{i}.mlp.{piece}.bias" for i in range(4) for piece in ("c_fc", "c_proj")}
    assert {item.tensor.name for item in select(plan_for("gpt2, tied", "bitfit"), found)} == biases


@pytest.mark.parametrize(("model", "name"), sorted(MIXTURE | HYBRID))
def test_what_cannot_be_added_is_an_error(model: str, name: str) -> None:
    with pytest.raises(
        UserError, match=r"^block 0: (mixture: .*: use lora|lora targets: down matches nothing, the block)"
    ):
        added_parameters(plan_for(model, name), anatomy(model))


@pytest.mark.parametrize(("model", "name"), sorted(BITFIT))
def test_bitfit_on_a_model_without_biases_is_an_error(model: str, name: str) -> None:
    with pytest.raises(
        UserError, match=r"^block 0: partial with train: biases matches no tensor .* no biases: use train for"
    ):
        select(plan_for(model, name), anatomy(model))


def test_lora_takes_query_and_value_of_every_block() -> None:
    found = anatomy("llama, untied")
    plan = plan_for("llama, untied", "lora")
    assert select(plan, found) == ()
    adapters = adapters_in(plan.blocks, found)
    assert [name for kind, block in adapters for name in kind.added(block, found).branches] == [
        f"model.layers.{i}.self_attn.{piece}" for i in range(4) for piece in ("q_proj", "v_proj")
    ]
    assert {(kind.mode.r, kind.mode.alpha, kind.mode.dropout) for kind, _ in adapters} == {(8, 32.0, 0.1)}


def test_an_encoder_decoder_counts_its_blocks_jointly() -> None:
    found = anatomy("t5, tied")
    assert [block.stack for block in found.blocks] == ["encoder"] * 4 + ["decoder"] * 3
    for name, frozen in (
        ("bot50", {0, 1, 2, 3}),
        ("bot25", {0, 1}),
        ("top50", {3, 4, 5, 6}),
        ("bot75", {0, 1, 2, 3, 4}),
    ):
        plan = plan_for("t5, tied", name)
        assert {i for i, block in enumerate(plan.blocks) if block.mode == "frozen"} == frozen, name


def test_what_make_plan_and_make_schedule_give() -> None:
    model = MODELS["llama, untied"]()
    assert make_plan(model) == make_plan(model, "bot50") == plan_for("llama, untied", "bot50")
    assert (
        make_plan(model, "random50", seed=1)
        == make_selection("random50", Situation(anatomy("llama, untied"), seed=1)).schedule.first
    )
    assert Situation.of(model, seed=3) == Situation(anatomy("llama, untied"), seed=3)


@pytest.mark.parametrize("name", ["adt-l50", "adt-h50+lora", "rotating"])
def test_a_plan_that_changes_is_no_single_plan(name: str) -> None:
    model = MODELS["llama, untied"]()
    with pytest.raises(UserError) as told:
        make_plan(model, name)
    line = str(told.value)
    assert line.startswith(f"strategy '{name}' changes its plan while it trains")
    assert f'use fl.make_schedule(model, "{name}", steps=...)' in line
    assert len(line) <= 300 and "\n" not in line
    schedule = make_schedule(model, name)
    assert not schedule.settled
    assert schedule.first == plans_for("llama, untied", name)[0]


def test_a_plan_that_stays_is_a_schedule_too() -> None:
    model = MODELS["llama, untied"]()
    schedule = make_schedule(model, "bot50")
    assert schedule.settled
    assert schedule.first == make_plan(model, "bot50")
    with pytest.raises(UserError, match=r"^unknown strategy 'bott50': did you mean 'bot50'"):
        make_schedule(model, "bott50")


def test_how_a_training_is_split_is_in_the_selection() -> None:
    options = {"clients": 2, "average_every": 7}
    split = make_selection("splitlora", Situation(anatomy("llama, untied")), options).split
    assert split is not None
    assert (split.cut, split.clients, split.average_every) == (1, 2, 7)
    assert all(make_selection(name, Situation(anatomy("llama, untied"))).split is None for name in ("lora", "adt-l50"))
