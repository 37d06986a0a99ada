"""`attach` on any Trainer and `activation_cache` in any loop: the losses are those without them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from test_heads import ALL, USES, losses
from torch.utils.data import DataLoader
from transformers import TrainerCallback

import frostline as fl
from cache_cases import StopAt, arguments, frozen_by_hand, rows_for
from cache_cases import collate as collate_rows
from frostline.core.errors import CheckpointError, ConfigError, PlanError
from grids import grid, slow_but
from heads import HEADS, collate, model_of, rows_of
from tolerances import LOSS, after_sgd


@pytest.fixture(autouse=True)
def cache_here(tmp_path: Path, own_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "cache"))


def trainer_of(folder: Path, model: Any, head: str, use: Any = USES[""], **options: Any) -> Any:
    args = arguments(folder, use.args, per_device_train_batch_size=2, **use.settings, **options)
    return use.plain(model=model, args=args, train_dataset=rows_of(head), data_collator=collate, **use.options)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def assert_same_weights(model: Any, other: Any, steps: int) -> None:
    expected = weights(other)
    for name, value in weights(model).items():
        torch.testing.assert_close(value, expected[name], atol=after_sgd(0.1, steps), rtol=0, msg=name)


@pytest.mark.parametrize(
    ("name", "head", "use", "accumulation"),
    # Half of the diagonal: every head and every use once, by turns with one batch and two in a step.
    slow_but([(*case, 1 + i % 2) for i, case in enumerate(ALL) if i % 4 in (0, 3)], grid(ALL, [1, 2])),
)
def test_every_head_trains_as_without_it(tmp_path: Path, name: str, head: str, use: str, accumulation: int) -> None:
    given: dict[str, Any] = {"gradient_accumulation_steps": accumulation}
    plan = fl.make_plan(model_of(name, head), "bot50")
    plain = trainer_of(tmp_path, frozen_by_hand(model_of(name, head), plan), head, USES[use], **given)
    ours = fl.attach(trainer_of(tmp_path, model_of(name, head), head, USES[use], **given), plan)
    kind = type(ours)
    assert losses(ours) == pytest.approx(losses(plain), rel=10 * LOSS)
    assert_same_weights(ours.model, plain.model, plain.state.global_step)
    assert type(ours) is kind is USES[use].plain
    assert ours.cache_report.used and not ours.cache_report.given_up
    recognized = head != "choices"
    assert ours.cache_report.rows == (8 if recognized else 0)
    assert (ours.cache_report.computed == 0) == recognized
    if HEADS[head].auto is transformers.AutoModelForQuestionAnswering or use:
        return
    assert (ours.notices == ()) == recognized


def test_after_apply_and_after_peft(tmp_path: Path) -> None:
    model = model_of("llama", "causal")
    fl.apply(fl.make_plan(model, "bot50"), model)
    ours = fl.attach(trainer_of(tmp_path, model, "causal"))
    ours.train()
    assert ours.cache_report.rows == 8

    def adapted() -> Any:
        torch.manual_seed(0)
        config = LoraConfig(target_modules=["q_proj"], layers_to_transform=[2, 3], task_type="CAUSAL_LM")
        return get_peft_model(model_of("llama", "causal"), config)

    plain = trainer_of(tmp_path, adapted(), "causal", save_strategy="epoch")
    ours = fl.attach(trainer_of(tmp_path / "ours", adapted(), "causal", save_strategy="epoch"))
    assert losses(ours) == pytest.approx(losses(plain), rel=10 * LOSS)
    assert ours.cache_report.used and ours.cache_report.rows == 0, "the same bottom: its states are on disk"
    assert (tmp_path / "ours" / "checkpoint-4" / "adapter_model.safetensors").is_file()
    with pytest.raises(fl.UnsupportedModel, match="already has PEFT adapters"):
        fl.attach(trainer_of(tmp_path, adapted(), "causal"), "bot50")


def test_a_learning_rate_of_its_own_for_some_blocks(tmp_path: Path) -> None:
    ours = fl.attach(trainer_of(tmp_path, model_of("llama", "causal"), "causal"), "discriminative")
    mine = fl.Trainer(
        model_of("llama", "causal"),
        arguments(tmp_path, per_device_train_batch_size=2),
        plan="discriminative",
        train_dataset=rows_of("causal"),
        data_collator=collate,
    )
    assert losses(ours) == pytest.approx(losses(mine), rel=10 * LOSS)
    assert_same_weights(ours.model, mine.model, mine.state.global_step)
    rates = {group["initial_lr"] for group in ours.optimizer.param_groups}
    assert len(rates) > 2


def test_model_init_makes_a_model_for_each_training(tmp_path: Path) -> None:
    def made(attached: bool) -> Any:
        def model_init() -> Any:
            model = model_of("llama", "causal")
            return model if attached else frozen_by_hand(model, fl.make_plan(model, "bot50"))

        args = arguments(tmp_path, per_device_train_batch_size=2)
        trainer = transformers.Trainer(
            model_init=model_init, args=args, train_dataset=rows_of("causal"), data_collator=collate
        )
        return fl.attach(trainer, "bot50") if attached else trainer

    ours, plain = made(True), made(False)
    for _ in range(2):
        assert losses(ours)[-12:] == pytest.approx(losses(plain)[-12:], rel=10 * LOSS)
        assert ours.cache_report.used


def test_a_schedule_changes_the_plan_and_resumes(tmp_path: Path) -> None:
    def made(folder: str, **options: Any) -> Any:
        trainer = trainer_of(tmp_path / folder, model_of("llama", "causal"), "causal", save_steps=5, **options)
        return fl.attach(trainer, schedule="adt-l50")

    given = {"save_strategy": "steps", "num_train_epochs": 3}
    mine = fl.Trainer(
        model_of("llama", "causal"),
        arguments(tmp_path / "mine", per_device_train_batch_size=2),
        schedule="adt-l50",
        train_dataset=rows_of("causal"),
        data_collator=collate,
    )
    whole = made("whole", **given)
    assert losses(whole) == pytest.approx(losses(mine), rel=10 * LOSS)
    whole = made("whole", **given)
    whole.train()
    stopped = made("stopped", **given)
    stopped.add_callback(StopAt(7))
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = made("stopped", **given)
    resumed.train(resume_from_checkpoint=True)
    for name, value in weights(whole.model).items():
        assert torch.equal(weights(resumed.model)[name], value), name
    (tmp_path / "stopped" / "checkpoint-5" / "frostline.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no frostline\.json"):
        made("stopped", **given).train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-5"))


def test_what_is_refused(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, model_of("llama", "causal"), "causal")
    with pytest.raises(ConfigError, match="no plan is given"):
        fl.attach(trainer)
    with pytest.raises(ConfigError, match="activation_cache: 'yes'"):
        fl.attach(trainer, "bot50", activation_cache="yes")
    with pytest.raises(PlanError, match="make_schedule"):
        fl.attach(trainer, "adt-l50")
    fl.attach(trainer, "bot50")
    with pytest.raises(ConfigError, match="called on this trainer before"):
        fl.attach(trainer, "bot50")
    with pytest.raises(ConfigError, match=r"not a transformers\.Trainer"):
        fl.attach(model_of("llama", "causal"), "bot50")
    model = model_of("llama", "causal")
    with pytest.raises(ConfigError, match=r"frostline\.Trainer has the plan"):
        fl.attach(fl.Trainer(model, arguments(tmp_path), plan="bot50", train_dataset=[]), "bot50")
    model = model_of("llama", "causal")
    made = torch.optim.SGD(list(model.parameters()), lr=0.1)
    early = transformers.Trainer(model, arguments(tmp_path), train_dataset=rows_of("causal"), optimizers=(made, None))
    with pytest.raises(ConfigError, match="the optimizer that the trainer was given lacks"):
        fl.attach(early, "lora")


def test_one_epoch_stores_nothing(tmp_path: Path) -> None:
    ours = fl.attach(trainer_of(tmp_path, model_of("llama", "causal"), "causal", num_train_epochs=1), "bot50")
    ours.train()
    assert not ours.cache_report.used and "each row is seen once" in ours.notices[0]
    asked = trainer_of(tmp_path, model_of("llama", "causal"), "causal", num_train_epochs=1)
    fl.attach(asked, "bot50", activation_cache="on").train()
    assert asked.cache_report.rows == 8


class Looks(TrainerCallback):
    """What a user's callback may see of the model in the middle of training."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        averaged = copy.deepcopy(model)
        batch = collate(rows_of("causal")[:2])
        with torch.no_grad():
            averaged.eval()
            self.seen.append((sorted(model.state_dict()), float(averaged(**batch).loss)))


