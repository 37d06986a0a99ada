"""Processor time of steps that leave something out, beside what is predicted: plain loops, steps interleaved.

python benchmarks/drops.py --model base16 --rounds 20
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from frostline.anatomy import find_anatomy
from frostline.checkpoints import load_config, load_weights
from frostline.cost import Workload, flops_ratio
from frostline.run import make_plan
from frostline.surgery import apply

NARROW = {"series-adapter": {"bottleneck": 48}}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "all": ("all", {}),
    "layerdrop": ("layerdrop", {}),
    "series-adapter": ("series-adapter", {"bottleneck": 48}),
    "adapterdrop": ("adapterdrop", NARROW),
    "adapterdrop, robust": ("adapterdrop", {"robust": True, **NARROW}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    workload = Workload(per_device_train_batch_size=options.batch, length=options.length, attention="sdpa")
    loops, predicted = {}, {}
    for name, (strategy, given) in CASES.items():
        model: Any = load_weights(options.model, AutoModelForCausalLM, load_config(options.model), "float32")
        plan = make_plan(model, strategy, options=given)
        predicted[name] = flops_ratio(plan, find_anatomy(model), workload)
        apply(plan, model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        loops[name] = (model.train(), torch.optim.AdamW(trained, lr=5e-5))
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(options.rounds):
        ids = torch.randint(3, model.config.vocab_size, (options.batch, options.length))
        for name, (model, optimizer) in loops.items():
            begun = time.process_time()
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds[name].append(time.process_time() - begun)
    means = {name: statistics.mean(own[2:]) for name, own in seconds.items()}  # the first two warm up
    for name, mean in means.items():
        print(f"{name:20} processor time {mean / means['all']:.2f}  operations, predicted {predicted[name]:.2f}")


if __name__ == "__main__":
    main()
