"""SplitLoRA: a model cut in two, trained by a server and several clients that keep their rows."""

from frostline.split._trainer import OPTIMIZERS, SplitReport, SplitTrainer

__all__ = ["OPTIMIZERS", "SplitReport", "SplitTrainer"]