def test_callbacks_see_the_whole_model(tmp_path: Path) -> None:
    plan = fl.make_plan(model_of("llama", "causal"), "bot50")
    seen = []
    for attached in (False, True):
        model = model_of("llama", "causal")
        trainer = trainer_of(tmp_path, model if attached else frozen_by_hand(model, plan), "causal")
        if attached:
            fl.attach(trainer, plan)
        looks = Looks()
        trainer.add_callback(looks)
        losses(trainer)
        seen.append(looks.seen)
    assert [names for names, _ in seen[0]] == [names for names, _ in seen[1]]
    assert [loss for _, loss in seen[1]] == pytest.approx([loss for _, loss in seen[0]], rel=10 * LOSS)


# Loops of the user's own.


def loop(
    model: Any, rows: list[Any], loss_of: Any = None, *, epochs: int = 3, batch: int = 4, dtype: Any = None
) -> list[float]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    found = []
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(epoch)).tolist()
        for start in range(0, len(rows), batch):
            inputs = collate_rows([rows[index] for index in order[start : start + batch]])
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
                loss = model(**inputs).loss if loss_of is None else loss_of(model, inputs)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(float(loss.detach()))
    return found


def planned(name: str) -> Any:
    model = model_of(name, "classes" if name == "bert" else "causal")
    fl.apply(fl.make_plan(model, "bot50"), model)
    return model


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("at_once", [False, True])
def test_a_plain_loop(name: str, dtype: Any, at_once: bool) -> None:
    model = planned(name)
    rows = rows_for(model)
    expected = loop(planned(name), rows, dtype=dtype)
    given = (rows, collate_rows) if at_once and dtype is None else ()
    with fl.activation_cache(model, *given) as cache:
        found = loop(model, rows, dtype=dtype)
    assert found == pytest.approx(expected, abs=1e-4 if dtype is None else 2e-2)
    assert (cache.report.used, cache.report.rows, cache.report.computed) == (True, 12, 0) and cache.notices == ()
    with fl.activation_cache(model, *given) as cache:
        loop(model, rows, dtype=dtype)
    assert cache.report.rows == (0 if dtype is None else 1) or cache.report.rows == 0


