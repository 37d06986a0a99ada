"""PEFT's own tests of what every PEFT method can do, with `LoraConfig` and with `HybridConfig` on the same models.

The tests are the methods of `PeftCommonTester`, which PEFT runs for each of its methods and models. They are in PEFT's
source distribution, which pip fetches here in the installed version. Models are tiny and random, and made here. Each
test that passes with `LoraConfig` has to pass with `HybridConfig` too, or REASONS says why it does not. A difference
without a reason ends the script with status 1, and so does, when all is run, a reason that is no longer needed.

    python benchmarks/peers/peft_tests.py [--only PATTERN] [--models llama opt ...] [--kinds hlpt ...] [--verbose]

A test that PEFT skips for a method (merging where the method cannot merge) counts as not passed for that method.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import subprocess
import sys
import tarfile
import tempfile
import traceback
import types
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from peft import LoraConfig
from rich.console import Console
from rich.table import Table
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from frostline.adapters import HybridConfig

SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", GROUPED),
    "opt": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.2}),
    "gpt-2": ("gpt2", {}),
    "gpt-neox": ("gpt_neox", {}),
    "qwen3": ("qwen3", GROUPED),
    "gemma-3": ("gemma3_text", {**GROUPED, "sliding_window": 4}),
    "t5": ("t5", {"d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "decoder_start_token_id": 0}),
    "bert": ("bert", {}),
}
LORA = {"mode": "lora", "r": 8, "alpha": 32, "dropout": 0.05}
HLPT = [
    {"index": "0-2", **LORA, "targets": "down", "gate": True},
    {"index": 3, "mode": "prefix", "length": 4, "init_std": 0.5},
]
PARALLEL = {"mode": "adapter", "kind": "parallel", "bottleneck": 8}
SERIES = {"mode": "adapter", "kind": "series", "bottleneck": 16}
KINDS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "LoraConfig": (LoraConfig, {"r": 8, "lora_alpha": 32, "lora_dropout": 0.05}),
    "lora": (HybridConfig, {"blocks": [{"index": "1-3", **LORA}]}),
    "hlpt": (HybridConfig, {"blocks": HLPT}),
    "parallel": (HybridConfig, {"blocks": [{"index": "0-3", **PARALLEL}]}),
    "series": (HybridConfig, {"blocks": [{"index": "0-3", **SERIES}]}),
    "mixture": (
        HybridConfig,
        {"blocks": [{"index": "1-3", "mode": "adapter", "kind": "mixture", "experts": 3, "top_k": 2, "r": 4}]},
    ),
    "mixed": (HybridConfig, {"blocks": [{"index": 0, **LORA}, {"index": 1, **SERIES}, *HLPT[1:]]}),
}
STIRRED = "save|merge_layers(?!_fp16)|mixed|unload|weighted|disable|conversion|safe_merge"
"""Tests for which PEFT asks for first values that change the outputs (`init_lora_weights`, `init_weights`)."""
GIVEN: Mapping[str, list[dict[str, Any]]] = {
    "_test_add_adapter_no_autocast_adapter_dtype": [{"dtype": torch.bfloat16}, {"dtype": torch.float16}],
    "_test_save_pretrained": [{"safe_serialization": True}, {"safe_serialization": False}],
    "_test_save_pretrained_selected_adapters": [{"safe_serialization": True}, {"safe_serialization": False}],
    "_test_training_gradient_checkpointing": [{"use_reentrant": True}, {"use_reentrant": False}],
    "_test_generate_pos_args": [{"raises_err": False}, {"raises_err": True}],
    "_test_passing_input_embeds_works": [{"test_name": ""}],
}
"""What a test takes beside model and config: one run for each."""
_NO_OPTION = "HybridConfig has no such option, so PEFT skips the test: "
_NOT_MERGED = "is no change of weights, so merging is refused before anything changes"
_REENTRANT = "its balance loss has no gradient under reentrant checkpointing, and that is refused: use_reentrant=False"
REASONS: Mapping[tuple[str, str], str] = {
    (".*", "adding_multiple_adapters_with_bias_raises"): _NO_OPTION + "bias",
    (".*", "training_layer_indexing"): _NO_OPTION + "layers_to_transform; blocks says it",
    (".*", "weighted_combination_of_adapters"): "PEFT skips it for all but its own configs; it changes their field r",
    ("hlpt|mixed", "(merge_layers|safe_merge)"): f"a gate or a prefix {_NOT_MERGED}",
    ("parallel|series", "(merge_layers|safe_merge)"): f"an adapter with an activation {_NOT_MERGED}",
    ("mixture", "(merge_layers|safe_merge)"): f"a choice of experts {_NOT_MERGED}",
    ("hlpt|mixed|mixture", ".*mixed_adapter_batches"): "prefixes and mixtures do not work row by row, and say so",
    (
        "series opt",
        ".*mixed_adapter_batches",
    ): "OPT puts all rows in one before its feed-forward; PEFT's LoRA fails too",
    ("mixture", "training_gradient_checkpointing True"): _REENTRANT,
}
"""(Kind, or kind and model; test) as patterns -> why it does not pass."""
REFUSED = {("mixture", "opt"), ("mixture", "bert")}
"""(Kind, model) that is refused: no module of the block holds only the feed-forward, so experts cannot run it."""


class Result(NamedTuple):
    """What became of a test: `passed`, `skipped` or `failed`, and the last line of the error or of PEFT's reason."""

    outcome: str
    why: str = ""


