"""PEFT with a kind of adapter for each block: gated LoRA below, prefixes above, saved and loaded as PEFT's own.

python examples/peft_hybrid.py [MODEL]
"""

from __future__ import annotations

import sys
import tempfile

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling

from frostline import HybridConfig

torch.manual_seed(0)
name = sys.argv[1] if len(sys.argv) > 1 else "src/frostline/run/demo/storyteller"
model, tokenizer = AutoModelForCausalLM.from_pretrained(name, dtype="float32"), AutoTokenizer.from_pretrained(name)
last = model.config.num_hidden_layers - 1
low = {"index": f"0-{last - 1}", "mode": "lora", "targets": "down", "gate": True, "dropout": 0.0}
adapted = get_peft_model(model, HybridConfig(blocks=[low, {"index": last, "mode": "prefix"}], task_type="CAUSAL_LM"))
adapted.print_trainable_parameters()

rows = [tokenizer(f"Lily has {count} red apples and {count % 7} green ones.") for count in range(64)]
batch = DataCollatorForLanguageModeling(tokenizer, mlm=False)(rows)
optimizer = torch.optim.AdamW([parameter for parameter in adapted.parameters() if parameter.requires_grad], lr=1e-2)
for step in range(10):
    loss = adapted(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step + 1}: loss {loss.item():.3f}")

with tempfile.TemporaryDirectory() as folder:
    adapted.save_pretrained(folder)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(name, dtype="float32"), folder).eval()
prompt = tokenizer("Lily has", return_tensors="pt")
print(tokenizer.decode(loaded.generate(**prompt, max_new_tokens=12, do_sample=False)[0]))