def of_all_positions(model: Any, inputs: Any) -> torch.Tensor:
    """Reads the outputs at padding too."""
    logits: torch.Tensor = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    return logits.softmax(-1).amax(-1).mean()


def of_tokens(model: Any, inputs: Any) -> torch.Tensor:
    mask = inputs["attention_mask"][..., None]
    logits: torch.Tensor = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    return (logits.softmax(-1) * mask).amax(-1).sum() / mask.sum()


def test_a_loss_that_reads_padding_gives_the_cache_up_before_anything_is_fed() -> None:
    rows = rows_for(planned("llama"))
    for loss_of, kept in ((of_tokens, True), (of_all_positions, False)):
        model = planned("llama")
        expected = loop(planned("llama"), rows, loss_of)
        with fl.activation_cache(model) as cache:
            assert loop(model, rows, loss_of) == pytest.approx(expected, rel=10 * LOSS)
        assert (cache.report.given_up == "") == kept
        assert kept or "reads outputs at padding" in cache.notices[0]


def test_a_hook_below_the_boundary_gives_the_cache_up() -> None:
    model, plain = planned("llama"), planned("llama")
    rows = rows_for(model)
    seen: list[int] = []
    with fl.activation_cache(model) as cache:
        found = loop(model, rows, epochs=2)
        model.model.layers[0].register_forward_hook(lambda *_: seen.append(1))
        found += loop(model, rows, epochs=1)
    expected = loop(plain, rows, epochs=2) + loop(plain, rows, epochs=1)
    assert found == pytest.approx(expected, rel=10 * LOSS)
    assert "off since call" in cache.notices[0] and "a forward hook is on model.layers.0" in cache.notices[0]
    assert len(seen) >= 3, "it ran in every step"


def test_rows_that_are_not_stored_run_the_bottom() -> None:
    model, rows = planned("llama"), rows_for(planned("llama"))
    with fl.activation_cache(model, rows[:6], collate_rows, store=False) as cache:
        found = loop(model, rows)
    assert found == pytest.approx(loop(planned("llama"), rows), rel=10 * LOSS)
    assert cache.report.rows == 6 and cache.report.computed > 3 and "not in the activation cache" in cache.notices[0]


def test_accelerate_prepares_the_model(tmp_path: Path) -> None:
    def run(cached: bool) -> list[float]:
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = planned("bert")
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        loader = DataLoader(rows_for(model), batch_size=4, collate_fn=collate_rows)  # type: ignore[arg-type]
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        found = []

        def epochs() -> None:
            for _ in range(3):
                for batch in loader:
                    with accelerator.accumulate(model):
                        loss = model(**batch).loss
                        accelerator.backward(loss)
                        optimizer.step()
                        optimizer.zero_grad()
                    found.append(float(loss.detach()))

        if cached:
            with fl.activation_cache(model) as cache:
                epochs()
            assert cache.report.rows == 12 and cache.notices == ()
        else:
            epochs()
        return found

    assert run(True) == pytest.approx(run(False), rel=10 * LOSS)


