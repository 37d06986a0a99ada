"""Load configs, models and tokenizers from a hub id or a folder, with error messages that say what to do."""

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
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging

from frostline.anatomy import find_anatomy, skeleton
from frostline.bottom import Load, names_above
from frostline.checkpoints._configs import check_config, check_tokenizer
from frostline.checkpoints._files import TOKENIZER_FILES, check_json_files, check_weight_files
from frostline.checkpoints._precision import imitated
from frostline.checkpoints._whole import check_whole
from frostline.core.errors import UnsupportedModel, UserError


class OtherShapes(UnsupportedModel):
    """The tensors of a checkpoint have other shapes than its config, or the task, needs."""


def local_copy(name: str) -> str:
    """Where the model `name` is: the folder itself, a copy of it in `$FROSTLINE_MODELS`, or the hub.

    The copy of a hub id `owner/model` is the folder `model` there. A path has no copy.
    """
    copies = os.environ.get("FROSTLINE_MODELS")
    if copies and not Path(name).exists() and not _looks_local(name):
        copy = Path(copies) / Path(name).name
        return str(copy) if copy.is_dir() else name
    return name


def _looks_local(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def load_config(name: str, **options: Any) -> Any:
    """The config of the model `name`: a hub id, or a folder with at least `config.json`.

    No code from a checkpoint is run. Raises `UnsupportedModel` when there is no config, or it is damaged.
    """
    with _clear_errors(name):
        check_json_files(Path(local_copy(name)), ("config.json",), f"model '{name}'")
        config = AutoConfig.from_pretrained(local_copy(name), trust_remote_code=False, **options)
    check_config(config, name)
    return config


def load_weights(name: str, model_class: Any, config: Any, dtype: str = "auto") -> Any:
    """Load the pretrained model `name` in eval mode. Only safetensors are read, never a pickle.

    Tensors that the checkpoint lacks (a new task head) get random values from torch's generator: seed it before.

    Args:
        name: a hub id or a folder.
        model_class: a transformers class.
        config: of the model.
        dtype: of its tensors; "auto" keeps that of the checkpoint, or float32 where this machine imitates that.

    Raises `UnsupportedModel` when weights are missing, unused or damaged, or have other shapes than `config` says.
    """
    return _loaded(name, model_class, config, dtype)


def load_part(name: str, model_class: Any, config: Any, names: Container[str], dtype: str = "auto") -> Any:
    """As `load_weights`, but only the parameters in `names` are in memory; the others lie on the meta device.

    Whatever loading does to tensors of a checkpoint (renaming, stacking experts) is done to these alone. The other
    arguments and the errors are those of `load_weights`.
    """
    bare = skeleton(config, model_class)
    places = {path: "cpu" if path in names else "meta" for path, _ in bare.named_parameters(remove_duplicate=False)}
    for paths in _tied(bare):  # several names of one tensor share its place
        if any(path in names for path in paths):
            places |= dict.fromkeys(paths, "cpu")
    places |= {path: "cpu" for path, _ in bare.named_buffers()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The following device_map keys do not match any submodules")
        model = _loaded(name, model_class, config, dtype, places)
    remove_hook_from_module(model, recurse=True)
    vars(model).pop("hf_device_map", None)
    return model


def _loaded(name: str, model_class: Any, config: Any, dtype: str, places: dict[str, str] | None = None) -> Any:
    """The model with its weights, of which none may be missing; with `places`, those that lie on the CPU."""
    if dtype == "auto" and imitated(config.dtype):
        dtype = "float32"
    with _clear_errors(name), _right_shapes(name), quiet_libraries():
        check_weight_files(name, local_copy(name), getattr(config, "transformers_weights", None))
        own_class = (config.architectures or [""])[0]
        model, found = model_class.from_pretrained(
            local_copy(name),
            config=config,
            dtype=dtype,
            device_map=places,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    read = [path for path, _ in model.named_parameters()] if places is None else places
    check_whole(name, model, found, own_class, [path for path in read if places is None or places[path] == "cpu"])
    _check_start(model, name)
    model.config._name_or_path = name
    # A config may not say what its tensors are in.
    return model.float() if dtype == "auto" and imitated(model.dtype) else model


def _check_start(model: Any, name: str) -> None:
    """Raise `UnsupportedModel` where an encoder-decoder does not say which token its texts start with."""
    given = {"config.json": model.config} if model.config.is_encoder_decoder else {}
    if given and model.can_generate():
        given["generation_config.json"] = model.generation_config
    for file, values in given.items():
        if all(getattr(values, key, None) is None for key in ("decoder_start_token_id", "bos_token_id")):
            raise UnsupportedModel(f"model '{name}': {file}: decoder_start_token_id is missing: add it there")


def load_above(name: str, model_class: Any, config: Any, boundary: int, dtype: str = "auto") -> tuple[Any, Load]:
    """Load only what the model needs in memory to train above block `boundary` from an activation cache.

    Also gives a function that reads other tensors of the model by name, for `Trainer(load_bottom=...)`.

    Args:
        name: a hub id or a folder.
        model_class: a transformers class.
        config: of the model.
        boundary: the lowest block that trains.
        dtype: as for `load_weights`.

    Raises `UnsupportedModel` as `load_weights` does, and `CannotCut` when the model's bottom cannot be replaced.
    """
    bare = skeleton(config, model_class)

    def load(names: Iterable[str]) -> dict[str, Tensor]:
        names = set(names)
        with torch.random.fork_rng(devices=[]):  # a head that the checkpoint lacks draws random values each time
            part = load_part(name, model_class, config, names, dtype) if names else bare
        return {path: part.get_parameter(path).detach() for path in names}

    above = names_above(bare, find_anatomy(bare), boundary)
    return load_part(name, model_class, config, above, dtype), load


def _tied(model: Any) -> list[list[str]]:
    paths: dict[Any, list[str]] = defaultdict(list)
    for path, parameter in model.named_parameters(remove_duplicate=False):
        paths[parameter].append(path)
    return [several for several in paths.values() if len(several) > 1]


def load_tokenizer(name: str) -> Any:
    """The tokenizer of the model `name`. Raises `UnsupportedModel` when there is none, or it is damaged."""
    with _clear_errors(name, "tokenizer"):
        check_json_files(Path(local_copy(name)), TOKENIZER_FILES, f"tokenizer '{name}'")
        tokenizer = AutoTokenizer.from_pretrained(local_copy(name), trust_remote_code=False)
        check_tokenizer(tokenizer, name)
        tokenizer("a", verbose=False)
    return tokenizer


def class_called(name: str) -> Any:
    """The model class `name` of transformers. Raises `UnsupportedModel` when this version has no such class."""
    found = getattr(transformers, name, None)
    if found is None:
        raise UnsupportedModel(
            f"transformers {transformers.__version__} has no class {name}: use the version that the model was "
            "trained with"
        )
    return found


@contextmanager
def _clear_errors(name: str, what: str = "model") -> Iterator[None]:
    try:
        yield
    except (UserError, MemoryError):
        raise
    # A damaged file can make any error in transformers: tokenizers even raise a bare Exception.
    except Exception as error:
        if isinstance(error, RuntimeError) and ("memory" in str(error) or "ignore_mismatched_sizes" in str(error)):
            raise
        raise UnsupportedModel(f"{what} '{name}': {_reason(what, local_copy(name), error)}") from error


def _reason(what: str, name: str, error: Exception) -> str:
    folder = Path(name)
    if not folder.exists():
        if _looks_local(name):
            return "no such folder: use a folder with config.json, or a hub id"
        return "there is no such folder, and the hub has no such model or cannot be reached"
    if folder.is_dir() and not (folder / "config.json").is_file():
        return "the folder has no config.json: use a folder that save_pretrained wrote"
    if what == "tokenizer" and not any(folder.glob("*token*")):
        return "the folder has no tokenizer: use its save_pretrained to save one there"
    if "contains custom code" in str(error):
        return "it needs code of its own, and no code of a model is run: use a model that transformers itself has"
    kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
    return f"it cannot be read: {kind}{' '.join(str(error).split())[:160]}"


@contextmanager
def _right_shapes(name: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise OtherShapes(
            f"model '{name}': its tensors have other shapes than this task needs. If it has a classification head, use "
            "a task with as many labels as that head was made for"
        ) from error


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Inside this context, transformers shows no progress bars and no warnings (such as on a new task head)."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    parts = logging.getLogger("accelerate.big_modeling")  # logs each part that is loaded
    level = parts.level
    parts.setLevel(logging.ERROR)
    try:
        yield
    finally:
        parts.setLevel(level)
        transformers_logging.set_verbosity(before)
        if bars:
            transformers_logging.enable_progress_bar()
