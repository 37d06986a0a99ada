"""Damaged and dangerous files of a model: one line, before anything is read, and never a pickle."""

from __future__ import annotations

import json
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from command_line import frostline
from frostline.checkpoints import load_config, load_part, load_tokenizer, load_weights
from frostline.checkpoints._configs import check_config
from frostline.core.errors import UnsupportedModel
from tiny_files import write_model, write_task

Damage = Callable[[Path], object]


class Trap:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("files")
    write_task(place / "days")
    return write_model(place / "model")


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    shutil.copytree(good, tmp_path / "model")
    return tmp_path / "model"


def refused(read: Callable[[], object]) -> str:
    with pytest.raises(UnsupportedModel) as raised:
        read()
    message = str(raised.value)
    assert "\n" not in message and len(message) < 500
    return message


def load(folder: Path) -> Any:
    import transformers

    return load_weights(str(folder), transformers.LlamaForCausalLM, load_config(str(folder)))


# Weights: an index that leaves the folder, or names a pickle


def index(folder: Path, place: object, **more: Any) -> None:
    weights = folder / "model.safetensors"
    if weights.exists():
        weights.rename(folder / "model-00001-of-00001.safetensors")
    document = {"metadata": {}, "weight_map": {"model.norm.weight": place}, **more}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("pytorch_model.bin", "names 'pytorch_model.bin', which is no safetensors file; no pickle is loaded"),
        ("sub/pytorch_model.bin", "which is no safetensors file"),
        ("../../x.safetensors", "names '../../x.safetensors', which is not beside it: put every file"),
        ("/etc/x.safetensors", "which is not beside it"),
        ("..\\x.safetensors", "which is not beside it"),
        ("sub/x.safetensors", "which is not beside it"),
        ("absent.safetensors", "names 'absent.safetensors', which is missing: use a whole copy"),
        (3, "has no weight_map from tensors to files"),
        (None, "has no weight_map from tensors to files"),
    ],
)
@pytest.mark.parametrize("part", [False, True])
def test_an_index_names_only_safetensors_beside_it(place: object, message: str, part: bool, folder: Path) -> None:
    import transformers

    (folder.parent / "x.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    mark = folder.parent / "loaded"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(mark)))
    index(folder, place)
    config = load_config(str(folder))
    found = refused(
        lambda: (
            load_part(str(folder), transformers.LlamaForCausalLM, config, {"model.norm.weight"})
            if part
            else load(folder)
        )
    )
    assert message in found
    assert not mark.exists()


@pytest.mark.parametrize("content", ["[]", '{"weight_map": ["a"]}', '{"weight', "{}", "3", "[" * 3000])
def test_an_index_that_is_damaged(content: str, folder: Path) -> None:
    index(folder, "x")
    (folder / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json" in refused(lambda: load(folder))


def test_a_right_index_is_read(folder: Path) -> None:
    names = load(folder).state_dict().keys()
    weights = dict.fromkeys(names, "model-00001-of-00001.safetensors")
    index(folder, "x", weight_map=weights)
    assert load(folder).state_dict().keys() == names


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "model.ckpt", "adapter_model.bin"])
def test_pickles_are_refused_with_how_to_convert(name: str, folder: Path) -> None:
    mark = folder.parent / "loaded"
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1)}, folder / "training_args.bin")
    (folder / name).write_bytes(pickle.dumps(Trap(mark)))
    found = refused(lambda: load(folder))
    assert f"its weights are a pickle ({name})" in found
    assert "use_safetensors=False).save_pretrained('NEW')" in found
    assert not mark.exists()


