"""A training loop with accelerate: prepared model, accumulated gradients, several processes.

accelerate launch examples/with_accelerate.py [MODEL]
"""

from __future__ import annotations

import sys

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling

import frostline as fl

name = sys.argv[1] if len(sys.argv) > 1 else "src/frostline/run/demo/storyteller"
model, tokenizer = AutoModelForCausalLM.from_pretrained(name, dtype="float32"), AutoTokenizer.from_pretrained(name)
rows = [tokenizer(f"Lily has {count} red apples and {count % 7} green ones.") for count in range(64)]
loader = DataLoader(rows, batch_size=8, shuffle=True, collate_fn=DataCollatorForLanguageModeling(tokenizer, mlm=False))

fl.apply(fl.make_plan(model, "bot50"), model)
optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-3)

accelerator = Accelerator(gradient_accumulation_steps=2)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
model.train()
with fl.activation_cache(model) as cache:
    for epoch in range(3):
        for batch in loader:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        accelerator.print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
accelerator.print(cache.report.reason, *cache.notices, sep="\n")