def test_generation_and_evaluation_inside_the_context() -> None:
    model = planned("llama")
    ids = torch.tensor([rows_for(model)[0]["input_ids"]])
    expected = model.eval().generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    with fl.activation_cache(model) as cache:
        loop(model, rows_for(model), epochs=2)
        model.eval()
        with torch.no_grad():
            whole = model(ids, output_hidden_states=True)
    plain = planned("llama")
    loop(plain, rows_for(plain), epochs=2)
    torch.testing.assert_close(whole.hidden_states[-1], plain.eval()(ids, output_hidden_states=True).hidden_states[-1])
    assert len(expected[0]) > ids.shape[1] and cache.report.rows == 12


def test_what_a_loop_cannot_have(tmp_path: Path) -> None:
    model = model_of("llama", "causal")
    with pytest.raises(ConfigError, match="no plan is given"), fl.activation_cache(model):
        pass
    fl.apply(fl.make_plan(model, "all"), model)
    with pytest.raises(ConfigError, match="on, but nothing is frozen"), fl.activation_cache(model, mode="on"):
        pass
    with fl.activation_cache(model) as cache:
        assert not cache.report.used
    with pytest.raises(ConfigError, match="rows and collate go together"), fl.activation_cache(planned("bert"), []):
        pass
    with fl.activation_cache(planned("bert"), mode="off") as cache:
        assert not cache.report.used and cache.notices == ()


def test_a_model_with_adapters_is_saved_merged(tmp_path: Path) -> None:
    ours = fl.attach(trainer_of(tmp_path / "run", model_of("llama", "causal"), "causal", save_strategy="epoch"), "lora")
    ours.train()
    ours.save_model(str(tmp_path / "saved"))
    again = type(model_of("llama", "causal")).from_pretrained(tmp_path / "saved").eval()
    batch = collate(rows_of("causal")[:2])
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, ours.model.eval()(**batch).logits, atol=1e-4, rtol=0)
    assert any("lora_A" in name for name, _ in ours.model.named_parameters()), "the model itself stays as it is"
    resumed = trainer_of(tmp_path / "run", model_of("llama", "causal"), "causal", num_train_epochs=3)
    fl.attach(resumed, "lora").train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert resumed.state.global_step == 12


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"activation_cache_limit": "lots"}, "activation_cache_limit 'lots': a size is"),
        ({"activation_cache_limit": -1}, "activation_cache_limit: '-1' is no number of bytes"),
        ({"loss_positions": "off"}, "loss_positions: 'off' is not known: use True or False"),
        ({"activation_cache": "yes"}, "activation_cache: 'yes' is not known"),
        ({"plan": 50}, "plan: it should be"),
        ({"schedule": {}}, "schedule: it should be"),
    ],
)
def test_settings_of_the_wrong_kind_are_one_line(tmp_path: Path, settings: dict[str, Any], line: str) -> None:
    given = {"plan": "bot50", **settings} if "schedule" not in settings else settings
    for attached in (True, False):
        model = model_of("llama", "causal")
        with pytest.raises(ConfigError, match=line) as caught:
            if attached:
                fl.attach(trainer_of(tmp_path, model, "causal"), **given)
            else:
                fl.Trainer(model, arguments(tmp_path), train_dataset=rows_of("causal"), **given)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("strategy", ["hlpt", "hierarchical"])
def test_a_plan_that_cannot_be_merged_is_saved_as_a_delta(tmp_path: Path, strategy: str) -> None:
    base = model_of("llama", "causal")
    base.save_pretrained(tmp_path / "base")
    model = type(base).from_pretrained(tmp_path / "base")
    plan = fl.make_plan(model, strategy)
    if strategy == "hierarchical":
        forward = {"residual": {"alpha": 0.5}}
        plan = plan.model_copy(update={"forward": type(plan.forward).model_validate(forward)})
    ours = fl.attach(trainer_of(tmp_path / "run", model, "causal"), plan)
    assert "save_model writes a delta" in ours.notices[-1]
    ours.train()
    ours.save_model(str(tmp_path / "saved"))
    again, batch = fl.load(tmp_path / "saved"), collate(rows_of("causal")[:2])
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, ours.model.eval()(**batch).logits, atol=1e-5, rtol=0)


