"""Load configs, models and tokenizers from a hub id or a folder, with errors a user can act on."""

from __future__ import annotations

import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.hooks import remove_hook_from_module
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging

from frostline.anatomy import find_anatomy, skeleton
from frostline.bottom import Load, names_above
from frostline.core.errors import UnsupportedModel, UserError, first_line


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


def load_part(name: str, model_class: Any, config: Any, wanted: Container[str], dtype: str = "auto") -> Any:
    """As `load_weights`, with only the `wanted` parameters in memory; the others lie on the meta device.

    What loading does to a checkpoint's tensors (renaming, stacking experts) is done to these alone. Raises
    `UserError` as `load_weights` does.
    """
    bare = skeleton(config, model_class)
    places = {path: "cpu" if path in wanted else "meta" for path, _ in bare.named_parameters(remove_duplicate=False)}
    for paths in _tied(bare):  # several names of one tensor share its place
        if any(path in wanted for path in paths):
            places |= dict.fromkeys(paths, "cpu")
    places |= {path: "cpu" for path, _ in bare.named_buffers()}
    with _clear_errors(name), _right_shapes(name), quiet_libraries(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The following device_map keys do not match any submodules")
        model = model_class.from_pretrained(
            local_copy(name),
            config=config,
            dtype=dtype,
            device_map=places,
            use_safetensors=True,
            trust_remote_code=False,
        )
    remove_hook_from_module(model, recurse=True)
    vars(model).pop("hf_device_map", None)
    model.config._name_or_path = name
    return model


def load_above(name: str, model_class: Any, config: Any, boundary: int, dtype: str = "auto") -> tuple[Any, Load]:
    """The model at `name` with only what stays in memory while it trains above block `boundary` from an activation
    cache, and a function that reads other tensors of it by name, for `Trainer(load_bottom=...)`.

    Raises `UserError` as `load_weights` does, and `CannotCut` when the model's bottom cannot be replaced.
    """
    bare = skeleton(config, model_class)

    def load(names: Iterable[str]) -> dict[str, Tensor]:
        wanted = set(names)
        with torch.random.fork_rng(devices=[]):  # a head that the checkpoint lacks is drawn at every reading
            part = load_part(name, model_class, config, wanted, dtype) if wanted else bare
        return {path: part.get_parameter(path).detach() for path in wanted}

    above = names_above(bare, find_anatomy(bare), boundary)
    return load_part(name, model_class, config, above, dtype), load


def _tied(model: Any) -> list[list[str]]:
    paths: dict[Any, list[str]] = defaultdict(list)
    for path, parameter in model.named_parameters(remove_duplicate=False):
        paths[parameter].append(path)
    return [several for several in paths.values() if len(several) > 1]


def load_tokenizer(name: str) -> Any:
    """The tokenizer at `name`. Raises `UserError` when there is none."""
    with _clear_errors(name, "tokenizer"):
        return AutoTokenizer.from_pretrained(local_copy(name), trust_remote_code=False)


def class_called(name: str) -> Any:
    """The transformers model class called `name`. Raises `UserError` when this version has none."""
    found = getattr(transformers, name, None)
    if found is None:
        raise UnsupportedModel(f"transformers {transformers.__version__} has no class {name}")
    return found


@contextmanager
def _clear_errors(name: str, what: str = "model") -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, KeyError, HFValidationError, HfHubHTTPError, SafetensorError) as error:
        raise UnsupportedModel(f"{what} '{name}': {_reason(what, local_copy(name), error)}") from error


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
    return first_line(error)


@contextmanager
def _right_shapes(name: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise UnsupportedModel(
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
    parts = logging.getLogger("accelerate.big_modeling")  # tells of every part that is loaded alone
    level = parts.level
    parts.setLevel(logging.ERROR)
    try:
        yield
    finally:
        parts.setLevel(level)
        transformers_logging.set_verbosity(before)
        if bars:
            transformers_logging.enable_progress_bar()
