"""A training loop in plain PyTorch: inside the context, known rows do not run the frozen lower blocks again.

python examples/plain_loop.py [MODEL]
"""

from __future__ import annotations

import sys

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling

import frostline as fl

name = sys.argv[1] if len(sys.argv) > 1 else "src/frostline/run/demo/storyteller"
model, tokenizer = AutoModelForCausalLM.from_pretrained(name, dtype="float32"), AutoTokenizer.from_pretrained(name)
rows = [tokenizer(f"Lily has {count} red apples and {count % 7} green ones.") for count in range(64)]
loader = DataLoader(rows, batch_size=8, shuffle=True, collate_fn=DataCollatorForLanguageModeling(tokenizer, mlm=False))

fl.apply(fl.make_plan(model, "bot50"), model)
optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-3)

model.train()
with fl.activation_cache(model) as cache:
    for epoch in range(3):
        for batch in loader:
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
print(cache.report.reason, *cache.notices, sep="\n")
