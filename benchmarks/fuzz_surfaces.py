"""The surfaces of frostline that read what others wrote: each makes one damaged input and says how it is read."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fuzz_corpus as corpus
import peft
import torch
import transformers
import yaml
from fuzz_mutations import (
    as_json,
    as_yaml,
    mutated_bytes,
    mutated_document,
    mutated_lines,
    mutated_text,
)
from safetensors import SafetensorError

import frostline as fl
from frostline.cli.main import main
from frostline.core.errors import FrostlineError
from frostline.core.shown import one_line

LARGEST = 400_000
"""Files above this size are not damaged: they are no text that a person edits."""


@dataclass(frozen=True)
class Input:
    """One damaged input: the arguments of the command, and the files that were damaged, for a report."""

    arguments: list[str]
    files: tuple[Path, ...] = ()
    fine: tuple[int, ...] = (0, 2)
    call: Callable[[list[str]], int] = main


Surface = Callable[[random.Random], Input]


@contextmanager
def surfaces(folder: Path) -> Iterator[Mapping[str, Surface]]:
    """Every surface by name. What they read is made in `folder`. Inside this context nothing trains for long."""
    folder = folder.resolve()
    settings = {"FROSTLINE_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "RANK": "0", "COLUMNS": "120"}
    settings["FROSTLINE_DATA"] = settings["FROSTLINE_MODELS"] = str(folder / "none")
    inner = folder / "a" / "b" / "c"  # a damaged path, such as ../../x, stays in the folder
    inner.mkdir(parents=True)
    with patch.dict(os.environ, settings):
        made = _Maker(folder)
        with (
            chdir(inner),
            patch("frostline.run._training._run", lambda prepared, record, *rest: record),
            patch("frostline.study._runner._run_cells", lambda *_: []),
        ):
            yield made.surfaces()


@contextmanager
def undamaged() -> Iterator[None]:
    """Inside this context, inputs are as they were before the damage."""

    def same(data: Any, *_: object) -> Any:
        return data

    names = ("mutated_bytes", "mutated_document", "mutated_lines", "mutated_text")
    whole = patch.object(_Maker, "_damaged", lambda made, folder, *_: folder / "undamaged")
    with patch.multiple(sys.modules[__name__], **dict.fromkeys(names, same)), whole:
        yield


class _Maker:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = corpus.write_model(folder / "models" / "llama")
        self.models = [self.model, *(corpus.write_model(folder / "models" / kind, kind) for kind in corpus.MODELS[1:])]
        self.rows = folder / "rows.jsonl"
        self.rows.write_bytes(corpus.jsonl(corpus.rows()))
        self.config = {"model": str(self.model), "task": str(self.rows), **corpus.CONFIG}
        self.run = self._trained("run", "strategy=bot50", "save_steps=1", "activation_cache=on")
        self.lora = self._trained("lora", "strategy=lora", "save_steps=1")
        texts = folder / "texts.jsonl"
        texts.write_bytes(corpus.jsonl(corpus.FORMS[1]))
        columns = ("data.columns.text=text", "data.columns.label=null")
        self.writer = self._trained("writer", f"task={texts}", *columns, "strategy=lora")
        self.adapter = corpus.write_adapter(self.model, folder / "adapter")
        hybrid = transformers.AutoModelForCausalLM.from_pretrained(self.model)
        self.hybrid = folder / "hybrid"
        adapted = peft.get_peft_model(hybrid, fl.HybridConfig.of(fl.make_plan(hybrid, "hlpt"), task_type="CAUSAL_LM"))
        adapted.save_pretrained(self.hybrid)
        self.plans = corpus.plans(self.model)
        self.scratch = folder / "scratch"

    def _trained(self, name: str, *settings: str) -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_bytes(as_yaml(self.config))
        status = main(["train", str(path), f"out={self.folder / name}", *settings])
        assert status == 0, f"the run {name} did not train"
        return self.folder / name

    def surfaces(self) -> dict[str, Surface]:
        """Name -> what makes an input."""
        return {
            "plan": self.plan,
            "config": self.config_file,
            "key=value": self.key_value,
            "budget": self.budget,
            "study": self.study,
            "JSONL": self.jsonl,
            "CSV": self.csv,
            "Parquet": self.parquet,
            "task options": self.options,
            "records": self.records,
            "run folders": self.run_folder,
            "checkpoints": self.checkpoint,
            "model folders": self.model_folder,
            "cache files": self.cache,
            "adapters' folders": self.adapters,
        }

    def _written(self, name: str, data: bytes) -> Path:
        self.scratch.mkdir(exist_ok=True)
        path = self.scratch / name
        path.write_bytes(data)
        return path

    def _fresh(self, source: Path) -> Path:
        shutil.rmtree(self.scratch, ignore_errors=True)
        shutil.copytree(source, self.scratch)
        return self.scratch

    def plan(self, draw: random.Random) -> Input:
        write, ending = draw.choice(((as_yaml, "yaml"), (as_json, "json")))
        path = self._written(f"plan.{ending}", mutated_document(write(draw.choice(self.plans)), write, draw))
        return Input(["plan", str(self.model), "--strategy", str(path)], (path,))

    def config_file(self, draw: random.Random) -> Input:
        path = self._written("config.yaml", mutated_document(as_yaml(self.config), as_yaml, draw))
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        return Input(["train", str(path), "--out", str(out)], (path,))

    def key_value(self, draw: random.Random) -> Input:
        if draw.random() < 0.5:
            given = ("length=32", "per_device_train_batch_size=2", "bf16=true", "num_train_epochs=2", "optim=sgd")
            given += ("max_steps=3", "rows=100", "gradient_accumulation_steps=2", "activation_cache=false")
            return Input(["plan", str(self.model), "--strategy", "bot50", mutated_text(draw.choice(given), draw)])
        from frostline.run import RunConfig

        path = self._written("config.yaml", as_yaml(self.config))
        name = draw.choice([*RunConfig.model_fields])
        text = mutated_text(f"{name}={json.dumps(self.config.get(name, 1))}", draw)
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        return Input(["train", str(path), "--out", str(out), text])

    def budget(self, draw: random.Random) -> Input:
        given = ("memory=8GB", "time=0.5", "disk=20GB", "memory=8GB,time=0.5", "time=30min", "memory=0.4,disk=1TB")
        text = mutated_text(draw.choice(given), draw)
        return Input(["plan", str(self.model), "--strategy", "auto", "--budget", text])

    def study(self, draw: random.Random) -> Input:
        study = {
            "models": [str(self.model)],
            "tasks": [str(self.rows)],
            "strategies": ["all", {"name": "lora", "label": "a", "learning_rate": 1e-3}],
            "seeds": [1, 2],
            "config": {key: corpus.CONFIG[key] for key in ("max_steps", "max_length", "data")},
            "baseline": "all",
        }
        path = self._written("study.yaml", mutated_document(as_yaml(study), as_yaml, draw))
        return Input(["study", str(path), "--out", str(self.folder / "studied")], (path,))

    def _read(self, path: Path, draw: random.Random) -> Input:
        if draw.random() < 0.3:
            return Input(["evaluate", str(self.model), "--task", str(path), "--max-new-tokens", "2"], (path,))
        return Input(["inspect", str(self.model), "--task", str(path)], (path,))

    def jsonl(self, draw: random.Random) -> Input:
        data = corpus.jsonl(draw.choice(corpus.FORMS))
        if draw.random() < 0.3:
            whole = json.dumps([json.loads(line) for line in data.splitlines()]).encode()
            return self._read(self._written("rows.json", mutated_document(whole, as_json, draw)), draw)
        return self._read(self._written("rows.jsonl", mutated_lines(data, draw)), draw)

    def csv(self, draw: random.Random) -> Input:
        delimiter, ending = draw.choice(((",", "csv"), ("\t", "tsv"), (";", "csv")))
        data = corpus.csv(draw.choice(corpus.FORMS[:5]), delimiter)
        return self._read(self._written(f"rows.{ending}", mutated_bytes(data, draw)), draw)

    def parquet(self, draw: random.Random) -> Input:
        path = self.folder / "good.parquet"
        compression = draw.choice(("snappy", "zstd", "none", "gzip"))
        data = corpus.write_parquet(path, draw.choice(corpus.FORMS), compression)
        return self._read(self._written("rows.parquet", mutated_bytes(data, draw)), draw)

    def options(self, draw: random.Random) -> Input:
        given = (
            "data.columns.text=text",
            "data.columns.label=label",
            "data.kind=classification",
            "data.eval_share=0.2",
        )
        given += ("data.labels=[yes,no]", "data.prompt='{}'", "data.max_train_rows=5", "data.encoding=utf-8")
        given += ("data.metric=accuracy", "data.template=x", "data.columns.pair=text", "data.delimiter=comma")
        given += ("generation.num_beams=2", "generation.preset=greedy", "generation.temperature=0.5")
        texts = [mutated_text(text, draw) for text in draw.sample(given, draw.choice((1, 1, 2)))]
        return Input(["evaluate", str(self.model), "--task", str(self.rows), "--max-new-tokens", "2", *texts])

    def records(self, draw: random.Random) -> Input:
        good = json.loads((self.run / "run.json").read_bytes())
        good |= {"status": draw.choice(("running", "finished", "failed")), "error": draw.choice((None, "lost"))}
        shutil.rmtree(self.scratch, ignore_errors=True)
        files = []
        for number in range(draw.choice((1, 1, 2))):
            folder = self.scratch / "llama" / "rows" / f"bot{number}" / f"seed{good['seed']}"
            folder.mkdir(parents=True)
            (folder / "run.json").write_bytes(mutated_document(as_json(good), as_json, draw))
            files.append(folder / "run.json")
        if draw.random() < 0.3:
            study = {"models": ["a"], "tasks": ["b"], "strategies": ["all"], "baseline": "bot1"}
            files.append(self._written("study.yaml", mutated_document(as_yaml(study), as_yaml, draw)))
        shapes = [["--format", shape] for shape in ("markdown", "json", "csv", "html", "html")]
        form = draw.choice(([], *shapes, ["--metric", mutated_text("accuracy", draw)]))
        return Input(["report", str(self.scratch), *form], tuple(files))

    def _damaged(self, folder: Path, draw: random.Random, weights: float = 0.3) -> Path:
        """One file of `folder`, now damaged or missing."""
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size < LARGEST)
        tensors = [path for path in files if path.suffix == ".safetensors"]
        others = [path for path in files if path not in tensors and path.name not in ("README.md", ".lock")]
        path = draw.choice(tensors if tensors and draw.random() < weights else others)
        data = path.read_bytes()
        if draw.random() < 0.05:
            path.unlink()
        elif path.suffix == ".safetensors" and draw.random() < 0.7:
            size = min(8 + int.from_bytes(data[:8], "little"), len(data))
            path.write_bytes(mutated_bytes(data[:size], draw) + data[size:])
        elif path.suffix == ".json":
            path.write_bytes(mutated_document(data, as_json, draw))
        elif path.suffix == ".yaml":
            path.write_bytes(mutated_document(data, as_yaml, draw))
        else:
            path.write_bytes(mutated_bytes(data, draw))
        return path

    def run_folder(self, draw: random.Random) -> Input:
        folder = self._fresh(draw.choice((self.run, self.lora, self.writer)))
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        path = self._damaged(folder, draw)
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        forms = (
            ["evaluate", str(folder)],
            ["merge", str(folder), "--out", str(out)],
            ["export", str(folder), "--out", str(out)],
            ["generate", str(folder), "--prompt", "the sun", "--max-new-tokens", "2"],
        )
        return Input(draw.choice(forms), (path,))

    def checkpoint(self, draw: random.Random) -> Input:
        """A run that was stopped after its first step, with a damaged checkpoint: it really goes on."""
        folder = self._fresh(draw.choice((self.run, self.lora)))
        shutil.rmtree(folder / "checkpoint-2", ignore_errors=True)
        record = json.loads((folder / "run.json").read_bytes())
        record |= {"status": "failed", "finished": None, "measured": None, "metrics": None}
        record["config"]["out"] = str(folder)
        (folder / "run.json").write_bytes(as_json(record))
        config = self._config_of(record)
        path = self._damaged(folder / "checkpoint-1", draw)
        return Input(["train", str(config), "--resume"], (path,), call=_really)

    def _config_of(self, record: dict[str, object]) -> Path:
        path = self.folder / "again.yaml"
        path.write_text(yaml.safe_dump(record["config"]))
        return path

    def model_folder(self, draw: random.Random) -> Input:
        folder = self._fresh(draw.choice(self.models))
        path = self._damaged(folder, draw, 0.15)
        forms = (
            ["inspect", str(folder)],
            ["inspect", str(folder), "--task", str(self.rows)],
            ["plan", str(folder), "--strategy", "bot50"],
            ["plan", str(folder), "--strategy", "lora", "length=16"],
            ["evaluate", str(folder), "--task", str(self.rows), "--max-new-tokens", "2"],
            ["generate", str(folder), "--prompt", "the sun", "--max-new-tokens", "2"],
        )
        return Input(draw.choice(forms), (path,))

    def cache(self, draw: random.Random) -> Input:
        cache = self.folder / "cache"
        kept = self.folder / "kept"
        if not kept.exists():
            shutil.copytree(cache, kept)
        shutil.rmtree(cache)
        shutil.copytree(kept, cache)
        path = self._damaged(cache, draw)
        if draw.random() < 0.95:
            # verify ends with 1 where it found what is damaged: that is its answer.
            form = draw.choice((["list"], ["verify"], ["list", "--json"], ["prune", "--older-than", "1d"]))
            return Input(["cache", *form], (path,), (0, 1, 2) if form == ["verify"] else (0, 2))
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        form = ["train", str(self.folder / "run.yaml"), f"out={out}", "activation_cache=on"]
        return Input(form, (path,), call=_really)

    def adapters(self, draw: random.Random) -> Input:
        """PEFT reads a folder with frostline's method in it: an error is frostline's, or of a kind that PEFT has."""
        if draw.random() < 0.3:
            folder = self._fresh(self.adapter)
            path = self._damaged(folder, draw, 0.4)
            return Input(["inspect", str(folder)], (path,))
        folder = self._fresh(self.hybrid)
        path = self._damaged(folder, draw, 0.4)
        if not _is_hybrid(folder / "adapter_config.json"):  # PEFT then reads it without frostline
            return Input(["inspect", str(folder)], (path,))
        model = str(self.model)
        return Input(["(peft)", str(folder)], (path,), call=lambda arguments: _loaded(model, arguments[1]))


def _really(arguments: list[str]) -> int:
    """The command, with the training that the other surfaces leave out."""
    import frostline.run._training as training

    with patch.object(training, "_run", RUN):
        return main(arguments)


def _is_hybrid(path: Path) -> bool:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and values.get("peft_type") == "HYBRID"


def _loaded(model: str, folder: str) -> int:
    base = transformers.AutoModelForCausalLM.from_pretrained(model)
    try:
        adapted = peft.PeftModel.from_pretrained(base, folder)
        adapted(input_ids=torch.tensor([[1, 5, 6]]))
    except (FrostlineError, ValueError, OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "size mismatch" not in str(error):  # that is what PEFT raises for LoRA
            raise
        print(f"error: {one_line(str(error))[:200]}", file=sys.stderr)
        return 2
    return 0


def _original() -> Callable[..., object]:
    import frostline.run._training as training

    return training._run


RUN = _original()
"""The function that trains, before it is left out."""
