"""Training from the activation cache is the same training whatever else is asked of the trainer, or the cache is
refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import TrainerCallback

from architectures import AUTO_CLASSES, batch_for, tiny
from cache_cases import (
    StopAt,
    arguments,
    assert_same_training,
    bottom_plan,
    cache_trainer,
    collate,
    collate_on_the_left,
    losses,
    rows_for,
    streaming_trainer,
    train,
    trained,
)
from frostline.checkpoints import load_delta, trained_tensors
from frostline.core.cache import default_root
from frostline.core.errors import ConfigError
from frostline.engine import Trainer
from frostline.plan import Frozen, Lora
from grids import grid, slow_but
from tolerances import LOSS, after_sgd

TESTS = Path(__file__).resolve().parents[1]


def both(folder: Path, make: Any, **options: Any) -> tuple[Trainer, Trainer]:
    """A model of `make()` trained with the cache and without."""
    with_it, without = (train(folder / mode, make(), mode, **options) for mode in ("on", "off"))
    return with_it, without


@pytest.mark.parametrize(("name", "bf16"), grid(["llama", "bert", "t5"], [False, True]))
def test_lora_above_the_boundary(tmp_path: Path, name: str, bf16: bool) -> None:
    top = Lora(r=4)
    with_it, without = (trained(tmp_path, name, mode, top=top, bf16=bf16) for mode in ("on", "off"))
    assert_same_training(with_it, without, bf16)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
        {"activation_checkpointing": True},
        {"dataloader_num_workers": 1},
        {"train_sampling_strategy": "group_by_length"},
        {"max_steps": 7},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("name", slow_but(["llama"], ["llama", "t5"]))
def test_options_of_the_trainer(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    with_it, without = both(tmp_path, lambda: tiny(name), **options)
    assert_same_training(with_it, without)


def test_smoothed_labels(tmp_path: Path) -> None:
    with_it, without = both(tmp_path, lambda: tiny("llama"), label_smoothing_factor=0.1)
    assert_same_training(with_it, without)


@pytest.mark.parametrize("name", slow_but(["llama", "t5"], ["llama", "bert", "t5", "gpt2"]))
def test_dropout_draws_the_same_numbers(tmp_path: Path, name: str) -> None:
    # Frozen blocks are in eval mode with the cache or without: only what lies above draws.
    with_it, without = both(tmp_path, lambda: tiny(name, dropout=0.1))
    assert_same_training(with_it, without)
    assert losses(with_it) != pytest.approx(losses(train(tmp_path, tiny(name), "off")), abs=1e-4)


@pytest.mark.parametrize("task", ["causal", "classification"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_neox", "opt"])
def test_padding_on_the_left(tmp_path: Path, name: str, task: str) -> None:
    with_it, without = both(tmp_path, lambda: tiny(name, task), collator=collate_on_the_left)
    assert_same_training(with_it, without)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_positions_that_count_padding_are_refused(tmp_path: Path, name: str, order: int) -> None:
    # In either order the first rows may have the very padding that they had in the caching pass.
    rows = rows_for(tiny(name))[::order]
    with_it, without = both(tmp_path, lambda: tiny(name), rows=rows, collator=collate_on_the_left)
    assert not with_it.cache_report.used
    assert "padding" in with_it.cache_report.reason
    assert losses(with_it) == losses(without)


def test_what_is_refused_for_its_padding_leaves_no_states_behind(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"streaming needs the activation cache, but the states .* padding: use streaming=false$"
    ):
        streaming_trainer(tmp_path, tiny("gpt2"), 2, collator=collate_on_the_left).train()
    train(tmp_path, tiny("gpt2"), "on", collator=collate_on_the_left)
    assert not list(default_root().rglob("*.safetensors"))
    on_the_right = both(tmp_path, lambda: tiny("gpt2"))
    assert_same_training(*on_the_right)


def test_such_positions_are_no_hindrance_where_nothing_is_padded(tmp_path: Path) -> None:
    rows = [row for row in rows_for(tiny("gpt2"), 60) if len(row["input_ids"]) == 7]
    with_it, without = both(tmp_path, lambda: tiny("gpt2"), rows=rows, collator=collate_on_the_left)
    assert_same_training(with_it, without)


@pytest.mark.parametrize("name", slow_but(["llama"], ["llama", "gpt2", "mixtral", "gemma2"]))
def test_decoders_as_classifiers(tmp_path: Path, name: str) -> None:
    with_it, without = both(tmp_path, lambda: tiny(name, "classification"))
    assert_same_training(with_it, without)


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "bert", "modernbert"])
def test_only_the_head_trains(tmp_path: Path, name: str) -> None:
    with_it, without = both(tmp_path, lambda: tiny(name, tied=False), boundary=4)
    assert_same_training(with_it, without)


@pytest.mark.parametrize("boundary", slow_but([5], [4, 5, 6]))
def test_a_boundary_in_the_decoder_of_t5(tmp_path: Path, boundary: int) -> None:
    plan = bottom_plan(tiny("t5"), boundary, norm=Frozen())
    with_it, without = both(tmp_path, lambda: tiny("t5"), plan=plan)
    assert_same_training(with_it, without)


def test_token_types(tmp_path: Path) -> None:
    rows = [row | {"token_type_ids": [0, 0] + [1] * (len(row["input_ids"]) - 2)} for row in rows_for(tiny("bert"))]

    def bert() -> Any:
        return tiny("bert", initializer_range=0.1)  # weights so large that the types matter

    with_it, without = both(tmp_path, bert, rows=rows)
    assert_same_training(with_it, without)
    plain = train(tmp_path, bert(), "on")
    assert plain.cache_report.found == 0
    assert losses(plain) != pytest.approx(losses(with_it), abs=1e-4)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_evaluation_while_training(tmp_path: Path, name: str) -> None:
    with_it, without = both(tmp_path, lambda: tiny(name), eval_strategy="steps", eval_steps=2)
    assert_same_training(with_it, without)
    assert with_it.cache_report.rows == 17
    assert losses(with_it, "eval_loss") == pytest.approx(losses(without, "eval_loss"), abs=1e-4)
    assert len(losses(with_it, "eval_loss")) == 5


class EvaluatesElsewhere(TrainerCallback):
    """In the middle of training, runs the model on rows that are not in the cache."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.seen: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step in (2, 5):
            model = self.trainer.model
            training = model.training
            self.seen.append(self.trainer.evaluate(rows_for(model, 3, seed=7))["eval_loss"])
            self.seen.append(self.trainer.evaluate()["eval_loss"])
            self.seen.append(self.trainer.predict(rows_for(model, 3, seed=8)).metrics["test_loss"])
            with torch.no_grad():  # rows that are not in the cache
                self.seen.append(model(**batch_for(model)).loss.item())
            model.train(training)


