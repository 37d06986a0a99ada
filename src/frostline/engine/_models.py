"""Load configs, models and tokenizers from a hub id or a folder, with errors a user can act on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging

from frostline.core.errors import UserError


def local_copy(name: str) -> str:
    """Where the model called `name` lies: the folder itself, its copy under `$FROSTLINE_MODELS`, or the hub.

    A hub id `owner/model` is looked for there under `model`; a path never is.
    """
    copies = os.environ.get("FROSTLINE_MODELS")
    if copies and not Path(name).exists() and not _looks_local(name):
        copy = Path(copies) / Path(name).name
        return str(copy) if copy.is_dir() else name
    return name


def _looks_local(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def load_config(name: str, **options: Any) -> Any:
    """The config of the model at `name`, a hub id or a folder that holds at least `config.json`.

    Raises `UserError` when there is none. No code that comes with a checkpoint is run.
    """
    with _clear_errors(name):
        return AutoConfig.from_pretrained(local_copy(name), trust_remote_code=False, **options)


def load_weights(name: str, model_class: Any, config: Any, dtype: str = "auto") -> Any:
    """The pretrained model at `name`, of `model_class` (a transformers class), in eval mode.

    `dtype` "auto" keeps the checkpoint's. Only safetensors are read, never a pickle. Tensors that the
    checkpoint lacks (a new task head) are drawn from torch's generator: seed it before. Raises `UserError`
    when the weights are missing or torn, or do not have the shapes that `config` asks for.
    """
    with _clear_errors(name), _right_shapes(name), quiet_libraries():
        model = model_class.from_pretrained(
            local_copy(name), config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    model.config._name_or_path = name
    return model


def load_tokenizer(name: str) -> Any:
    """The tokenizer at `name`. Raises `UserError` when there is none."""
    with _clear_errors(name, "tokenizer"):
        return AutoTokenizer.from_pretrained(local_copy(name), trust_remote_code=False)


def class_called(name: str) -> Any:
    """The transformers model class called `name`. Raises `UserError` when this version has none."""
    found = getattr(transformers, name, None)
    if found is None:
        raise UserError(f"transformers {transformers.__version__} has no class {name}")
    return found


@contextmanager
def _clear_errors(name: str, what: str = "model") -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, KeyError, HFValidationError, HfHubHTTPError, SafetensorError) as error:
        raise UserError(f"{what} '{name}': {_reason(what, local_copy(name), error)}") from error


def _reason(what: str, name: str, error: Exception) -> str:
    folder = Path(name)
    if not folder.exists():
        if _looks_local(name):
            return "no such folder: give a folder with config.json, or a hub id"
        return "no such folder here, and the hub has no such model or cannot be reached"
    if folder.is_dir() and not (folder / "config.json").is_file():
        return "the folder has no config.json: give the folder that save_pretrained wrote"
    if what == "tokenizer" and not any(folder.glob("*token*")):
        return "the folder has no tokenizer: save one there with its save_pretrained"
    if what == "model" and (folder / "delta.json").is_file():
        return "the folder holds a run's delta, not a model: frostline merge makes a model of it"
    if "safetensors" in str(error) and not any(folder.glob("*.safetensors")):
        return "the folder has no weights as safetensors (only those are read, never a pickle)"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _right_shapes(name: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise UserError(
            f"model '{name}': its tensors have other shapes than are asked for; a model that has a classification "
            "head already tells apart as many labels as that head was made for, no more and no fewer"
        ) from error


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Without transformers' warnings and bars: of the newly drawn task head, of tokens it aligns."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
        if bars:
            transformers_logging.enable_progress_bar()