class Streamed(torch.utils.data.IterableDataset[Any]):
    """Rows again and again."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        while True:
            yield from self.rows


class LateHook(TrainerCallback):
    """Puts a hook on the model at the beginning of a step, after all other callbacks."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 3:
            model.register_forward_hook(
                lambda module, given, output: self.seen.append(float(output.logits[:, 0].detach().norm()))
            )


def test_a_hook_that_a_later_callback_puts_on_the_model_sees_whole_outputs(tmp_path: Path) -> None:
    found = []
    for attached in (False, True):
        model = model_of("llama", "causal")
        plan = fl.make_plan(model, "bot50")
        trainer = trainer_of(tmp_path, model if attached else frozen_by_hand(model, plan), "causal")
        if attached:
            fl.attach(trainer, plan, activation_cache="off")
        hook = LateHook()
        trainer.add_callback(hook)
        trainer.train()
        found.append(hook.seen)
    assert found[1] == pytest.approx(found[0], rel=1e-3) and found[0]


def test_classes_of_an_encoder_decoder_run_plainly(tmp_path: Path) -> None:
    model = model_of("bart", "classes")
    plan = fl.make_plan(model, "head")
    plain = trainer_of(tmp_path, frozen_by_hand(model_of("bart", "classes"), plan), "classes")
    ours = fl.attach(trainer_of(tmp_path, model, "classes"), plan, activation_cache="on")
    for trainer in (plain, ours):  # such a classifier reads the end of the text
        end = trainer.model.config.eos_token_id
        trainer.train_dataset = [
            {"input_ids": [5 + i, 6, 7, end], "attention_mask": [1] * 4, "labels": i % 3} for i in range(8)
        ]
    assert losses(ours) == pytest.approx(losses(plain), rel=10 * LOSS)
    assert "the frozen bottom ran for them" in ours.cache_report.notice


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_balance_loss_of_a_step_is_not_touched_by_what_is_tried_within_it(tmp_path: Path, name: str) -> None:
    found = []
    for mode in ("off", "on"):
        model = model_of(name, "causal")
        trainer = trainer_of(tmp_path, model, "causal")
        trainer.train_dataset = Streamed(trainer.train_dataset)  # not known before: stored while training runs
        trainer.args.max_steps = 6
        plan = fl.make_plan(model, "bot50+mixlora")
        blocks = [
            block.model_copy(update={"dropout": 0.0} if hasattr(block, "dropout") else {}) for block in plan.blocks
        ]
        fl.attach(trainer, plan.model_copy(update={"blocks": tuple(blocks)}), activation_cache=mode)
        found.append(losses(trainer))
    assert trainer.cache_report.used
    assert found[1] == pytest.approx(found[0], rel=10 * LOSS)


def test_no_rows(tmp_path: Path) -> None:
    model = model_of("llama", "causal")
    with pytest.raises(fl.DataError, match="train_dataset: it has no rows"):
        fl.Trainer(model, arguments(tmp_path), plan="bot50", train_dataset=[], data_collator=collate).train()
    plain = transformers.Trainer(model_of("llama", "causal"), arguments(tmp_path), train_dataset=[])
    with pytest.raises(fl.DataError, match="train_dataset: it has no rows"):
        fl.attach(plain, "bot50").train()


def test_a_limit_may_be_a_size_and_says_that_it_was_reached(tmp_path: Path) -> None:
    ours = fl.attach(trainer_of(tmp_path, model_of("llama", "causal"), "causal"), "bot50", activation_cache_limit="1KB")
    ours.train()
    assert "all caches together may use 0.977 KiB" in ours.cache_report.reason and ours.cache_report.rows == 0


def test_a_compiled_model_declines_the_cache() -> None:
    model = planned("llama")
    with fl.activation_cache(torch.compile(model, backend="eager")) as cache:
        pass
    assert not cache.report.used and "the model is compiled" in cache.notices[0]


def test_blocks_frozen_by_hand_below_embeddings_that_train(tmp_path: Path) -> None:
    model = model_of("llama", "causal")
    for block in model.model.layers[:2]:
        block.requires_grad_(False)
    trainer = fl.Trainer(model, arguments(tmp_path), train_dataset=rows_of("causal"), data_collator=collate)
    trainer.train()
    assert any("the embeddings train (model.embed_tokens.weight)" in notice for notice in trainer.notices)


def test_a_compiled_training_has_no_loss_positions(tmp_path: Path) -> None:
    ours = fl.attach(trainer_of(tmp_path, model_of("llama", "causal"), "causal"), "bot50")
    ours.args.torch_compile = True  # as set: compiling itself is not what is tried
    ours.train()
    assert not ours.cache_report.used
    assert "loss positions are off: torch_compile makes one graph of the whole model" in ours.notices