@pytest.mark.parametrize("name", slow_but(["t5"], ["llama", "t5", "bert"]))
def test_other_rows_are_evaluated_while_training(tmp_path: Path, name: str) -> None:
    seen = {}
    trainers = {}
    for mode in ("on", "off"):
        callback = EvaluatesElsewhere()
        callback.trainer = trainers[mode] = cache_trainer(tmp_path, tiny(name), mode)
        trainers[mode].add_callback(callback)
        trainers[mode].train()
        seen[mode] = callback.seen
    assert_same_training(trainers["on"], trainers["off"])
    assert len(seen["on"]) == 8
    assert seen["on"] == pytest.approx(seen["off"], abs=1e-4)


@pytest.mark.parametrize("name", slow_but(["llama"], ["llama", "bert", "t5"]))
def test_killed_and_resumed_is_never_killed(tmp_path: Path, name: str) -> None:
    def made(folder: str) -> Trainer:
        options = {"save_strategy": "steps", "save_steps": 2}
        return cache_trainer(tmp_path / folder, tiny(name, dropout=0.1), "on", **options)

    whole = made("whole")
    whole.train()
    killed = made("killed")
    killed.add_callback(StopAt(7))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    assert not killed.session.active
    resumed = made("killed")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.cache_report.used and resumed.cache_report.rows == 0
    expected, got = trained_tensors(whole.model), trained_tensors(resumed.model)
    assert all(torch.equal(tensor, got[key]) for key, tensor in expected.items())


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_the_model_is_whole_afterwards(tmp_path: Path, name: str) -> None:
    trainer = train(tmp_path, tiny(name), "on")
    model, base = trainer.model, tiny(name)
    got = trained_tensors(model)
    before = base.state_dict()
    assert before.keys() == model.state_dict().keys()
    for key, tensor in model.state_dict().items():
        assert key in got or torch.equal(tensor, before[key]), key
    assert all(not torch.equal(tensor, before[key]) for key, tensor in got.items())
    inputs = {key: value for key, value in batch_for(model).items() if key != "labels"}
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[0] == 2
    model.save_pretrained(tmp_path / "saved")
    again = AUTO_CLASSES["seq2seq" if name == "t5" else "causal"].from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        expected = model.eval()(**batch_for(model)).logits
        assert torch.equal(again(**batch_for(model)).logits, expected)
    assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize("top", [None, Lora(r=2)])