def fetch(folder: Path) -> Any:
    """PEFT's module of common tests, of the installed version, unpacked in `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*command, "--dest", str(folder), f"peft=={version('peft')}"], check=True)
    (archive,) = folder.glob("peft-*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    (tests,) = folder.glob("peft-*/tests")
    if find_spec("diffusers") is None:  # the tests read one of its names, and none of those here uses it
        stand_in: Any = types.ModuleType("diffusers")
        stand_in.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})
        sys.modules["diffusers"] = stand_in
    sys.path.insert(0, str(tests.parent))
    return importlib.import_module("tests.testing_common")


def save_models(folder: Path) -> None:
    """A tiny random model of each family, each in a folder of its own in `folder`."""
    for name, (model_type, sizes) in MODELS.items():
        config = transformers.AutoConfig.for_model(model_type, **SIZES | sizes)
        torch.manual_seed(0)
        auto_class(name).from_config(config).save_pretrained(folder / name)


def auto_class(model: str) -> Any:
    return {"t5": AutoModelForSeq2SeqLM, "bert": AutoModel}.get(model, AutoModelForCausalLM)


def tester_for(common: Any, model: str) -> Any:
    """PEFT's tests, with the inputs that PEFT has for this kind of model."""

    def inputs(self: Any) -> dict[str, torch.Tensor]:
        ids = torch.tensor([[1, 1, 1], [1, 2, 1]])
        given = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 1]])}
        return given | {"decoder_input_ids": ids} if model == "t5" else given

    members = {
        "transformers_class": auto_class(model),
        "torch_device": "cpu",
        "prepare_inputs_for_testing": inputs,
    }
    return type("Tester", (common,), members)()


def tests_of(tester: Any) -> Iterator[tuple[str, Any]]:
    """(Name, test) for each test that takes a model and a config."""
    for name, test in inspect.getmembers(tester, inspect.ismethod):
        if name.startswith("_test_") and "model_id" in inspect.signature(test).parameters:
            for given in GIVEN.get(name, [{}]):
                label = "".join(f" {value}" for value in given.values() if value != "")
                yield f"{name.removeprefix('_test_')}{label}", partial(test, **given)


def run(common: Any, test: Any, model: Path, kind: str, stirred: bool) -> Result:
    """Run one test.

    Args:
        common: PEFT's module of common tests.
        test: the test.
        model: the folder of the model.
        kind: a key of KINDS.
        stirred: with first values that change the outputs.
    """
    config, options = KINDS[kind]
    options = dict(options)
    if auto_class(model.name) is not AutoModel:
        options["task_type"] = "SEQ_2_SEQ_LM" if model.name == "t5" else "CAUSAL_LM"
    if stirred:
        options["init_lora_weights" if config is LoraConfig else "init_weights"] = False
    torch.manual_seed(0)
    output = StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(output), redirect_stderr(output), mixing(common, test, config):
            warnings.simplefilter("ignore")
            test(model_id=str(model), config_cls=config, config_kwargs=options)
    except pytest.skip.Exception as skipped:
        return Result("skipped", str(skipped).replace(str(model), model.name))
    except (Exception, pytest.fail.Exception) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f" ({Path(place.filename).name}:{place.lineno})"
        return Result("failed", f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}{where}")
    return Result("passed")


