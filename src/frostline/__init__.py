"""frostline: which layers of a language model to fine-tune, and what is saved by it."""
