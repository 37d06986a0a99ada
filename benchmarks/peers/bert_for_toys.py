"""A pytest plugin: transformers' own Trainer tests, on a BERT of two blocks, of which one is frozen.

The tests train `y = a x + b`. A plan needs blocks, so here the model is `y = a x + b + BERT(x)`. The two scalars that
the tests look at stay, and beside them is a BERT that reads the digits of x as tokens. Its head starts at zero, so
before training the model is exactly the one that the tests expect. Tests that bring a model of their own with two or
more blocks (a tiny GPT-2 or Llama) keep it. Tests whose model has no blocks are skipped.

The name `Trainer` means, by the variable `PEER_TRAINER`:

- `plain`: `transformers.Trainer`, with the tensors that bot50 freezes frozen by `requires_grad`;
- `frostline`: `frostline.Trainer` with bot50 and the activation cache on. A checkpoint is a delta by design, so the
  tests' own checks of a checkpoint look for the files of a delta, and `model.safetensors` is read from the delta.
"""

from __future__ import annotations

import copy
import importlib
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedModel

import frostline as fl
from frostline.checkpoints import load_delta
from frostline.core.errors import PlanError, UnsupportedModel

BASE, DIGITS = 16, 8
"""A number is 8 digits to base 16, so that it is read back as float32 without loss."""


def tokens(x: Any) -> list[int]:
    """Numbers as token ids [8 * numbers]: their digits. Token 16 j + d is the digit d in place j."""
    ids = []
    for number in np.ravel(x):
        rest = (float(number) + BASE / 2) / BASE  # in [0, 1)
        for place in range(DIGITS):
            digit = min(int(rest * BASE), BASE - 1)
            ids.append(BASE * place + digit)
            rest = rest * BASE - digit
    return ids


def numbers(ids: torch.Tensor) -> torch.Tensor:
    """The inverse of `tokens`, for a batch: token ids [batch, 8 * numbers] to numbers [batch, numbers]."""
    digits = ids.double().unflatten(1, (-1, DIGITS)) % BASE
    weights = float(BASE) ** (1 - torch.arange(1, DIGITS + 1, device=ids.device).double())
    return ((digits * weights).sum(-1) - BASE / 2).float()


