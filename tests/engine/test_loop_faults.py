"""What may change or go wrong around `activation_cache` and `attach`: training stays that without them."""

from __future__ import annotations

import copy
import errno
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

import frostline as fl
from cache_cases import arguments, bottom_plan, collate, collate_on_the_left, frozen_by_hand, rows_for
from frostline.bottom import CacheReport
from frostline.core.errors import UserError
from frostline.plan import Frozen
from grids import grid
from heads import collate as collate_head
from heads import model_of, rows_of
from tolerances import LOSS, after_sgd

Batches = list[dict[str, Any]]
Between = Callable[[int, Any, Any], None]


@pytest.fixture(autouse=True)
def cache_here(tmp_path: Path, own_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "cache"))


def llama() -> Any:
    return model_of("llama", "causal")


def batches_for(model: Any, collator: Any = collate, epochs: int = 3) -> Batches:
    rows, found = rows_for(model), []
    for epoch in range(epochs):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(epoch)).tolist()
        found += [collator([rows[index] for index in order[start : start + 4]]) for start in range(0, len(rows), 4)]
    return found


def own_loss(model: Any, batch: Any) -> Any:
    return model(**batch).loss


def train(
    model: Any,
    batches: Batches,
    loss_of: Any = own_loss,
    between: Between | None = None,
    norms: list[float] | None = None,
) -> list[float]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    found = []
    model.train()
    for step, batch in enumerate(batches):
        if between is not None:
            between(step, model, optimizer)
        loss = loss_of(model, batch)
        loss.backward()
        if norms is not None:
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            norms.append(float(torch.nn.utils.get_total_norm(gradients)))
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))
    return found


def assert_same(
    make: Callable[[], Any],
    batches: Batches,
    loss_of: Any = own_loss,
    between: Between | None = None,
    plan: Any = None,
    at_once: bool = False,
) -> Any:
    """Train with the cache and without it, compare losses and weights, and give what the cache did."""
    plan = plan or fl.make_plan(make(), "bot50")
    plain, cached = frozen_by_hand(make(), plan), frozen_by_hand(make(), plan)
    norms = [1.0]
    expected = train(plain, batches, loss_of, between, norms)
    given = (rows_for(cached), collate) if at_once else ()
    with fl.activation_cache(cached, *given) as cache:
        found = train(cached, batches, loss_of, between)
    assert found == pytest.approx(expected, rel=10 * LOSS)
    for (name, mine), other in zip(cached.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=after_sgd(0.1, len(batches), max(norms)), rtol=0, msg=name)
    return cache.report


# The loss reads padding.


def of_all_positions(model: Any, batch: Any) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return 100 * logits.softmax(-1).amax(-1).mean()


def test_a_loss_that_reads_padding_is_seen_before_the_first_padded_call_is_fed() -> None:
    batches = batches_for(llama())
    assert "reads outputs at padding" in assert_same(llama, batches, of_all_positions, at_once=True).given_up
    one = [collate([row]) for row in rows_for(llama())]
    assert "reads outputs at padding" in assert_same(llama, one + batches, of_all_positions).given_up


# Rows at other places.


def test_absolute_positions_on_the_left() -> None:
    report = assert_same(lambda: model_of("gpt2", "causal"), batches_for(llama(), collate_on_the_left))
    assert report.rows == 0 or not report.given_up
    report = assert_same(llama, batches_for(llama(), collate_on_the_left))
    assert report.rows == 12 and report.computed == 0, "a rotary model reads rows wherever they stand"


