"""Serve a hybrid model (gated LoRA below, gated prefixes above) with transformers: many threads call one model.

python examples/serve_under_threads.py [MODEL]
"""

from __future__ import annotations

import copy
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import frostline as fl

torch.set_num_threads(1)  # the requests share the processor
name = sys.argv[1] if len(sys.argv) > 1 else "src/frostline/run/demo/storyteller"
model, tokenizer = AutoModelForCausalLM.from_pretrained(name, dtype="float32"), AutoTokenizer.from_pretrained(name)
fl.apply(fl.make_plan(model, "hlpt"), model)  # after a training run: model = fl.load("runs/my-run")
model.eval()


def answer(model: Any, prompt: str, beams: int) -> str:
    tokens = model.generate(**tokenizer(prompt, return_tensors="pt"), num_beams=beams, max_new_tokens=12)
    return tokenizer.decode(tokens[0], skip_special_tokens=True)


subjects = ["Lily", "Tom and his big dog", "The little red car", "Once there was a cat that", "Sue"]
requests = [(f"{subject} went to", beams) for subject in subjects for beams in (1, 3)]
alone = [answer(model, *request) for request in requests]

with ThreadPoolExecutor(8) as pool:
    answers = [pool.submit(answer, model, *request) for request in 3 * requests]
    second = copy.deepcopy(model)  # while the threads work; its adapters are its own
    together = [text.result() for text in answers]
of_copy = [answer(second, *request) for request in requests]

print(*alone[::2], sep="\n")
print(f"{len(together)} requests in 8 threads: {'as alone' if together == 3 * alone else 'other texts'}")
print(f"a copy made meanwhile: {'the same' if of_copy == alone else 'other texts'}")
