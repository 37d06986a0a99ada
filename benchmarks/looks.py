"""What users' callbacks and losses do to a model while it trains, for `same_training.py`: they look at it or change it.

A look writes down what it sees (`seen`), to be compared with what it sees in plain training.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from combinations import OF_TOKENS, Combination, Rows
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from transformers import TrainerCallback

from frostline.anatomy import find_anatomy


def place_of(model: Any, place: str) -> str:
    """The name of the module that is meant by a combination's `place`."""
    anatomy = find_anatomy(model)
    blocks = [block.name for block in anatomy.blocks]
    named = {id(module): name for name, module in model.named_modules()}
    if place == "embeddings":
        return named[id(model.get_input_embeddings())]
    if place == "head":
        output = model.get_output_embeddings()
        return named[id(output)] if output is not None else anatomy.head[-1].name.rpartition(".")[0]
    return blocks[{"first": 0, "boundary": len(blocks) // 2 - 1, "last": -1}.get(place, 0)]


def states_in(output: Any) -> Any:
    """The hidden states of what a module returns."""
    return output[0] if isinstance(output, tuple) else output


def without_padding(chosen: Combination, states: Tensor) -> Tensor:
    """States [B, T, d] of a token that is no padding in any row: with the cache, those of padding are zeros."""
    if states.dim() < 3:
        return states
    return states[:, -1] if chosen.collator == "left" else states[:, 0]


def norm(value: Any) -> float:
    return float(value.detach().double().norm())


class Look(TrainerCallback):
    """A callback that looks at the model or changes it as `chosen.look` says, some from step `later` on.

    Attributes:
        seen: what it saw, step by step.
    """

    def __init__(self, chosen: Combination, later: int, batch: dict[str, Tensor]) -> None:
        self.kind, self.later, self.batch = chosen.look, later, batch
        self.chosen = chosen
        self.seen: list[tuple[str, float]] = []
        self.average: dict[str, Tensor] = {}
        self.inside = False

    def begin(self, trainer: Any, place: str) -> None:
        """Before training: what is on the model from the start. `place` is the module's name."""
        self.place = place
        trainer.add_callback(self)
        if not self.kind.endswith("later"):
            self._put(trainer.model, self.kind)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
        rows = getattr(train_dataloader, "dataset", None)
        if isinstance(rows, Rows):
            rows.epoch = round(state.epoch or 0)

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.inside = True
        if state.global_step != self.later:
            return
        if self.kind.endswith(" later"):
            self._put(model, self.kind.removesuffix(" later"))
        elif self.kind == "hidden states asked":
            model.config.output_hidden_states = True
        elif self.kind == "changes frozen weights":
            weights = next(p for p in model.parameters() if not p.requires_grad and p.dim() > 1)
            with torch.no_grad():
                weights.mul_(1.2)
        elif self.kind == "replaces a module":
            parent, _, child = self.place.rpartition(".")
            own = model.get_submodule(parent)[int(child)]
            model.get_submodule(parent)[int(child)] = Scaled(own)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.inside = False
        looked = getattr(self, f"_{self.kind.replace(' ', '_')}", None)
        if looked is not None:
            looked(model)

    def _note(self, what: str, value: float) -> None:
        self.seen.append((what, value))

    # Once a step.

    def _state_dict(self, model: Any) -> None:
        for name, tensor in model.state_dict().items():
            self._note(name, norm(tensor))

    def _average(self, model: Any) -> None:
        for name, parameter in model.named_parameters():
            before = self.average.get(name, parameter.detach())
            self.average[name] = 0.5 * before + 0.5 * parameter.detach()
            self._note(name, norm(self.average[name]))

    def _deep_copy(self, model: Any) -> None:
        self._evaluates(copy.deepcopy(model))

    def _embeddings(self, model: Any) -> None:
        with torch.no_grad():
            self._note("embeddings", norm(model.get_input_embeddings()(self.batch["input_ids"])))

    def _evaluates(self, model: Any) -> None:
        training = model.training
        model.eval()
        with torch.no_grad():
            output = model(**self.batch)
        model.train(training)
        self._note("loss", float(output.loss))
        if "logits" in output:
            self._note("logits", norm(output.logits[:, 0]))  # of no padding: with the cache, its states are zeros

    def _generates(self, model: Any) -> None:
        training = model.training
        model.eval()
        made = model.generate(input_ids=self.batch["input_ids"][:2, :4], max_new_tokens=3, do_sample=False)
        model.train(training)
        self._note("tokens", float(made.double().norm()))

    def _own_backward(self, model: Any) -> None:
        model(**self.batch).loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.grad is not None:
                self._note(name, norm(parameter.grad))
        model.zero_grad()

    # From some step on.

    def _put(self, model: Any, kind: str) -> None:
        self.root = model
        if kind in ("hook reads", "hook changes"):
            model.get_submodule(self.place).register_forward_hook(
                self._reads if kind == "hook reads" else self._changes
            )
        elif kind == "hook on the model":
            model.register_forward_hook(self._on_the_model)
        elif kind == "changes the input":
            model.register_forward_pre_hook(_other_input, with_kwargs=True)
        elif kind == "forward":
            model.forward = functools.wraps(model.forward)(functools.partial(_with_more, model.forward))
        elif kind == "scales the loss":
            model.register_forward_hook(_scaled_loss)
        elif kind == "class forward":
            own = type(model).forward

            @functools.wraps(own)
            def forward(self: Any, *given: Any, **options: Any) -> Any:
                return _scaled_loss(self, given, own(self, *given, **options))

            model.__class__ = type(type(model).__name__, (type(model),), {"forward": forward})

    def _reads(self, module: nn.Module, given: Any, output: Any) -> None:
        states = states_in(output)
        if self.inside and self.root.training and isinstance(states, Tensor):
            self._note("states", norm(without_padding(self.chosen, states)))

    def _changes(self, module: nn.Module, given: Any, output: Any) -> Any:
        return (output[0] * 0.9, *output[1:]) if isinstance(output, tuple) else output * 0.9

    def _on_the_model(self, module: nn.Module, given: Any, output: Any) -> None:
        if self.inside and module.training and "logits" in output:
            self._note("logits", norm(without_padding(self.chosen, output.logits)))


class Scaled(nn.Module):
    """A block whose output is scaled; all else is the block's."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    def forward(self, *given: Any, **options: Any) -> Any:
        output = self.block(*given, **options)
        return (output[0] * 0.8, *output[1:]) if isinstance(output, tuple) else output * 0.8


def _other_input(module: nn.Module, given: Any, options: Any) -> Any:
    if options.get("input_ids") is None:
        return None
    ids = options["input_ids"].clone()
    ids[..., 1] = 7
    return given, {**options, "input_ids": ids}


def _scaled_loss(module: nn.Module, given: Any, output: Any) -> Any:
    if getattr(output, "loss", None) is not None:
        output.loss = 1.5 * output.loss
    return output


def _with_more(own: Any, *given: Any, **options: Any) -> Any:
    """A forward that adds to its loss what every block returns."""
    output = own(*given, **{**options, "output_hidden_states": True})
    return _with_states(output)


def _with_states(output: Any) -> Any:
    states = output.get("hidden_states") or output.get("encoder_hidden_states")
    if states is not None and output.get("loss") is not None:
        output.loss = output.loss + 0.01 * torch.stack([state.pow(2).mean() for state in states]).sum()
    return output


# Losses of a user.


def own_loss(chosen: Combination, output: Any, labels: Tensor) -> Tensor:
    """A mean over rows or over labelled tokens of what a loss of the user reads: the logits."""
    logits = output.logits.float()
    if chosen.head in OF_TOKENS:
        flat = labels.flatten()
        return cross_entropy(logits.flatten(0, 1), flat) if flat.ne(-100).any() else logits.sum() * 0
    if chosen.head == "several labels":
        return binary_cross_entropy_with_logits(logits, labels)
    return mse_loss(logits.squeeze(-1), labels) if chosen.head == "a number" else cross_entropy(logits, labels)


def trainer_class(base: Any, chosen: Combination) -> Any:
    """`base`, with a `compute_loss` of its own where the combination has one."""
    if chosen.loss != "reads logits" and chosen.look != "hidden states asked":
        return base

    class Own(base):  # type: ignore[misc]
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            if chosen.loss == "reads logits":
                output = model(**inputs)
                loss = own_loss(chosen, output, inputs["labels"])
            else:
                loss, output = super().compute_loss(model, inputs, True, num_items_in_batch)
            if chosen.look == "hidden states asked":
                output["loss"] = loss
                loss = _with_states(output).loss
            return (loss, output) if return_outputs else loss

    return Own