def packed(ids: list[int], positions: list[int], **options: Any) -> dict[str, Any]:
    tokens = torch.tensor([ids])
    return {"input_ids": tokens, "position_ids": torch.tensor([positions]), "labels": tokens.clone(), **options}


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (packed([5, 7, 8, 9, 3, 4], [0, 1, 2, 0, 1, 2]), packed([5, 7, 8, 9, 3, 4], [0, 3, 9, 0, 1, 2])),
        (packed([8, 9, 3, 4, 6, 6], [0, 1, 2, 0, 1, 2]), packed([5, 7, 8, 9, 3, 4, 6, 6], [3, 4, 0, 1, 2, 0, 1, 2])),
        # With a cache of keys and values, which is the default, packed rows see those before them.
        (packed([5, 7, 8, 9, 3, 4], [0, 1, 2, 0, 1, 2]), packed([9, 3, 4, 5, 7, 8], [0, 1, 2, 0, 1, 2])),
    ],
)
def test_packed_rows_that_are_not_alone(first: Any, later: Any) -> None:
    assert_same(llama, [first] * 2 + [later] * 3)


def test_packed_rows_that_are_alone() -> None:
    first = packed([5, 7, 8, 9, 3, 4], [0, 1, 2, 0, 1, 2], use_cache=False)
    later = packed([9, 3, 4, 5, 7, 8], [0, 1, 2, 0, 1, 2], use_cache=False)
    assert assert_same(llama, [first] * 2 + [later] * 3).rows == 2


def test_holes_in_the_mask() -> None:
    def batch(mask: list[int]) -> dict[str, Any]:
        ids = torch.tensor([[5, 7, 7, 9], [5, 6, 8, 9]])
        return {"input_ids": ids, "attention_mask": torch.tensor([mask, [1] * 4]), "labels": torch.tensor([0, 1])}

    with_hole, without = batch([1, 0, 1, 0]), batch([1, 1, 0, 0])
    report = assert_same(
        lambda: model_of("bert", "classes"), [without, without, with_hole, with_hole, without, with_hole]
    )
    assert report.rows == 2 and report.computed == 3


# Other arguments.


def test_an_argument_that_is_no_tensor_changes_the_bottom() -> None:
    batches = batches_for(llama(), epochs=4)
    for step, batch in enumerate(batches):
        batch["is_causal"] = step % 5 != 0
    assert not assert_same(llama, batches).given_up


def test_decoding_with_keys_and_values_of_a_known_row() -> None:
    model = frozen_by_hand(llama(), fl.make_plan(llama(), "bot50")).eval()
    ids = torch.tensor([[5, 6, 7, 8]])

    def decode() -> list[int]:
        given, past, found = ids, None, []
        for _ in range(4):
            with torch.no_grad():
                output = model(input_ids=given, past_key_values=past)
            given, past = output.logits[:, -1:].argmax(-1), output.past_key_values
            found.append(int(given))
        return found

    expected = decode()
    with fl.activation_cache(model):
        assert [decode() for _ in range(3)] == [expected] * 3


