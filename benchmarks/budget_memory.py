"""Does a whole run, evaluation and generation included, keep a budget's memory?

The model is a Llama of 4 blocks, width 128, with a vocabulary of 100,000: logits take the memory. Each run is
a process, `frostline train --budget memory=SIZE`. Printed are what was chosen and predicted, what the run took above
its start, and the peak of the process, in which Python, torch and transformers are.

    python benchmarks/budget_memory.py [--budgets 700MB 450MB] [--generate 0 16]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 100_000
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
SETTINGS = ("max_steps=6", "eval_steps=3", "per_device_train_batch_size=8", "bf16=false", "threads=1")
TRAIN = "import resource; from frostline.cli.main import main; import sys; status = main(sys.argv[1:])"
TRAIN += "; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, status)"


def write_model(folder: Path) -> Path:
    words = {**{word: number for number, word in enumerate(SPECIAL)}, **{f"w{i}": i for i in range(4, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_task(folder: Path) -> Path:
    draw = random.Random(0)
    folder.mkdir()

    def text(words: int) -> str:
        return " ".join(f"w{draw.randrange(4, VOCABULARY)}" for _ in range(words))

    for split, count in (("train", 400), ("dev", 48)):
        rows = [{"prompt": text(draw.randint(40, 80)), "completion": text(30)} for _ in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(given: list[str], out: Path) -> str:
    """One row of the table."""
    command = [sys.executable, "-c", TRAIN, "train", *given, *SETTINGS, "--out", str(out)]
    environment = {**os.environ, "FROSTLINE_CACHE": f"{out}-cache"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if not (out / "run.json").is_file():
        return done.stderr.strip().splitlines()[-1]
    record = json.loads((out / "run.json").read_text())
    predicted, measured, config = record["predicted"], record["measured"], record["config"]
    if record["status"] != "finished":
        raise SystemExit(done.stderr)
    sizes = (
        predicted["peak_memory_bytes"],
        predicted["evaluation_memory_bytes"],
        measured["peak_memory_bytes"],
        measured["run_peak_memory_bytes"],
        int(done.stdout.split()[-2]) * 1024,
    )
    chosen = record["chosen"]
    plan = f"boundary {chosen['boundary']}, batches of {chosen['per_device_train_batch_size']}"
    rows = config["per_device_eval_batch_size"] or "the usual"
    return " | ".join((plan, str(rows), *(f"{size / 1e6:.0f}" for size in sizes)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", nargs="+", default=["700MB", "450MB"])
    parser.add_argument("--generate", nargs="+", default=["0", "16"], help="Rows for which texts are generated.")
    given = parser.parse_args()
    columns = ("budget", "texts", "plan", "rows evaluated together", "steps, predicted", "evaluation, predicted")
    print(f"| {' | '.join((*columns, 'steps, MB', 'run, MB', 'process, MB'))} |")
    print(f"|---|--:|---|{'--:|' * 6}")
    with tempfile.TemporaryDirectory(prefix="budget-memory-") as name:
        folder = Path(name)
        model, task = write_model(folder / "model"), write_task(folder / "task")
        for budget in given.budgets:
            for texts in given.generate:
                settings = ["--model", str(model), "--task", str(task), "--budget", f"memory={budget}"]
                settings += [f"generate_rows={texts}", "max_new_tokens=32"]
                print(f"| {budget} | {texts} | {run(settings, folder / f'{budget} {texts}')} |", flush=True)


if __name__ == "__main__":
    main()
