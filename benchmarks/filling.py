"""How an activation cache is filled by several processes, opened, and filled by Ray.

    python benchmarks/filling.py sides            two processes side by side, and one after the other
    python benchmarks/filling.py open --gb 4      opening a large cache, and hashing all of it
    python benchmarks/filling.py ray              20,000 rows by four actors, one of which is killed

`sides` takes --model and --task as `frostline train` does. `ray` makes a tiny random model and starts a cluster on this
machine, of as many nodes as actors. Each prints one JSON document.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from frostline.bottom import ActivationCache, Stream
from frostline.core import cache
from frostline.core.shards import ShardFile

COMMAND = [sys.executable, "-c", "import sys; from frostline.cli.main import main; sys.exit(main(sys.argv[1:]))"]


def fill(root: Path, *given: str) -> subprocess.Popen[str]:
    """A process that fills the caches in `root`."""
    environment = {**os.environ, "FROSTLINE_CACHE": str(root), "OMP_NUM_THREADS": "1"}
    command = [*COMMAND, "cache", "fill", *given, "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate()
    assert process.returncode == 0, process.returncode
    found: dict[str, Any] = json.loads(out)
    return found


def states(root: Path) -> dict[str, str]:
    """Key -> digest of the stored bytes, of all rows in all caches below `root`."""
    found = {}
    for folder in cache.store_folders(root):
        for path in cache.shards(folder):
            shard = ShardFile(path)
            for index, key in enumerate(shard.keys):
                row = shard.row(index) or {}
                found[key] = hashlib.sha256(b"".join(bytes(row[name]) for name in sorted(row))).hexdigest()
    return found


def sides(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    given = [f"model={args.model}", f"task={args.task}", "strategy=bot50", "bf16=false", "threads=1"]
    given.append(f"data.max_train_rows={args.rows}")
    found: dict[str, Any] = {}
    for _ in range(args.rounds):
        for name, shards in (
            ("one process", [["0/1"]]),
            ("one after the other", [["0/2"], ["1/2"]]),
            ("side by side", [["0/2", "1/2"]]),
        ):
            root, begun, done = folder / f"{len(found)}-{time.time_ns()}", time.perf_counter(), []
            for together in shards:
                done += [ended(process) for process in [fill(root, *given, "--shard", shard) for shard in together]]
            own = found.setdefault(name, {"seconds": [], "pass_seconds": [], "rows": []})
            own["seconds"].append(round(time.perf_counter() - begun, 2))
            own["pass_seconds"].append([round(each["seconds"], 2) for each in done])
            own["rows"].append(sum(each["passed"] for each in done))
    best = {name: min(own["seconds"]) for name, own in found.items()}
    found["ratio"] = {name: round(seconds / best["one process"], 2) for name, seconds in best.items()}
    return found


def opening(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A cache of states of 512 tokens of width 4,096 in bfloat16 (4 MiB), 16 rows a shard."""
    streams = {"hidden": Stream(4096, torch.bfloat16)}
    written = ActivationCache.open(folder, {"of": "benchmark"}, streams)
    row = torch.randn(512, 4096).bfloat16()
    for shard in range(int(args.gb * 10**9 / (16 * row.nbytes))):
        row[0, 0] = shard
        written.write({f"{shard * 16 + i:032x}": {"hidden": row} for i in range(16)})
    begun = time.perf_counter()
    opened = ActivationCache.open(folder, {"of": "benchmark"}, streams)
    seconds = time.perf_counter() - begun
    begun = time.perf_counter()
    for path in cache.shards(opened.folder):
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")
    hashing = time.perf_counter() - begun
    keys = [f"{index:032x}" for index in range(min(len(opened), 256))]
    begun = time.perf_counter()
    for key in keys:
        opened.read(key)
    reading = len(keys) * row.nbytes / (time.perf_counter() - begun)
    return {
        "bytes": opened.bytes_on_disk(),
        "rows": len(opened),
        "shards": len(cache.shards(opened.folder)),
        "open_seconds": round(seconds, 3),
        "hash_seconds": round(hashing, 2),
        "read_and_verify_bytes_per_second": round(reading),
    }


def tiny_run(folder: Path, rows: int) -> Path:
    """The config of a run of a tiny random model on rows of 16 words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = [f"w{number}" for number in range(500)]
    config = LlamaConfig(
        vocab_size=504, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    known = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder / "model")
    (folder / "rows").mkdir()
    for split, count in (("train", rows), ("dev", 20)):
        drawn = torch.randint(500, (count, 16), generator=torch.Generator().manual_seed(count)).tolist()
        lines = [json.dumps({"text": " ".join(words[i] for i in row), "label": "ab"[row[0] % 2]}) for row in drawn]
        (folder / "rows" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    path = folder / "run.yaml"
    run = {
        "model": str(folder / "model"),
        "task": str(folder / "rows"),
        "strategy": "bot50",
        "bf16": False,
        "threads": 1,
    }
    path.write_text(json.dumps({**run, "max_length": 32}))
    return path


def by_ray(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from ray.cluster_utils import Cluster

    path = tiny_run(folder, args.rows)
    alone = ended(fill(folder / "alone", str(path)))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        for _ in range(args.actors - 1):
            cluster.add_node(num_cpus=1)
        root, killed, there = folder / "ray", 0, 0
        process = fill(root, str(path), "--ray", cluster.address)
        while process.poll() is None and args.kill and not killed:
            there = len(list(root.rglob("*.safetensors")))
            fillers = _fillers() if there else []
            if fillers:
                killed = fillers[0].pid
                os.kill(killed, signal.SIGKILL)
            time.sleep(0.01)
        done = ended(process)
        again = ended(fill(root, str(path), "--ray", cluster.address)) if args.again else None
    finally:
        cluster.shutdown()
    shards = len(list(root.rglob("*.safetensors")))
    return {
        "rows": done["rows"],
        "same_bytes": states(root) == states(folder / "alone"),
        "killed": killed,
        "shards_when_killed": there,
        "shards": shards,
        "passed_by_actors_that_answered": done["passed"],
        "passed_again": None if again is None else again["passed"],
        "one_process_rows_per_second": round(alone["rows"] / alone["seconds"]),
        "seconds": round(done["seconds"], 1),
        "actors": [
            {
                **each,
                "seconds": round(each["seconds"], 2),
                "rows_per_second": round(each["rows"] / max(each["seconds"], 1e-9)),
            }
            for each in done["actors"]
        ],
    }


def _fillers() -> list[psutil.Process]:
    """The actors on this machine that fill a cache for this process, as children of its cluster."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "Filler" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sides", "open", "ray"])
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--task", default="rte")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--gb", type=float, default=4.0)
    parser.add_argument("--actors", type=int, default=4)
    parser.add_argument("--no-kill", dest="kill", action="store_false")
    parser.add_argument("--again", action="store_true", help="fill a second time: nothing is left to do")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        made = {"sides": sides, "open": opening, "ray": by_ray}[args.what](args, Path(place))
    print(json.dumps(made, indent=2))


if __name__ == "__main__":
    main()
