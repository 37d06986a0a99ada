"""The files of a model's folder: only plain JSON and safetensors inside that folder are read, never a pickle."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers.utils import ADAPTER_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from frostline.core.documents import parse_json
from frostline.core.errors import UnsupportedModel

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
OBJECTS: dict[str, tuple[str, Any]] = {
    "tokenizer.json": ("model", None),
    "tokenizer_config.json": ("added_tokens_decoder", {}),
}
"""File -> a key whose value must be an object, and the value where the key is missing."""
NUMBERS = ("temperature", "top_p", "top_k", "repetition_penalty")
FLAGS = ("do_sample", "output_", "return_", "use_cache", "remove_", "renormalize_")
COUNTS = ("num_beams", "num_return_sequences", "max_length", "max_new_tokens")
TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json")


def check_json_files(folder: Path, names: Iterable[str], what: str) -> None:
    """Raise `UnsupportedModel` where one of these files is there, but no JSON object, or an important value is not one.

    transformers ignores some such files.

    Args:
        folder: of the model.
        names: of the files.
        what: the folder as messages name it, such as "model 'x'".
    """
    for name in names:
        if not (folder / name).is_file():
            continue
        values = _read_object(folder / name, what)
        key, default = OBJECTS.get(name, ("", {}))
        if not isinstance(values.get(key, default), dict):
            raise UnsupportedModel(f"{what}: {name}: '{key}' must be a JSON object: use an undamaged copy")


def _read_object(path: Path, what: str) -> dict[str, Any]:
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise UnsupportedModel(f"{what}: {path.name} is not JSON text: use an undamaged copy") from None
    except ValueError as error:
        raise UnsupportedModel(f"{what}: {path.name} is not JSON: {error}: use an undamaged copy") from None
    if not isinstance(value, dict):
        raise UnsupportedModel(f"{what}: {path.name} must hold a JSON object: use an undamaged copy")
    return value


def check_weight_files(name: str, place: str, named: object = None) -> None:
    """Check which files the weights of a model would be read from, before any of them is.

    Args:
        name: of the model, for messages.
        place: a folder or a hub id.
        named: the file of weights that the config names (`transformers_weights`), if it names one.

    Raises `UnsupportedModel` for a file or an index that names anything but safetensors files beside it, for a folder
    without safetensors, and for the folder of an adapter. A safetensors file may be a link to another place.
    """
    what, folder = f"model '{name}'", Path(place)
    if named is not None and not isinstance(named, str):
        raise UnsupportedModel(
            f"{what}: config.json: transformers_weights must be the name of a file: correct it there"
        )
    single, index_name = SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME
    if named is not None:
        single = index_name = named
        _check_place(named.removesuffix(".index.json"), "config.json", what)
    if folder.is_dir():
        _check_generation(folder / "generation_config.json", what)
        if (folder / ADAPTER_CONFIG_NAME).is_file():
            raise UnsupportedModel(
                f"{what}: the folder holds an adapter of PEFT, not a whole model: merge it with its base by PEFT's "
                "merge_and_unload, and use what save_pretrained then writes"
            )
        if (folder / single).is_file() and not single.endswith(".index.json"):
            return
    index = cached_file(
        place,
        index_name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    if index is not None and index.endswith(".index.json"):
        _check_index(Path(index), what, folder if folder.is_dir() else None)
    elif folder.is_dir():
        _refuse_without_weights(folder, what, name)


def _check_generation(path: Path, what: str) -> None:
    if path.is_file():
        values = _read_object(path, what)
        for key in (*NUMBERS, *COUNTS):
            value, least = values.get(key), 1 if key in COUNTS else 0
            kinds = int if key in COUNTS else int | float
            if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or value < least):
                raise UnsupportedModel(
                    f"{what}: {path.name}: {key} must be a {'whole ' if key in COUNTS else ''}number from {least} on, "
                    f"found {str(value)[:60]!r}: correct it there"
                )
        for key, value in values.items():
            if key.startswith(FLAGS) and value is not None and not isinstance(value, bool):
                raise UnsupportedModel(f"{what}: {path.name}: {key} must be true or false: correct it there")
            if any(
                isinstance(one, int) and abs(one) > 2**31 for one in (value if isinstance(value, list) else [value])
            ):
                raise UnsupportedModel(f"{what}: {path.name}: {key} is too large: correct it there")
        ends = values.get("eos_token_id")
        if ends is not None and not all(isinstance(end, int) for end in (ends if isinstance(ends, list) else [ends])):
            raise UnsupportedModel(f"{what}: {path.name}: eos_token_id must be a number or a list of them: correct it")


def _check_index(index: Path, what: str, folder: Path | None) -> None:
    places = _read_object(index, what).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise UnsupportedModel(f"{what}: {index.name} has no weight_map from tensors to files: use an undamaged copy")
    for place in sorted(set(places.values())):
        _check_place(place, index.name, what)
        if folder is not None and not (folder / place).is_file():
            raise UnsupportedModel(f"{what}: {index.name} names '{place}', which is missing: use a whole copy")


def _check_place(place: str, by: str, what: str) -> None:
    """Raise `UnsupportedModel` unless `place`, which the file `by` names, is a safetensors file beside it."""
    if not place.endswith(".safetensors"):
        raise UnsupportedModel(
            f"{what}: {by} names '{place}', which is no safetensors file; no pickle is loaded: use "
            "save_pretrained of transformers to write the weights as safetensors"
        )
    if any(sign in place for sign in ("/", "\\", "\0")):
        raise UnsupportedModel(
            f"{what}: {by} names '{place}', which is not beside it: put every file into the model's folder"
        )


def _refuse_without_weights(folder: Path, what: str, name: str) -> None:
    if (folder / "delta.json").is_file():
        raise UnsupportedModel(
            f"{what}: the folder holds a run's delta, not a model: use frostline merge to make a model of it"
        )
    found = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    pickles = [file for file in found if file != "training_args.bin"]
    if pickles:
        raise UnsupportedModel(
            f"{what}: its weights are a pickle ({pickles[0]}), which can run code when it is loaded: if you trust it, "
            f"convert it: AutoModel.from_pretrained('{name}', use_safetensors=False).save_pretrained('NEW')"
        )
    if any(folder.glob("*.safetensors")):
        raise UnsupportedModel(
            f"{what}: no {SAFE_WEIGHTS_NAME} and no {SAFE_WEIGHTS_INDEX_NAME} beside its safetensors files: use a "
            "whole copy"
        )
    raise UnsupportedModel(
        f"{what}: the folder has no weights as safetensors, and no others are read: use save_pretrained to write them"
    )