def test_a_delta_saved_while_training_fits_the_base(tmp_path: Path, top: Any) -> None:
    model = tiny("llama")
    plan = bottom_plan(model, 2, top)
    trainer = train(tmp_path, model, "on", plan=plan, save_strategy="steps", save_steps=9)
    assert trainer.cache_report.used
    other = cache_trainer(tmp_path, tiny("llama"), "off", plan=plan)
    load_delta(other.model, tmp_path / "checkpoint-9")
    got = trained_tensors(other.model)
    assert all(torch.equal(tensor, got[key]) for key, tensor in trained_tensors(model).items())
    assert other.evaluate()["eval_loss"] == pytest.approx(trainer.evaluate()["eval_loss"], rel=LOSS)


TWO_PROCESSES = """
    import json, os, sys, time
    from pathlib import Path
    import torch
    from architectures import tiny
    from cache_cases import losses, train
    from frostline.bottom import ActivationCache, _caching_pass
    from frostline.checkpoints import trained_tensors

    torch.set_num_threads(1)
    _caching_pass.SHARD_BYTES, _caching_pass.BATCH_TOKENS = 1, {"cpu": 1}  # each row is a chunk
    written, real = [], ActivationCache.write
    ActivationCache.write = lambda own, rows: (time.sleep(0.2), written.extend(rows), real(own, rows))[2]
    if sys.argv[2] == "local":
        os.environ["FROSTLINE_CACHE"] += os.environ["RANK"]
    elif os.environ["RANK"] == "1":  # comes late to every shard that the other has written
        refresh = ActivationCache.refresh
        ActivationCache.refresh = lambda own: (time.sleep(0.3), refresh(own))[1]
    folder, found = Path(sys.argv[1]), {}
    for mode in ("on", "off"):
        trainer = train(folder, tiny("llama"), mode, per_device_train_batch_size=2)
        found[mode] = {"losses": losses(trainer), "used": trainer.cache_report.used}
        found[mode] |= {"rows": trainer.cache_report.rows, "found": trainer.cache_report.found}
        found[mode]["weights"] = {k: v.tolist() for k, v in trained_tensors(trainer.model).items()}
    found["written"] = written
    (folder / f"{trainer.args.process_index}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("disk", ["shared", "local"])
def test_two_processes_share_the_pass(tmp_path: Path, disk: str) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(TWO_PROCESSES))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script), str(tmp_path), disk], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for own in found:
        assert own["on"]["used"] and not own["off"]["used"]
        assert own["on"]["rows"] + own["on"]["found"] == 12
        assert len(own["written"]) == 12 if disk == "local" else own["written"]
        for key, weight in own["off"]["weights"].items():
            found_weight, near = torch.tensor(own["on"]["weights"][key]), after_sgd(0.1, 9)
            torch.testing.assert_close(found_weight, torch.tensor(weight), atol=near, rtol=0)
    written = [*found[0]["written"], *found[1]["written"]]
    assert len(set(written)) == 12 and len(written) == (24 if disk == "local" else 12)
    assert found[0]["on"]["weights"] == found[1]["on"]["weights"]
    assert found[0]["on"]["losses"] == pytest.approx(found[0]["off"]["losses"], abs=1e-4)


def test_auto_takes_it_where_it_pays(tmp_path: Path) -> None:
    once = train(tmp_path, tiny("llama"), "auto", num_train_epochs=1)
    assert not once.cache_report.used
    assert "saves nothing at one epoch" in once.cache_report.reason
    assert "break-even" in once.cache_report.estimate
    thrice = train(tmp_path, tiny("llama"), "auto")
    assert thrice.cache_report.used and thrice.cache_report.rows == 12
    again = train(tmp_path, tiny("llama"), "auto", num_train_epochs=1)
    assert again.cache_report.used and again.cache_report.found == 12  # all is there already


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        while True:
            yield from rows_for(tiny("llama"))


class Redrawn:
    """Rows whose tokens are drawn each time they are read."""

    def __init__(self, model: Any) -> None:
        self.rows = rows_for(model)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        return row | {"input_ids": torch.randint(3, 128, (len(row["input_ids"]),)).tolist()}


def masking(rows: Any) -> dict[str, torch.Tensor]:
    batch = collate(rows)
    masked = torch.rand(batch["input_ids"].shape) < 0.3
    return batch | {"input_ids": batch["input_ids"].masked_fill(masked & batch["attention_mask"].bool(), 127)}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "redrawn rows": ({"rows": Redrawn(tiny("llama"))}, "rows change every time they are read"),
    "a stream": ({"rows": Endless(), "max_steps": 9}, "rows come as a stream"),
    "a masking collator": ({"collator": masking}, "the collator changes the rows"),
    "nothing frozen": ({"boundary": 0}, "nothing is frozen below"),
}


@pytest.mark.parametrize(("options", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_where_it_cannot_be_right(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    trainer = train(tmp_path, tiny("llama"), "auto", **options)
    assert not trainer.cache_report.used
    assert reason in trainer.cache_report.reason
    assert len(losses(trainer)) == 9
    with pytest.raises(ConfigError, match=f"activation_cache: on, but .*{reason}.*: use activation_cache=auto or off$"):
        train(tmp_path, tiny("llama"), "on", **options)
    assert not list(default_root().rglob("*"))


def test_a_schedule_that_may_thaw_is_refused(tmp_path: Path) -> None:
    class Undecided:
        observes: frozenset[str] = frozenset()
        settled = False
        first = bottom_plan(tiny("llama"), 2)

        def next(self, step: int, observations: Any) -> Any:
            return None

    trainer = Trainer(tiny("llama"), arguments(tmp_path), schedule=Undecided(), train_dataset=rows_for(tiny("llama")))
    assert not trainer.session.decide().used
    assert trainer.cache_report.reason == "later plans of the schedule may train every block"


def test_a_router_loss_is_refused(tmp_path: Path) -> None:
    def routed() -> Any:
        return tiny("mixtral", output_router_logits=True)

    trainer = train(tmp_path, routed(), "auto")
    assert not trainer.cache_report.used
    assert "router loss" in trainer.cache_report.reason
    assert losses(trainer) == losses(train(tmp_path, routed(), "off"))
    with pytest.raises(ConfigError, match="activation_cache: on, but the router loss"):
        train(tmp_path, routed(), "on")


def test_a_stand_in_for_the_last_block_is_no_notice(tmp_path: Path) -> None:
    trainer = trained(tmp_path, "bert", "on", boundary=4)
    assert trainer.cache_report.used
    assert trainer.positions is not None and trainer.notices == ()