# Encoder-decoders.


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_decoder_that_is_cut(name: str) -> None:
    def make() -> Any:
        return model_of(name, "seq2seq")

    blocks = {"t5": 7, "bart": 4}[name]
    plan = bottom_plan(make(), blocks - 1, norm=Frozen())
    rows = rows_of("seq2seq", 12)
    batches = [collate_head(rows[start : start + 4]) for start in range(0, 12, 4)] * 3
    report = assert_same(make, batches, plan=plan)
    assert report.rows == 12 and not report.given_up

    def smoothed(model: Any, batch: Any) -> Any:
        output = model(**batch)
        return output.loss + output.logits.log_softmax(-1).mean()

    assert "reads outputs at padding" in assert_same(make, batches, smoothed, plan=plan).given_up
    ids = torch.tensor([[5, 6, 7, 0], [5, 6, 7, 8]])
    batch = {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "labels": torch.tensor([[4, 5, 6, 7], [5, 6, 7, 8]]),
    }
    given = [torch.tensor([[0, 4, 5, last], [0, 5, 6, 7]]) for last in (6, 99)]
    report = assert_same(make, [{**batch, "decoder_input_ids": given[step // 3]} for step in range(6)], plan=plan)
    assert report.rows == 0


# The bottom is changed.


def unfrozen(model: Any, optimizer: Any) -> None:
    parameters = list(model.model.layers[1].parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer.add_param_group({"params": parameters})


def unfrozen_in_place(model: Any, optimizer: Any) -> None:
    for parameter in model.model.layers[1].parameters():
        parameter.requires_grad_(True)
        optimizer.param_groups[0]["params"].append(parameter)


def written(model: Any, _optimizer: Any) -> None:
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1.5)


def exchanged(model: Any, _optimizer: Any) -> None:
    weight = model.model.layers[0].mlp.down_proj.weight
    weight.data = 1.5 * weight.data


def wrapped(model: Any, _optimizer: Any) -> None:
    model.model.layers[0].mlp = torch.nn.Sequential(model.model.layers[0].mlp, torch.nn.Dropout(0.0), torch.nn.Tanh())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (unfrozen, "is to train now"),
        (written, "the weights below the boundary have changed"),
        (exchanged, "the weights below the boundary have changed"),
        (wrapped, "a module below the boundary was replaced"),
    ],
)
def test_a_bottom_that_changes_gives_the_cache_up_at_once(change: Any, says: str) -> None:
    def between(step: int, model: Any, optimizer: Any) -> None:
        if step == 6:
            change(model, optimizer)

    report = assert_same(llama, batches_for(llama(), epochs=6), between=between)
    assert says in report.given_up and "since call 4" in report.given_up


class At(TrainerCallback):
    def __init__(self, step: int, change: Any) -> None:
        self.step, self.change = step, change

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step == self.step:
            self.change(given["model"], given["optimizer"])


@pytest.mark.parametrize(("attached", "change"), grid([False, True], [unfrozen_in_place, written, exchanged, wrapped]))
def test_a_bottom_that_a_callback_changes(tmp_path: Path, change: Any, attached: bool) -> None:
    found = []
    for ours in (False, True):
        model = llama() if ours else frozen_by_hand(llama(), fl.make_plan(llama(), "bot50"))
        given: dict[str, Any] = {"train_dataset": rows_for(llama()), "data_collator": collate}
        given["callbacks"] = [At(5, change)]
        args = arguments(tmp_path, num_train_epochs=4)
        trainer: Any
        if ours and not attached:
            trainer = fl.Trainer(model, args, plan="bot50", activation_cache="on", **given)
        else:
            trainer = transformers.Trainer(model, args, **given)
            if ours:
                fl.attach(trainer, "bot50")
        transformers.set_seed(3)
        trainer.train()
        found.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert found[1] == pytest.approx(found[0], rel=10 * LOSS)
    assert "below the boundary" in trainer.cache_report.given_up


def test_weights_that_are_exchanged_and_put_back_keep_the_cache() -> None:
    def between(step: int, model: Any, _optimizer: Any) -> None:
        model.load_state_dict(copy.deepcopy(model.state_dict()))

    assert not assert_same(llama, batches_for(llama()), between=between).given_up


def test_a_dtype_that_cannot_be_stored() -> None:
    assert "float32, bfloat16 or float16" in assert_same(lambda: llama().double(), batches_for(llama())).given_up


def test_a_disk_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def between(step: int, _model: Any, _optimizer: Any) -> None:
        monkeypatch.setattr("frostline.bottom._filling.SHARD_BYTES", 1 if step % 2 else 1 << 30)

    monkeypatch.setattr("frostline.bottom._shards.save_file", fail)
    monkeypatch.setattr("frostline.bottom._weights.save_file", fail)
    report = assert_same(llama, batches_for(llama(), epochs=8), between=between)
    assert "no more are stored" in report.reason


# Activation checkpointing, adapters, and a training that begins again.


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(tmp_path: Path, reentrant: bool) -> None:
    def make() -> Any:
        model = llama()
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": reentrant})
        return model

    report = assert_same(make, batches_for(llama()))
    assert report.used != reentrant and ("is re-entrant" in (report.notice or "")) == reentrant
    plain = frozen_by_hand(make(), fl.make_plan(llama(), "bot50"))
    expected = train(plain, batches_for(llama()))
    applied = make()
    fl.apply(fl.make_plan(applied, "bot50"), applied)
    assert train(applied, batches_for(llama())) == pytest.approx(expected, rel=10 * LOSS)


def test_an_adapter_that_is_the_reference() -> None:
    def adapted() -> Any:
        torch.manual_seed(0)
        config = LoraConfig(target_modules=["q_proj"], layers_to_transform=[2, 3], task_type="CAUSAL_LM")
        model = get_peft_model(llama(), config)
        model.add_adapter("ref", config)
        return model

    def loss_of(model: Any, batch: Any) -> Any:
        model.set_adapter("ref")
        with torch.no_grad():
            reference = model(**batch).loss
        model.set_adapter("default")
        return (model(**batch).loss - 0.5 * reference) ** 2

    found = []
    for cached in (False, True):
        model = adapted()
        if not cached:
            found.append(train(model, batches_for(llama()), loss_of))
            continue
        with fl.activation_cache(model) as cache:
            found.append(train(model, batches_for(llama()), loss_of))
        assert cache.report.rows == 12 and not cache.report.given_up
    assert found[1] == pytest.approx(found[0], rel=10 * LOSS)


class OutOfMemory(TrainerCallback):
    def __init__(self) -> None:
        self.raised = False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 1 and not self.raised:
            self.raised = True
            raise RuntimeError("CUDA out of memory.")


def test_a_training_that_begins_again_with_smaller_batches(tmp_path: Path) -> None:
    plan = fl.make_plan(llama(), "bot50")
    found = []
    for attached in (False, True):
        model = llama() if attached else frozen_by_hand(llama(), plan)
        args = arguments(tmp_path, auto_find_batch_size=True)
        trainer = transformers.Trainer(
            model, args, train_dataset=rows_of("causal", 12), data_collator=collate_head, callbacks=[OutOfMemory()]
        )
        if attached:
            fl.attach(trainer, plan)
        transformers.set_seed(3)
        trainer.train()
        found.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert found[1] == pytest.approx(found[0], rel=10 * LOSS)


def test_a_second_thread_that_calls_the_model() -> None:
    batches = batches_for(llama())
    model = frozen_by_hand(llama(), fl.make_plan(llama(), "bot50"))
    stop, failed = threading.Event(), []

    def evaluate() -> None:
        while not stop.is_set():
            try:
                with torch.no_grad():
                    model(input_ids=batches[3]["input_ids"], attention_mask=batches[3]["attention_mask"])
            except RuntimeError as error:
                failed.append(error)

    with fl.activation_cache(model):
        found = train(model, batches[:3])
        other = threading.Thread(target=evaluate)
        other.start()
        found += train(model, batches)
        stop.set()
        other.join()
    plain = frozen_by_hand(llama(), fl.make_plan(llama(), "bot50"))
    assert found == pytest.approx(train(plain, batches[:3]) + train(plain, batches), rel=10 * LOSS)
    assert not failed


class Drawing(torch.utils.data.Dataset[Any]):
    """Leaves a token out at random."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        row, dropped = rows_for(llama())[index], int(torch.randint(4, ()))
        return {name: values[:dropped] + values[dropped + 1 :] for name, values in row.items()}


def test_rows_that_are_drawn(tmp_path: Path) -> None:
    found = []
    for attached in (False, True):
        model = llama() if attached else frozen_by_hand(llama(), fl.make_plan(llama(), "bot50"))
        trainer = transformers.Trainer(model, arguments(tmp_path), train_dataset=Drawing(), data_collator=collate)
        transformers.set_seed(3)
        if attached:
            fl.attach(trainer, "bot50")
        trainer.train()
        found.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert found[1] == pytest.approx(found[0], rel=10 * LOSS)


class Seen(TrainerCallback):
    """How many rows are stored when training begins, and the state of the generator then."""

    trainer: Any

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.drawn: list[int] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.rows.append(self.trainer.cache_report.rows)
        self.drawn.append(int(torch.get_rng_state().sum()))


def masking(rows: Any) -> Any:
    """Hides tokens at random, as for masked language models."""
    batch = collate(rows)
    hidden = torch.rand(batch["input_ids"].shape) < 0.3
    return {**batch, "input_ids": batch["input_ids"].masked_fill(hidden, 3)}


@pytest.mark.parametrize(("collator", "known"), [(collate, 12), (masking, 0)])
def test_rows_that_are_known_pass_the_bottom_before_the_first_step(tmp_path: Path, collator: Any, known: int) -> None:
    found, drawn = [], []
    for attached in (False, True):
        model = llama() if attached else frozen_by_hand(llama(), fl.make_plan(llama(), "bot50"))
        seen = Seen()
        trainer = seen.trainer = transformers.Trainer(
            model, arguments(tmp_path), train_dataset=rows_for(model), data_collator=collator, callbacks=[seen]
        )
        trainer.cache_report = CacheReport()
        transformers.set_seed(3)
        if attached:
            fl.attach(trainer, "bot50")
        trainer.train()
        found.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        drawn.append(seen.drawn)
    assert seen.rows[0] == known
    assert drawn[0] == drawn[1], "the generators are where training left them"
    assert found[1] == pytest.approx(found[0], rel=10 * LOSS)


def test_a_setting_without_effect_below_leaves_rows_known() -> None:
    model = frozen_by_hand(llama(), fl.make_plan(llama(), "bot50"))
    own = model.forward
    model.forward = lambda *args, fused=False, **given: own(*args, **given)
    batch = collate(rows_for(model))
    with fl.activation_cache(model, rows_for(model), collate) as cache:
        for fused in (True, False):
            model(**batch, fused=fused).loss.backward()
            model(**batch, fused=fused).loss.backward()
    assert cache.report.rows == 12
    assert not cache.report.given_up


def test_a_forward_of_the_users_own_hides_no_feature(tmp_path: Path) -> None:
    found = []
    for kind in (transformers.Trainer, fl.Trainer):
        model = llama() if kind is fl.Trainer else frozen_by_hand(llama(), fl.make_plan(llama(), "bot50"))
        rows = [{"input_ids": row["input_ids"][:4], "labels": row["labels"][:4]} for row in rows_for(model)]
        model.forward = lambda own=model.forward, **given: own(**given)
        options: Any = {"plan": "bot50", "activation_cache": "on"} if kind is fl.Trainer else {}
        args = arguments(tmp_path, remove_unused_columns=False)
        trainer = kind(model, args, train_dataset=rows, data_collator=collate, **options)
        trainer.train()
        found.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert trainer.cache_report.used
    assert found[1] == pytest.approx(found[0], rel=10 * LOSS)


def test_what_is_of_the_wrong_kind(tmp_path: Path) -> None:
    def loop(model: Any = None, *given: Any, **options: Any) -> None:
        model = model or frozen_by_hand(llama(), fl.make_plan(llama(), "bot50"))
        with fl.activation_cache(model, *given, **options):
            pass

    def attached(**options: Any) -> None:
        model = llama()
        fl.attach(transformers.Trainer(model, arguments(tmp_path), train_dataset=rows_of("causal")), **options)

    for tried, says in (
        (partial(loop, "bert"), "str is not a model"),
        (partial(loop, None, 3, collate), "rows are tokenized rows, not int"),
        (partial(loop, None, ["a"], collate), "a row is a dict of tokens, not str"),
        (partial(loop, None, rows_for(llama()), 3), "collate is a function, not int"),
        (partial(loop, None, [{"input_ids": "text"}], collate), "a row has no list of token ids 'input_ids'"),
        (partial(loop, None, rows_for(llama()), lambda rows: {}), "batches of the collator do not hold the rows"),
        (partial(loop, store="no"), "store: 'no' is not known: use True or False"),
        (partial(loop, limit="10 many"), "'10 many': a size is"),
        (partial(loop, limit=-1), "'-1' is no number of bytes"),
        (partial(attached, plan="bot50", activation_cache_limit=2.5), "'2.5' is no number of bytes"),
        (partial(attached, plan=3), "plan: it should be a plan"),
        (partial(attached, schedule=3), "schedule: it should be a schedule"),
    ):
        with pytest.raises(UserError, match=says):
            tried()