@contextmanager
def mixing(common: Any, test: Any, config: type[Any]) -> Iterator[None]:
    """Inside, a test of batches with several adapters runs for `config` too. PEFT skips it for all but its LoRA."""
    if "mixed" not in str(test):
        yield
        return
    before = common.LoraConfig
    common.LoraConfig = config
    try:
        yield
    finally:
        common.LoraConfig = before


def reason(kind: str, model: str, test: str) -> str:
    """Why a kind does not pass a test on a model, from REASONS; empty when no reason is named."""
    for (kinds, tests), why in REASONS.items():
        if (re.fullmatch(kinds, kind) or re.fullmatch(kinds, f"{kind} {model}")) and re.match(tests, test):
            return why
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="PATTERN", help="only tests whose name matches")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--verbose", action="store_true", help="print each test that does not pass, and its error")
    given = parser.parse_args()
    kinds = dict.fromkeys(["LoraConfig", *given.kinds])
    found: dict[tuple[str, str], dict[str, Result]] = defaultdict(dict)
    with tempfile.TemporaryDirectory() as scratch:
        common = fetch(Path(scratch))
        save_models(Path(scratch))
        for model in given.models:
            for name, test in tests_of(tester_for(common.PeftCommonTester, model)):
                if re.search(given.only, name):
                    for kind in kinds:
                        stirred = re.search(STIRRED, name) is not None
                        found[kind, model][name] = run(common, test, Path(scratch) / model, kind, stirred)
    everything = not given.only and given.models == list(MODELS) and list(kinds) == list(KINDS)
    raise SystemExit(report(found, given.models, list(kinds)[1:], given.verbose, everything))


def report(
    found: Mapping[tuple[str, str], Mapping[str, Result]],
    models: list[str],
    kinds: list[str],
    verbose: bool,
    everything: bool,
) -> int:
    """Print how many tests that `LoraConfig` passes each kind passes, and name the others. 1 when something is amiss.

    Args:
        found: (kind, model) -> test -> what became of it.
        models: the models, in order.
        kinds: the kinds beside `LoraConfig`, in order.
        verbose: also print every single test that does not pass, with its error.
        everything: all tests were run, so a reason that did not come up is no longer needed.
    """
    console = Console(width=None if sys.stdout.isatty() else 200)
    counts, others = Table("kind", *models), Table("kind", "test", "models", "outcome", "reason")
    amiss, needed = 0, set[str]()
    for kind in kinds:
        row, missed = [], defaultdict(list)
        for model in models:
            wanted = [test for test, result in found["LoraConfig", model].items() if result.outcome == "passed"]
            results = {test: found[kind, model][test] for test in wanted}
            outcomes = {result.outcome for result in results.values()}
            if (kind, model) in REFUSED and "passed" not in outcomes:
                row.append("refused")
                continue
            for test, result in results.items():
                if result.outcome != "passed":
                    missed[test, result.outcome, reason(kind, model, test)].append(model)
                    if verbose:
                        console.print(f"{kind} {model} {test}: {result.outcome}: {result.why}", markup=False)
            row.append(f"{sum(result.outcome == 'passed' for result in results.values())} of {len(wanted)}")
        needed.update(why for *_, why in missed)
        counts.add_row(kind, *row)
        for (test, outcome, why), where in sorted(missed.items()):
            amiss += not why
            others.add_row(kind, test, "all" if where == models else ", ".join(where), outcome, why or "NOT NAMED")
    console.print("Tests that pass, of those that pass with LoraConfig", counts, others)
    lora = Counter(result.outcome for model in models for result in found["LoraConfig", model].values())
    console.print(f"LoraConfig itself: {dict(lora)}")
    for why in sorted(set(REASONS.values()) - needed) if everything else ():
        console.print(f"no longer needed: {why}", markup=False)
        amiss += 1
    return 1 if amiss else 0


if __name__ == "__main__":
    main()
