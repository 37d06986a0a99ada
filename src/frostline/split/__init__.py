"""SplitLoRA: a model cut in two parts, trained by one server and several clients that keep their own rows."""

from frostline.split._trainer import OPTIMIZERS, SplitReport, SplitTrainer

__all__ = ["OPTIMIZERS", "SplitReport", "SplitTrainer"]
