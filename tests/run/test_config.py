"""What a user writes for a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from frostline.core.errors import UserError
from frostline.run import RunConfig, read_config


def test_the_file_then_options_then_overrides(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: a\ntask: rte\nmax_steps: 10\nlearning_rate: 1.0e-3\ndata: {max_train_rows: 5}\n")
    config = read_config(path, ["learning_rate=1e-4", "data.max_eval_rows=7"], max_steps=20, strategy=None)
    assert (config.max_steps, config.learning_rate, config.strategy) == (20, 1e-4, "auto")
    assert (config.data.max_train_rows, config.data.max_eval_rows) == (5, 7)


def test_overrides_are_read_as_yaml() -> None:
    config = read_config(
        None, ["activation_checkpointing=true", "report_to=[tensorboard]", "max_steps=null", "model=m", "task=t"]
    )
    assert config.activation_checkpointing is True
    assert config.report_to == ("tensorboard",)
    assert config.max_steps is None


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("model: a\ntask: b\nlr: 3\n", [], "unknown key 'lr': use learning_rate"),
        ("model: a\ntask: b\n", ["batch_size=3"], "unknown key 'batch_size': use per_device_train_batch_size"),
        ("model: a\ntask: b\n", ["adam_beta2=0.9"], "unknown key 'adam_beta2': use training.adam_beta2"),
        ("model: a\ntask: b\n", ["eval_strategy=steps"], "unknown key 'eval_strategy': use eval_steps, which alone"),
        ("model: a\ntask: b\n", ["nonsense=x"], "unknown key 'nonsense': see: frostline train --settings"),
        ("model: a\ntask: b\n", ["training.adam_beta2=7"], "adam_beta2: it should be less than 1 (given: 7)"),
        ("model: a\ntask: b\n", ["training.dataloader_num_workers=-1"], "it should be greater than or equal to 0"),
        (
            "model: a\ntask: b\n",
            ["optim=sgd", "optim_args=momentum=fast"],
            "optim_args: momentum: it should be a number (given: 'fast')",
        ),
        (
            "model: a\ntask: b\n",
            ["lr_scheduler_type=polynomial", "training.lr_scheduler_kwargs.end=1"],
            "lr_scheduler_kwargs.end: lr_scheduler_type=polynomial does not read it: use lr_end, power",
        ),
        (
            "model: a\ntask: b\n",
            ["training.load_best_model_at_end=true", "eval_steps=1"],
            "training.load_best_model_at_end needs a checkpoint at each evaluation",
        ),
        ("task: b\n", [], "model: this key is missing"),
        ("model: a\ntask: b\nmax_steps: 0\n", [], "max_steps: it should be greater than 0"),
        ("model: a\ntask: b\nbf16: half\n", [], "bf16: it should be a valid boolean"),
        ("model: a\ntask: b\n", ["data.rows=3"], "data: unknown key 'rows'"),
        ("model: a\ntask: b\n", ["learning_rate=fast"], "learning_rate: it should be a valid number"),
        ("model: a\ntask: b\n", ["model.name=x"], "model is not a group of settings"),
        ("- a\n", [], "a run config is a mapping with at least the keys model and task"),
        ("a: [\n", [], "run.yaml:2: not YAML"),
    ],
)
def test_bad_configs_name_the_key(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_config(path, overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_run_has_a_folder_of_its_own() -> None:
    config = RunConfig(model="models/base16", task="data/mood.jsonl", strategy="plans/mine.yaml", seed=7)
    assert config.folder == Path("runs/base16-mood-mine-7")
    assert RunConfig(model="m", task="t", out="here").folder == Path("here")
