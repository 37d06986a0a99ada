"""LoRA on the upper half of a model, written as an ordinary LoRA folder and loaded with plain PEFT.

python examples/export_lora.py [MODEL]
"""

from __future__ import annotations

import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling, TrainingArguments

import frostline as fl

name = sys.argv[1] if len(sys.argv) > 1 else "src/frostline/run/demo/storyteller"
model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
rows = [tokenizer(f"Lily has {count} red apples.") for count in range(64)]
args = TrainingArguments("out/lora", num_train_epochs=3, learning_rate=1e-3, report_to="none", save_strategy="no")
collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
trainer = fl.Trainer(model, args, plan="bot50+lora", train_dataset=rows, data_collator=collate)
trainer.train()

exported = fl.export_lora(model, "out/lora/folder")  # of a run's folder: frostline export RUN --out DIR

# From here on nothing needs frostline: vLLM and llama.cpp's converter read the folder too (its README.md says how).
tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(name), exported.folder)
text = tokenizer("Lily has 65 red", return_tensors="pt")
with torch.no_grad():
    same = torch.equal(tuned.eval()(**text).logits, model.eval()(**text).logits)
print(f"rank {exported.r}, alpha {exported.alpha:g}, {len(exported.modules)} matrices; same logits: {same}")
print(trainer.cache_report.reason)