def test_a_sharded_pickle_and_one_in_a_sub_folder_are_not_loaded(folder: Path) -> None:
    mark = folder.parent / "loaded"
    (folder / "model.safetensors").unlink()
    (folder / "sub").mkdir()
    (folder / "sub" / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(mark)))
    assert "no weights as safetensors" in refused(lambda: load(folder))
    (folder / "pytorch_model-00001-of-00001.bin").write_bytes(pickle.dumps(Trap(mark)))
    document = {"weight_map": {"model.norm.weight": "pytorch_model-00001-of-00001.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(document))
    assert "its weights are a pickle" in refused(lambda: load(folder))
    assert not mark.exists()


@pytest.mark.parametrize("weights", ["adapter_model.bin", "adapter_model.safetensors"])
def test_an_adapter_beside_the_model_is_not_loaded_in_silence(weights: str, folder: Path) -> None:
    mark = folder.parent / "loaded"
    (folder / weights).write_bytes(pickle.dumps(Trap(mark)))
    card = {"peft_type": "LORA", "base_model_name_or_path": str(folder), "r": 2, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(card))
    assert "the folder holds an adapter of PEFT" in refused(lambda: load(folder))
    assert not mark.exists()


# Configs and tokenizers


def change(name: str, **values: Any) -> Damage:
    def damage(folder: Path) -> None:
        document = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(document | values))

    return damage


def content(name: str, text: str) -> Damage:
    return lambda folder: (folder / name).write_text(text)


def cut(name: str) -> Damage:
    return lambda folder: (folder / name).write_text((folder / name).read_text()[:300])


CONFIGS: dict[str, tuple[Damage, str]] = {
    "text": (change("config.json", hidden_size="64"), "Field 'hidden_size' expected int, got str"),
    "dtype": (change("config.json", dtype="float99"), "float99"),
    "dtype number": (change("config.json", dtype=3), "dtype must be a floating-point type such as 'float32', found 3"),
    "dtype int": (change("config.json", dtype="int8"), "dtype must be a floating-point type"),
    "architectures": (change("config.json", architectures=2), "architectures must be a list of names, found 2"),
    "architecture": (change("config.json", architectures=[2]), "architectures must be a list of names, found [2]"),
    "list": (content("config.json", "[1]"), "config.json must hold a JSON object"),
    "null": (content("config.json", "null"), "config.json must hold a JSON object"),
    "nested": (content("config.json", "[" * 3000), "config.json is not JSON"),
    "not json": (content("config.json", '{"a":'), "config.json is not JSON"),
    "wide": (change("config.json", hidden_size=10**12), "hidden_size is too large: 1000000000000"),
    "digits": (
        change("config.json", intermediate_size=10**400),
        "config.json is not JSON: a number has too many digits",
    ),
    "deep": (change("config.json", num_hidden_layers=10**9), "num_hidden_layers is too large: 1000000000: at most"),
    "negative": (change("config.json", hidden_size=-4), "hidden_size must be a whole number from 1 on, found -4"),
    "no layers": (change("config.json", num_hidden_layers=0), "num_hidden_layers must be a whole number from 1 on"),
    "heads": (change("config.json", num_attention_heads=0), "ZeroDivisionError"),
    "odd heads": (change("config.json", num_attention_heads=7), "not a multiple of the number of attention heads"),
    "labels": (change("config.json", id2label={"0": "a", "2": "b"}), "id2label must have a name for each number"),
    "no labels": (change("config.json", id2label=3), "int"),
    "activation": (
        change("config.json", hidden_act="nope"),
        "config.json: hidden_act 'nope' is not known to transformers",
    ),
    "quantized": (change("config.json", quantization_config={"quant_method": "zz"}), "quant_method 'zz' is not known"),
    "pad token": (change("config.json", pad_token_id=-5), "pad_token_id must be the number of a token, found -5"),
    "rope": (
        change("config.json", rope_parameters={"rope_type": "nope", "rope_theta": 1.0}),
        "rope_type 'nope' is not known",
    ),
    "padding": (change("config.json", pad_token_id=10**6), "Padding_idx must be within num_embeddings"),
    "model type": (change("config.json", model_type=3), "model type `3`"),
}
TOKENIZERS: dict[str, tuple[Damage, str]] = {
    "cut": (cut("tokenizer.json"), "tokenizer.json is not JSON"),
    "list": (content("tokenizer.json", "[]"), "tokenizer.json must hold a JSON object"),
    "empty": (content("tokenizer.json", "{}"), "tokenizer.json: 'model' must be a JSON object"),
    "added tokens": (
        change("tokenizer_config.json", added_tokens_decoder=[1]),
        "tokenizer_config.json: 'added_tokens_decoder' must be a JSON object",
    ),
    "length": (change("tokenizer_config.json", model_max_length="b"), "model_max_length must be a number of tokens"),
    "length below 1": (change("tokenizer_config.json", model_max_length=-3), "found -3: correct it there"),
    "config cut": (content("tokenizer_config.json", '{"pad_token"'), "tokenizer_config.json is not JSON"),
    "config list": (content("tokenizer_config.json", "[]"), "tokenizer_config.json must hold a JSON object"),
    "pad token": (change("tokenizer_config.json", pad_token=3), "pad_token has to be either str or AddedToken"),
    "special tokens": (content("special_tokens_map.json", "{"), "special_tokens_map.json is not JSON"),
    "no vocabulary": (
        lambda folder: (
            (folder / "tokenizer.json").unlink(),
            change("tokenizer_config.json", tokenizer_class="BertTokenizer")(folder),
        ),
        "it has no tokens but special ones, since its vocabulary is missing",
    ),
    "no files": (
        lambda folder: [(folder / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        "the folder has no tokenizer: use its save_pretrained",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_damaged_config_is_one_line_in_every_command(case: str, good: Path, folder: Path) -> None:
    damage, message = CONFIGS[case]
    damage(folder)
    for command in (["inspect", folder], ["plan", folder, "--strategy", "bot50"], *_commands(good, folder)):
        ended = frostline(*command)
        assert (ended.status, message in ended.error) == (2, True), ended.err
        assert len(ended.error) <= 380 and ended.error.count("\n") <= 1
    assert not (folder.parent / "run").exists()


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_damaged_tokenizer_is_one_line_in_every_command(case: str, good: Path, folder: Path) -> None:
    damage, message = TOKENIZERS[case]
    damage(folder)
    for command in _commands(good, folder):
        ended = frostline(*command)
        assert (ended.status, message in ended.error) == (2, True), ended.err
    assert not (folder.parent / "run").exists()


def _commands(good: Path, folder: Path) -> list[list[str | Path]]:
    task = ["--task", good.parent / "days"]
    return [
        ["probe", folder, *task],
        ["train", "--model", folder, *task, "--strategy", "bot50", "max_steps=1", "--out", folder.parent / "run"],
        ["evaluate", folder, *task],
        ["generate", folder, "--prompt", "the warm"],
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"eos', "generation_config.json is not JSON"),
        ("[]", "generation_config.json must hold a JSON object"),
        ('{"eos_token_id": "x"}', "eos_token_id must be a number or a list of them"),
        ('{"temperature": "hot"}', "temperature must be a number from 0 on, found 'hot'"),
        ('{"num_beams": 0}', "num_beams must be a whole number from 1 on, found '0'"),
    ],
)
def test_a_damaged_generation_config_is_one_line(text: str, message: str, folder: Path) -> None:
    (folder / "generation_config.json").write_text(text)
    ended = frostline("generate", folder, "--prompt", "the warm")
    assert (ended.status, message in ended.error) == (2, True), ended.err


def test_a_damaged_config_of_a_run_is_one_line_in_merge(good: Path, tmp_path: Path) -> None:
    names = ["--model", good, "--task", good.parent / "days", "--strategy", "bot50", "--out", tmp_path / "run"]
    assert frostline("train", "max_steps=1", *names).status == 0
    for case in ("text", "architectures", "null", "deep"):
        damage, message = CONFIGS[case]
        shutil.copytree(tmp_path / "run", tmp_path / case)
        damage(tmp_path / case)
        for command in (["merge", tmp_path / case, "--out", tmp_path / "out"], ["evaluate", tmp_path / case]):
            ended = frostline(*command)
            assert (ended.status, message in ended.error) == (2, True), ended.err
        assert not (tmp_path / "out").exists()


def test_the_configs_of_all_model_types_pass() -> None:
    passed = 0
    for model_type in CONFIG_MAPPING_NAMES:
        try:
            config = AutoConfig.for_model(model_type)
        except Exception:  # it needs a package, or values of its own
            continue
        check_config(config, model_type)
        passed += 1
    assert passed > 700


def test_a_good_model_passes_every_check(good: Path, models_dir: Path) -> None:
    for folder in (good, models_dir / "base16", models_dir / "stories260K", models_dir / "all-MiniLM-L6-v2"):
        load_config(str(folder))
        assert load_tokenizer(str(folder))("a")["input_ids"]


# Links and names that lead elsewhere, and code of others


def test_a_link_to_another_disk_is_read(folder: Path, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    weights.symlink_to(weights.rename(tmp_path / "large disk.safetensors"))
    assert load(folder).num_parameters() > 0


def test_links_inside_the_folder_and_of_the_hubs_cache_are_read(folder: Path, tmp_path: Path) -> None:
    kept = (folder / "model.safetensors").rename(folder / "kept.safetensors")
    (folder / "model.safetensors").symlink_to("kept.safetensors")
    assert load(folder).num_parameters() > 0
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    shutil.copytree(folder, snapshot, symlinks=True)
    (snapshot / "model.safetensors").unlink()
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    kept.rename(blobs / "abcd")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abcd")
    assert load(snapshot).num_parameters() > 0


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (
            "adapter_model.bin",
            "config.json names 'adapter_model.bin', which is no safetensors file; no pickle is loaded",
        ),
        ("../x.safetensors", "config.json names '../x.safetensors', which is not beside it"),
        ("other.safetensors.index.json", "names 'pytorch_model.bin', which is no safetensors file"),
        (3, "transformers_weights must be the name of a file"),
    ],
)
def test_a_config_names_only_safetensors_beside_it(named: object, message: str, folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for name in ("adapter_model.bin", "pytorch_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Trap(mark)))
    document = {"metadata": {}, "weight_map": {"model.norm.weight": "pytorch_model.bin"}}
    (folder / "other.safetensors.index.json").write_text(json.dumps(document))
    change_config(folder, transformers_weights=named)
    assert message in refused(lambda: load(folder))
    assert not mark.exists()


def test_a_config_may_name_its_own_file_of_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "mine.safetensors")
    change_config(folder, transformers_weights="mine.safetensors")
    assert load(folder).num_parameters() > 0


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
def test_a_config_cannot_name_code_of_the_hub(key: str, folder: Path) -> None:
    change_config(folder, **{key: "kernels-community/flash-attn"})
    message = "attn_implementation 'kernels-community/flash-attn' is code of others, which is not run"
    for arguments in (("inspect",), ("plan", "--strategy", "bot50"), ("generate", "--prompt", "the")):
        ended = frostline(arguments[0], folder, *arguments[1:])
        assert ended.status == 2 and message in ended.error


def test_a_model_with_code_of_its_own_is_refused_and_the_code_does_not_run(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (folder / "modeling_x.py").write_text(f"open({str(mark)!r}, 'w')\nclass C: pass\n")
    change_config(folder, model_type="unheard", auto_map={"AutoConfig": "modeling_x.C"})
    assert "no code of a model is run: use a model that transformers itself has" in refused(lambda: load(folder))
    assert not mark.exists()


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 100_000},
        {"num_hidden_layers": 1_001},
        {"head_dim": 10**9},
        {"vocab_size": 10**12},
        {"hidden_size": 10**200},
        {"intermediate_size": 2**40},
    ],
)
def test_enormous_sizes_are_refused_within_a_second(values: dict[str, int], folder: Path) -> None:
    change_config(folder, **values)
    (folder / "model.safetensors").unlink()  # a bare config is enough for a plan
    for arguments in (("inspect",), ("plan", "--strategy", "bot50"), ("generate", "--prompt", "the")):
        begun = time.process_time()
        ended = frostline(arguments[0], folder, *arguments[1:])
        assert ended.status == 2 and f"{min(values)} is too large" in ended.error
        assert time.process_time() - begun < 1


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_an_encoder_decoder_says_which_token_its_texts_start_with(file: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "t5")
    path = folder / file
    values = json.loads(path.read_text())
    path.write_text(
        json.dumps({key: values[key] for key in values if key not in ("decoder_start_token_id", "bos_token_id")})
    )
    ended = frostline("generate", folder, "--prompt", "the sun", "--max-new-tokens", "2")
    assert ended.status == 2 and f"{file}: decoder_start_token_id is missing" in ended.error
