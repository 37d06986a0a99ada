"""A sentence embedding model on a plan: anchors, positives and negatives pass the frozen lower blocks once.

python examples/sentence_transformer.py MODEL
"""

from __future__ import annotations

import sys

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

import frostline as fl

model = SentenceTransformer(sys.argv[1] if len(sys.argv) > 1 else "sentence-transformers/all-MiniLM-L6-v2")
rows = Dataset.from_dict(
    {
        "anchor": [f"Who has {count} apples?" for count in range(48)],
        "positive": [f"Lily has {count} red apples." for count in range(48)],
    }
)
args = SentenceTransformerTrainingArguments("out/st", num_train_epochs=3, report_to="none", save_strategy="no")
trainer = SentenceTransformerTrainer(model, args, train_dataset=rows, loss=MultipleNegativesRankingLoss(model))

trainer = fl.attach(trainer, plan="bot75")

trainer.train()
print(trainer.cache_report.reason, *trainer.notices, sep="\n")
