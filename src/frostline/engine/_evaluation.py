"""The loss of an evaluation on several processes is that of one.

It is the mean over the rows of the mean loss of each one's batch. accelerate gives each process every n-th batch, and
fills the last round up with rows from the start. transformers leaves the answers to these rows out, but the loss of a
batch is a mean over all of its rows; and it divides by the labels of all batches of a round, as for a training step.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from frostline.engine._saving import SavingTrainer


class EvaluatingTrainer(SavingTrainer):
    """A `transformers.Trainer` whose evaluation counts each row once, on several processes too."""

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        together, self.args.average_tokens_across_devices = self.args.average_tokens_across_devices, False
        try:
            found = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
            real = self._real_rows(inputs)
            if real is None or found[0] is None:
                return found
            own = {name: value[:real] if isinstance(value, Tensor) else value for name, value in inputs.items()}
            return (super().prediction_step(model, own, True, ignore_keys)[0], *found[1:])
        finally:
            self.args.average_tokens_across_devices = together

    def _real_rows(self, inputs: Any) -> int | None:
        """How many rows of a batch are not there to fill it up; None where that is all of them, or none counts."""
        state, size = self.accelerator.gradient_state, self.args.eval_batch_size
        if self.args.world_size == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return None
        real = state.remainder - self.args.process_index * size
        tensors = [value for value in inputs.values() if isinstance(value, Tensor)]
        whole = all(value.dim() and len(value) == size for value in tensors)  # packed rows cannot be taken out
        return real if 0 < real < size and whole else None
