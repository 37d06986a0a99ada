"""SFT with TRL on a plan: the frozen lower blocks run once for each row.

python examples/sft.py [MODEL]
"""

from __future__ import annotations

import sys

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import frostline as fl

name = sys.argv[1] if len(sys.argv) > 1 else "src/frostline/run/demo/storyteller"
model, tokenizer = AutoModelForCausalLM.from_pretrained(name, dtype="float32"), AutoTokenizer.from_pretrained(name)
rows = Dataset.from_dict({"text": [f"Lily has {count} red apples and {count % 7} green ones." for count in range(64)]})
args = SFTConfig("out/sft", num_train_epochs=3, learning_rate=1e-3, report_to="none", save_strategy="no", bf16=False)
trainer = SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer)

trainer = fl.attach(trainer, plan="bot50")  # the only line that is frostline's

trainer.train()
print(trainer.cache_report.reason, *trainer.notices, sep="\n")