class ToyConfig(BertConfig):
    """In place of the tests' `RegressionModelConfig`."""

    def __init__(
        self, a: float = 0, b: float = 0, double_output: bool = False, random_torch: bool = True, **options: Any
    ) -> None:
        sizes = {"vocab_size": DIGITS * BASE, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        rest = {"intermediate_size": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        super().__init__(**{**sizes, **rest, **options})
        self.a, self.b, self.double_output, self.random_torch = a, b, double_output, random_torch


class Toy(PreTrainedModel):
    """In place of the tests' `RegressionPreTrainedModel`: y = a x + b + BERT(x)."""

    config_class = ToyConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        with torch.random.fork_rng():  # every toy begins with the same weights, and draws no numbers of the test's
            torch.manual_seed(0)
            self.bert = BertModel(config, add_pooling_layer=False)
            self.classifier = nn.Linear(config.hidden_size, 1)
            self.a = nn.Parameter(torch.as_tensor(config.a).float())
            self.b = nn.Parameter(torch.as_tensor(config.b).float())
            self.post_init()
        nn.init.zeros_(self.classifier.weight)

    def predict(self, input_ids: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """y for numbers [batch, numbers] given as tokens, or y [batch] where each row is one number."""
        states = self.bert(input_ids).last_hidden_state.unflatten(1, (-1, DIGITS))[:, :, 0]
        y = numbers(input_ids) * self.a + self.b + self.classifier(states).squeeze(-1)
        return y.reshape(labels.shape) if labels is not None else y.squeeze(-1)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None, **_: Any) -> Any:
        y = self.predict(input_ids, labels)
        outputs = (y, y) if self.config.double_output else (y,)
        return outputs if labels is None else (nn.functional.mse_loss(y, labels), *outputs)


class RandomToy(Toy):
    """In place of `RegressionRandomPreTrainedModel`: with noise from three random generators."""

    def predict(self, input_ids: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        y = super().predict(input_ids, labels)
        if self.config.random_torch:
            y = y + 0.05 * torch.randn(1).squeeze()
        return y + 0.05 * float(np.random.rand() + random.random())


class DictToy(Toy):
    """In place of `RegressionDictModel`."""

    def __init__(self, a: float = 0, b: float = 0) -> None:
        super().__init__(ToyConfig(a, b))

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None, **_: Any) -> Any:
        y = self.predict(input_ids, labels)
        return {"output": y} if labels is None else {"output": y, "loss": nn.functional.mse_loss(y, labels)}


class BareToy(Toy):
    """In place of `RegressionModel`, which is no `PreTrainedModel`."""

    def __init__(self, a: float = 0, b: float = 0, double_output: bool = False) -> None:
        super().__init__(a if isinstance(a, ToyConfig) else ToyConfig(a, b, double_output))


def of_tokens(kind: type) -> type:
    """A data set of the tests, whose rows hold the tokens of x in place of x."""

    class Tokens(kind):  # type: ignore[misc]
        def __getitem__(self, index: int) -> dict[str, Any]:
            row = dict(super().__getitem__(index))
            return {"input_ids": tokens(row.pop("input_x")), **row}

    return Tokens


def prepared(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a trainer, where a `datasets.Dataset` with the column of x has the tokens of x instead."""
    rows = options.get("train_dataset")
    if "input_x" in getattr(rows, "column_names", ()):
        form = rows.format["type"]  # without the format's dtype, which is for numbers
        rows = rows.with_format(None).map(lambda row: {"input_ids": tokens(row["input_x"])}, remove_columns="input_x")
        options = {**options, "train_dataset": rows.with_format(form)}
    return options


def bot50(model: Any) -> Any:
    """The plan bot50 for a model; the test is skipped where the model has no blocks to freeze."""
    try:
        return fl.make_plan(model, "bot50")
    except (PlanError, UnsupportedModel) as error:
        pytest.skip(f"no plan for this model: {error}")


class PlainTrainer(transformers.Trainer):
    """`transformers.Trainer`, with the tensors that bot50 freezes frozen by `requires_grad`."""

    def __init__(self, model: Any = None, *given: Any, **options: Any) -> None:
        if model is not None:
            freeze(model)
        super().__init__(model, *given, **prepared(options))

    def call_model_init(self, trial: Any = None) -> Any:
        return freeze(super().call_model_init(trial))


def freeze(model: Any) -> Any:
    """Freeze what bot50 freezes, by `requires_grad` alone."""
    planned = copy.deepcopy(model)
    fl.apply(bot50(model), planned)
    trained = {name for name, parameter in planned.named_parameters() if parameter.requires_grad}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    return model


class FrostlineTrainer(fl.Trainer):
    """`frostline.Trainer` with bot50 and the activation cache on.

    Where the cache cannot be used (rows that come as a stream, noise on the embeddings), `on` is an error by design, so
    it is `auto` there.
    """

    def __init__(self, model: Any = None, args: Any = None, *given: Any, **options: Any) -> None:
        rows = options.get("train_dataset")
        streams = rows is not None and not hasattr(rows, "__len__")
        cache = "auto" if streams or getattr(args, "neftune_noise_alpha", None) is not None else "on"
        super().__init__(model, args, *given, plan=bot50, activation_cache=cache, **prepared(options))

    def train(self, *given: Any, **options: Any) -> Any:
        try:
            return super().train(*given, **options)
        finally:
            TRAININGS.append("used" if self.cache_report.used else self.cache_report.reason)


class DeltaToy(Toy):
    """A toy whose checkpoint may be a delta."""

    @classmethod
    def from_pretrained(cls, folder: Any, *given: Any, **options: Any) -> Any:
        model = cls(cls.config_class.from_pretrained(folder))
        load_delta(model, Path(folder))
        return model


def check_deltas(toys: Any) -> None:
    """Let the tests' own checks of a checkpoint look for the files of a delta, and read the weights from it."""
    read_file = safetensors.torch.load_file

    def read(file: Any, *given: Any, **options: Any) -> Any:
        folder = Path(file).parent
        if Path(file).name == "model.safetensors" and (folder / "delta.json").is_file():
            return DeltaToy.from_pretrained(folder).state_dict()
        return read_file(file, *given, **options)

    def check_saved(self: Any, output_dir: str, freq: int, total: int, *_: Any, **__: Any) -> None:
        for step in range(freq, total, freq):
            files = {file.name for file in (Path(output_dir) / f"checkpoint-{step}").iterdir()}
            self.assertLessEqual(DELTA_FILES, files)

    own = toys.TrainerIntegrationCommon.check_best_model_has_been_loaded

    def check_best(self: Any, *given: Any, **options: Any) -> None:
        own(self, *given, **{**options, "is_pretrained": True})

    safetensors.torch.load_file = read
    toys.TrainerIntegrationCommon.check_saved_checkpoints = check_saved
    toys.TrainerIntegrationCommon.check_best_model_has_been_loaded = check_best
    toys.RegressionPreTrainedModel = DeltaToy


class Missing:
    """In place of a name that is no longer in transformers."""


TRAININGS: list[str] = []
"""For each training of a test with `frostline`: that the activation cache was used, or why not."""
DELTA_FILES = {
    *("delta.json", "delta.safetensors", "config.json", "trainer_state.json"),
    *("optimizer.json", "optimizer.safetensors", "scheduler.json", "schedule.json", "rng_0.json"),
}
TRAINER = {"plain": PlainTrainer, "frostline": FrostlineTrainer}[os.environ["PEER_TRAINER"]]
TOYS = {
    "RegressionModelConfig": ToyConfig,
    "RegressionPreTrainedModel": Toy,
    "RegressionPreTrainedModelWithGradientCheckpointing": Toy,
    "RegressionRandomPreTrainedModel": RandomToy,
    "RegressionDictModel": DictToy,
    "RegressionModel": BareToy,
}


def pytest_configure(config: pytest.Config) -> None:
    """Put trainer and toys in place before the test files import them."""
    package: Any = sys.modules["transformers"]  # transformers replaces its own module while it is imported
    for name in ("GlueDataset", "GlueDataTrainingArguments"):
        if not hasattr(package, name):
            setattr(package, name, Missing)
    package.Trainer = TRAINER
    sys.path.insert(0, str(Path.cwd()))
    toys = importlib.import_module("tests.trainer.trainer_test_utils")
    toys.RegressionDataset = of_tokens(toys.RegressionDataset)
    toys.DynamicShapesDataset = of_tokens(toys.DynamicShapesDataset)
    for name, toy in TOYS.items():
        setattr(toys, name, toy)
    if TRAINER is FrostlineTrainer:
        check_deltas(toys)


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Write to the results what became of the activation cache in the trainings of a test."""
    item.user_properties += [("cache", what) for what in TRAININGS]
    TRAININGS.clear()
