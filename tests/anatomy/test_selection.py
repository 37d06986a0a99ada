"""Which tensors of a model train under a plan, and the errors of plans that do not fit."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from architectures import ARCHITECTURES, AUTO_CLASSES, VOCABULARY, WIDTH, batch_for, encoder_names, natural_task, tiny
from frostline.anatomy import Anatomy, Tensor, find_anatomy, notices, select, skeleton, untie, untied
from frostline.core.errors import UserError
from frostline.plan import Frozen, Full, Lora, Partial, Plan

FROZEN = (Frozen(),) * 4


def anatomy_of(name: str, task: str | None = None, **options: Any) -> Anatomy:
    return find_anatomy(tiny(name, task, **options))


def refusal(plan: Plan, anatomy: Anatomy) -> str:
    with pytest.raises(UserError) as caught:
        select(plan, anatomy)
    message = str(caught.value)
    assert "\n" not in message
    return message


def only(mode: Frozen | Full | Partial | Lora, block: int) -> Plan:
    """That block in that mode, and nothing else."""
    blocks = (*FROZEN[:block], mode, *FROZEN[block + 1 :])
    return Plan(blocks=blocks, final_norm=Frozen(), head=Frozen())


def names(plan: Plan, anatomy: Anatomy) -> list[str]:
    return [item.tensor.name for item in select(plan, anatomy)]


def spelled(prefix: str, pieces: str) -> set[str]:
    """``spelled("a.", "x.{w,b} y.w")``: a.x.w, a.x.b and a.y.w."""
    found = set()
    for piece in pieces.split():
        choices = [group.split(",") for group in re.findall(r"{(.*?)}", piece)]
        template = re.sub(r"{.*?}", "{}", piece)
        found |= {prefix + template.format(*choice) for choice in itertools.product(*choices)}
    return found


# name: prefix of block 2, then its attention, feed-forward, norms and biases, biases.
PIECES = {
    "llama": (
        "model.layers.2.",
        "self_attn.{q_proj,k_proj,v_proj,o_proj}.weight",
        "mlp.{gate_proj,up_proj,down_proj}.weight",
        "{input_layernorm,post_attention_layernorm}.weight",
        "",
    ),
    "qwen2": (
        "model.layers.2.",
        "self_attn.{q_proj,k_proj,v_proj}.{weight,bias} self_attn.o_proj.weight",
        "mlp.{gate_proj,up_proj,down_proj}.weight",
        "{input_layernorm,post_attention_layernorm}.weight self_attn.{q_proj,k_proj,v_proj}.bias",
        "self_attn.{q_proj,k_proj,v_proj}.bias",
    ),
    "gpt2": (
        "transformer.h.2.",
        "attn.{c_attn,c_proj}.{weight,bias}",
        "mlp.{c_fc,c_proj}.{weight,bias}",
        "{ln_1,ln_2}.{weight,bias} attn.{c_attn,c_proj}.bias mlp.{c_fc,c_proj}.bias",
        "{ln_1,ln_2}.bias attn.{c_attn,c_proj}.bias mlp.{c_fc,c_proj}.bias",
    ),
    "bert": (
        "bert.encoder.layer.2.",
        "attention.self.{query,key,value}.{weight,bias} attention.output.dense.{weight,bias}",
        "{intermediate,output}.dense.{weight,bias}",
        "{attention.output,output}.LayerNorm.{weight,bias} attention.self.{query,key,value}.bias "
        "{attention.output,intermediate,output}.dense.bias",
        "{attention.output,output}.LayerNorm.bias attention.self.{query,key,value}.bias "
        "{attention.output,intermediate,output}.dense.bias",
    ),
}


@pytest.mark.parametrize("name", PIECES)
def test_each_mode_trains_exactly_its_tensors(name: str) -> None:
    anatomy = anatomy_of(name)
    prefix, attention, feed_forward, norms_and_biases, biases = PIECES[name]
    everything = {tensor.name for tensor in anatomy.blocks[2].tensors}
    expected = {
        "attention": spelled(prefix, attention),
        "feed_forward": spelled(prefix, feed_forward),
        "norms_and_biases": spelled(prefix, norms_and_biases),
        "biases": spelled(prefix, biases),
    }
    for train, tensors in expected.items():
        if tensors:
            assert set(names(only(Partial(train=train), 2), anatomy)) == tensors, train  # type: ignore[arg-type]
    assert set(names(only(Full(), 2), anatomy)) == everything == set().union(*expected.values())
    assert set(names(only(Partial(rows=0.5), 2), anatomy)) == everything
    assert select(only(Lora(), 2), anatomy) == (), "an adapter is not one of the model's own tensors"


def test_the_parts_around_the_blocks() -> None:
    anatomy = anatomy_of("llama", tied=False)
    around = {"embeddings": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "head": "lm_head.weight"}
    for part, tensor in around.items():
        modes = {name: Full(lr_scale=0.25) if name == part else Frozen() for name in around}
        (item,) = select(Plan(blocks=FROZEN, **modes), anatomy)
        assert (item.tensor.name, item.lr_scale, item.rows) == (tensor, 0.25, 1.0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_full_plan_trains_every_tensor_once_in_the_models_order(name: str) -> None:
    anatomy = anatomy_of(name)
    trained = select(Plan(embeddings=Full(), blocks=(Full(),) * len(anatomy.blocks)), anatomy)
    assert tuple(item.tensor for item in trained) == anatomy.tensors
    assert sum(item.parameters for item in trained) == anatomy.total_parameters


def test_learning_rates_follow_their_blocks() -> None:
    anatomy = anatomy_of("llama", tied=False)
    blocks = (Full(lr_scale=0.1), Partial(train="attention", lr_scale=0.2), Frozen(), Full())
    trained = select(Plan(blocks=blocks, final_norm=Frozen(), head=Full(lr_scale=3)), anatomy)
    assert {item.tensor.block: item.lr_scale for item in trained} == {0: 0.1, 1: 0.2, 3: 1.0, None: 3.0}


@pytest.mark.parametrize(
    ("rows", "of_32", "of_16"), [(0.25, 8, 4), (0.3, 10, 5), (0.5, 16, 8), (0.001, 1, 1), (0.99, 32, 16)]
)
def test_rows_count_in_matrices_and_spare_vectors(rows: float, of_32: int, of_16: int) -> None:
    trained = select(only(Partial(rows=rows, rows_seed=7, lr_scale=2.0), 1), anatomy_of("llama"))
    found = {item.tensor.name.removeprefix("model.layers.1."): item for item in trained}
    query, key, norm = (
        found[f"{piece}.weight"] for piece in ("self_attn.q_proj", "self_attn.k_proj", "input_layernorm")
    )
    assert query.tensor.shape == (32, 32)
    assert key.tensor.shape == (16, 32)
    assert (query.trained_rows, query.parameters) == (of_32, of_32 * 32)
    assert (key.trained_rows, key.parameters) == (of_16, of_16 * 32)
    assert (norm.rows, norm.trained_rows, norm.parameters) == (1.0, 32, 32)
    assert {item.rows_seed for item in trained} == {7}
    assert {item.lr_scale for item in trained} == {2.0}


def test_rows_of_a_group() -> None:
    trained = select(only(Partial(train="attention", rows=0.5), 2), anatomy_of("gpt2"))
    parameters = {item.tensor.name.removeprefix("transformer.h.2.attn."): item.parameters for item in trained}
    # GPT-2 keeps its matrices as [in, out]: a row is an input there.
    assert parameters == {"c_attn.weight": 16 * 96, "c_attn.bias": 96, "c_proj.weight": 16 * 32, "c_proj.bias": 32}


@pytest.mark.parametrize("count", [1, 3, 5])
def test_another_number_of_blocks(count: int) -> None:
    plan = Plan(strategy="mine", blocks=(Full(),) * count)
    assert refusal(plan, anatomy_of("llama")) == (
        f"plan 'mine' has {count} blocks, but LlamaForCausalLM has 4: give a mode for blocks 0-3"
    )


def test_an_encoder_decoders_blocks_are_counted_together() -> None:
    anatomy = anatomy_of("t5", tied=False)
    assert "has 4 blocks, but T5ForConditionalGeneration has 7" in refusal(Plan(blocks=FROZEN), anatomy)
    trained = select(Plan(blocks=(*FROZEN, Full(), *FROZEN[:2]), final_norm=Frozen(), head=Frozen()), anatomy)
    assert {item.tensor.name.rsplit(".layer.")[0] for item in trained} == {"decoder.block.0"}


@pytest.mark.parametrize("mode", [Partial(train="biases"), Partial(train="biases", rows=0.5)])
def test_biases_of_a_model_that_has_none(mode: Partial) -> None:
    assert refusal(only(mode, 3), anatomy_of("llama")) == (
        "block 3: partial with train: biases matches no tensor of model.layers.3, which has attention, feed_forward, "
        "norm and no biases: use train for tensors that it has, or mode: frozen"
    )


@pytest.mark.parametrize(("name", "task"), [("llama", None), ("gpt2", None), ("bert", "masked"), ("t5", None)])
def test_one_tied_tensor_has_one_mode(name: str, task: str | None) -> None:
    anatomy = anatomy_of(name, task, tied=None if name == "t5" else True)
    blocks = (Frozen(),) * len(anatomy.blocks)
    for embeddings, head in ((Frozen(), Full()), (Full(), Frozen())):
        plan = Plan(blocks=(*blocks[:-1], Full()), embeddings=embeddings, head=head)
        assert refusal(plan, anatomy) == (
            f"embeddings: {embeddings.mode} and head: {head.mode} differ, but in {anatomy.model_class} they are one "
            "tensor (tied): use the same mode for both, or untie: true for a head with its own tensor"
        )
    table = anatomy.embeddings[0].name
    assert table in names(Plan(blocks=blocks, embeddings=Full(), head=Full()), anatomy)
    assert table not in names(Plan(blocks=(*blocks[:-1], Full()), head=Frozen()), anatomy)


@pytest.mark.parametrize(("embeddings", "head"), [(Frozen(), Full()), (Full(), Frozen()), (Full(), Full())])
def test_an_untied_head_and_its_embedding_train_apart(embeddings: Frozen | Full, head: Frozen | Full) -> None:
    anatomy = anatomy_of("llama", tied=True)
    plan = Plan(blocks=FROZEN, embeddings=embeddings, final_norm=Frozen(), head=head, untie=True)
    expected = ["model.embed_tokens.weight"] * (embeddings.mode == "full") + ["lm_head.weight"] * (head.mode == "full")
    assert names(plan, anatomy) == expected


def test_untie_where_nothing_is_tied() -> None:
    for name, task in (("llama", None), ("llama", "classification")):
        anatomy = anatomy_of(name, task, tied=False)
        line = f"untie: true: the head of {anatomy.model_class} is not tied to the embedding: leave untie out"
        assert refusal(Plan(blocks=FROZEN, untie=True), anatomy) == line
        with pytest.raises(UserError, match=re.escape(line)):
            untied(anatomy)


def test_a_plan_whose_only_part_the_model_does_not_have() -> None:
    anatomy = find_anatomy(tiny("llama").model)
    assert refusal(Plan(strategy="head", blocks=FROZEN, final_norm=Frozen()), anatomy) == (
        "plan 'head': only head would train, but LlamaModel has no such tensors: use a mode other than frozen for a "
        "block"
    )
    assert names(Plan(blocks=FROZEN), anatomy) == ["norm.weight"]
    assert select(Plan(blocks=(Lora(),) * 4, final_norm=Frozen()), anatomy) == ()


@pytest.mark.parametrize(
    ("name", "task", "tied", "copied"),
    [
        ("llama", None, True, VOCABULARY * WIDTH),
        ("bert", "masked", True, VOCABULARY * (WIDTH + 1)),
        ("llama", None, False, 0),
    ],
)
def test_a_notice_says_that_a_head_freezes_with_its_embedding(
    name: str, task: str | None, tied: bool, copied: int
) -> None:
    anatomy = anatomy_of(name, task, tied=tied)
    lines = notices(Plan(blocks=(*FROZEN[:3], Full()), head=Frozen()), anatomy)
    expected = (
        "tied embeddings: the head shares the frozen embedding's tensor, so it is frozen too "
        f"(use untie: true to train a copy of it, +{copied:,} parameters)"
    )
    assert lines == ([expected] if tied else [])
    assert notices(Plan(blocks=FROZEN, embeddings=Full()), anatomy) == []
    assert notices(Plan(blocks=FROZEN, untie=True), anatomy) == []


def task_of(name: str) -> str:
    return "masked" if name in encoder_names else natural_task(name)


def tied_model(name: str) -> Any:
    return tiny(name, task_of(name), tied=None if natural_task(name) == "seq2seq" else True).eval()


def by_name(anatomy: Anatomy) -> list[Tensor]:
    return sorted(anatomy.tensors, key=lambda tensor: tensor.name)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_untying_gives_the_model_that_transformers_builds_untied(name: str) -> None:
    model, native = tied_model(name), tiny(name, task_of(name), tied=False).eval()
    tied, batch = find_anatomy(model), batch_for(model)
    assert tied.tied
    before = model(**batch).logits
    untie(model)
    assert torch.equal(model(**batch).logits, before)

    predicted, found = untied(tied), find_anatomy(model)
    assert by_name(predicted) == by_name(found)
    assert predicted.head_linears == found.head_linears
    assert predicted.embeddings == found.embeddings
    assert not predicted.tied
    assert found == find_anatomy(native)
    shared_bias = name in ("bert", "roberta", "deberta-v2")
    assert predicted.total_parameters - tied.total_parameters == VOCABULARY * (WIDTH + shared_bias)

    embedding = model.get_input_embeddings().weight.detach().clone()
    with torch.no_grad():
        for tensor in found.head:
            model.get_parameter(tensor.name).add_(torch.rand(tensor.shape))
    assert torch.equal(model.get_input_embeddings().weight, embedding), "the head is a copy"
    model.tie_weights(recompute_mapping=False)
    model.tie_weights()
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight, "and stays one"
    native.load_state_dict(model.state_dict())
    assert torch.equal(native(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize(
    ("name", "auto_class"),
    [("llama", AutoModelForCausalLM), ("bert", AutoModelForMaskedLM), ("t5", AutoModelForSeq2SeqLM)],
)
def test_an_untied_model_is_saved_and_loaded_whole(tmp_path: Path, name: str, auto_class: Any) -> None:
    model = tied_model(name)
    untie(model)
    with torch.no_grad():
        for tensor in find_anatomy(model).head:
            model.get_parameter(tensor.name).add_(torch.rand(tensor.shape))
    model.save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path).eval()
    batch = batch_for(model)
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    assert not find_anatomy(loaded).tied


def test_a_plan_is_checked_without_weights() -> None:
    model = tiny("llama", tied=True)
    bare = skeleton(model.config, AUTO_CLASSES["causal"])
    plan = Plan(blocks=(Frozen(), Full(), Partial(train="norms_and_biases"), Lora()), untie=True)
    assert select(plan, find_anatomy(bare)) == select(plan, find_anatomy(model))
