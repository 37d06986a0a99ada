"""DPO with TRL on a plan: policy and reference read the same stored states of the frozen lower blocks.

python examples/dpo.py [MODEL]
"""

from __future__ import annotations

import sys

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

import frostline as fl

name = sys.argv[1] if len(sys.argv) > 1 else "src/frostline/run/demo/storyteller"
model, tokenizer = AutoModelForCausalLM.from_pretrained(name, dtype="float32"), AutoTokenizer.from_pretrained(name)
pairs = Dataset.from_dict(
    {
        "prompt": [f"Lily has {count}" for count in range(48)],
        "chosen": [f" red apples and {count % 5} cats." for count in range(48)],
        "rejected": [" no."] * 48,
    }
)
args = DPOConfig("out/dpo", num_train_epochs=2, learning_rate=1e-3, report_to="none", save_strategy="no", bf16=False)
trainer = DPOTrainer(model, args=args, train_dataset=pairs, processing_class=tokenizer)

trainer = fl.attach(trainer, plan="bot50")

trainer.train()
print(trainer.cache_report.reason, *trainer.notices, sep="\n")
