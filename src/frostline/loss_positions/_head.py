"""The head and the loss at the labelled positions alone, in chunks, so that logits of all tokens never exist at once.

    B rows, T tokens, N labelled positions of the batch, n positions of a chunk, d hidden width, V vocabulary

1. The model's own forward runs until its last stack returns hidden states [B, T, d], and stops there (`run_stacks`).
2. The hidden states at the N labelled positions are taken out, [N, d], and split into chunks.
3. For each chunk the model's forward runs again (`score_chunk`). This time its stacks compute nothing: each returns
   what it returned in step 1, but the last one returns the hidden states of the chunk, as a batch of one row [1, n, d].
   So the head, its scales, caps and biases, and the loss are still the model's own code, but only [1, n, V] logits
   exist.
4. The gradients of the chunk's loss are computed at once, and its logits are freed (`_loss_and_gradients`).
5. The backward pass of training then uses these gradients, scaled by the gradient of the loss (`_Computed`).

Why this is right: the loss is a mean over labelled positions, so it is the sum of the chunks' means, each weighted by
the chunk's share of the positions; and the head treats each position alone. Both are checked:
`use_loss_positions` compares loss and gradients with the model's own before training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from frostline.anatomy import Anatomy
from frostline.core.errors import FrostlineError, first_line
from frostline.core.labels import IGNORED
from frostline.hooks import all_trained, overridden, stoppable, undisturbed
from frostline.loss_positions._positions import LossRule, targets

_CHUNK_BYTES = 64 << 20
_BYTES_A_SCORE = 4


class HeadNotChunkable(FrostlineError):
    """The head cannot run at the labelled positions alone; the message says why, in one clause."""


@dataclass(frozen=True)
class Head:
    """What comes after the last stack of a model.

    Attributes:
        stacks: the modules that the model's forward calls to get hidden states, in order.
        holders: the places (module, name in it) of the parameters that the loss depends on after the last stack (also a
            tied embedding), trained or not. FSDP2 puts gathered parameters there for each pass.
        by_items: whether the model divides its loss by `num_items_in_batch`.
        output_type: the class of the model's output.
    """

    stacks: tuple[nn.Module, ...]
    holders: tuple[tuple[nn.Module, str], ...]
    by_items: bool
    output_type: type[Any]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters at `holders` now."""
        found = (module._parameters[name] for module, name in self.holders)
        return [parameter for parameter in found if parameter is not None]


def default_chunk(vocab_size: int) -> int:
    """The number of positions whose logits take 64 MiB in float32."""
    return max(1, _CHUNK_BYTES // (_BYTES_A_SCORE * vocab_size))


@dataclass(frozen=True)
class ChunkedHead:
    """Computes the loss of a batch in chunks.

    Attributes:
        forward: the model's own.
        head: what comes after the last stack.
        rule: where the loss positions are.
        chunk: the largest number of positions of a chunk.
    """

    forward: Callable[..., Any]
    head: Head
    rule: LossRule
    chunk: int

    def labelled(self, inputs: Mapping[str, Any]) -> int:
        """How many positions of a batch have a label."""
        return int((targets(self.rule, inputs) != IGNORED).sum())

    def __call__(self, inputs: Mapping[str, Any]) -> Any:
        """The model's output for `inputs`, with the loss and nothing else."""
        labels = targets(self.rule, inputs)
        labelled = labels != IGNORED
        returned = run_stacks(self.forward, self.head.stacks, inputs)
        hidden = returned[-1][0][labelled.to(returned[-1][0].device)]
        score = partial(score_chunk, self.forward, self.head.stacks, returned, self.rule, inputs)
        # Divided by `num_items_in_batch`, the loss of a chunk is already its share of the loss of the batch.
        is_share = self.head.by_items and inputs.get("num_items_in_batch") is not None
        trained = [parameter for parameter in self.head.parameters if parameter.requires_grad]
        compute = partial(_loss_and_gradients, score, labels[labelled], self.chunk, trained, is_share)
        loss = _Computed.apply(compute, hidden, *trained)  # type: ignore[no-untyped-call]
        return self.head.output_type(loss=loss)


def find_head(
    model: Any, forward: Callable[..., Any], anatomy: Anatomy, rule: LossRule, inputs: Mapping[str, Any]
) -> Head:
    """Find the head of `model` by running the model on a small batch.

    Args:
        model: a transformers model with a loss of its own.
        forward: the model's own forward.
        anatomy: its blocks.
        rule: where the loss positions are; one by labels.
        inputs: a small batch with labels.

    Raises `HeadNotChunkable` when what comes after the last stack needs more than its hidden states.
    """
    every_label = targets(rule, inputs)
    labelled = every_label != IGNORED
    labels = every_label[labelled][:2]
    with undisturbed(model):
        with torch.no_grad():
            stacks = _called_stacks(model, forward, anatomy, inputs)
            returned = run_stacks(forward, stacks, inputs)
        # A chunk of two positions shows what the loss depends on.
        hidden = returned[-1][0][labelled].detach()[:2].requires_grad_()
        score = partial(score_chunk, forward, stacks, returned, rule)
        with all_trained(model) as trainable:
            try:
                output = score(inputs, hidden, labels)
            except Exception as error:
                raise HeadNotChunkable(
                    f"it fails on the hidden states of some positions ({first_line(error)})"
                ) from error
            gradients = torch.autograd.grad(output.loss, trainable, allow_unused=True)
        # Does the loss change with the number of items? Then the model divides by it.
        counted = dict(inputs) | {"num_items_in_batch": torch.tensor(1000, device=hidden.device)}
        try:
            by_items = not torch.allclose(score(counted, hidden, labels).loss, output.loss)
        except TypeError:
            by_items = False
    read = {parameter for parameter, gradient in zip(trainable, gradients, strict=True) if gradient is not None}
    places: dict[nn.Parameter, tuple[nn.Module, str]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter in read:
                places.setdefault(parameter, (module, name))
    return Head(stacks, tuple(places.values()), by_items, type(output))


def run_stacks(forward: Callable[..., Any], stacks: Sequence[nn.Module], inputs: Mapping[str, Any]) -> list[Any]:
    """What each of `stacks` returns when the model runs on `inputs`. The run ends when the last of them returns.

    Args:
        forward: the model's own.
        stacks: in the order in which the model calls them.
        inputs: a batch.

    Raises `HeadNotChunkable` when the last stack is not reached.
    """
    returned: list[Any] = []

    def run(own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        returned.append(own(*args, **kwargs))
        return stop() if len(returned) == len(stacks) else returned[-1]

    with stoppable() as stop, overridden({stack: partial(run, stack.forward) for stack in stacks}):
        forward(**inputs)
    if stop.reached:
        return returned
    raise HeadNotChunkable("the model's forward did not reach the end of its last stack")


def score_chunk(
    forward: Callable[..., Any],
    stacks: Sequence[nn.Module],
    returned: Sequence[Any],
    rule: LossRule,
    inputs: Mapping[str, Any],
    hidden: Tensor,
    labels: Tensor,
) -> Any:
    """The model's output, with logits and loss, when its last stack returns the hidden states of one chunk.

    Args:
        forward: the model's own.
        stacks: as for `run_stacks`.
        returned: what the stacks returned for the whole batch.
        rule: where the loss positions are.
        inputs: the whole batch.
        hidden: the hidden states of the chunk, [n, d].
        labels: what these positions predict, [n].
    """
    chunk = type(returned[-1])(last_hidden_state=hidden[None])
    row = {"labels": labels[None]}
    if rule is LossRule.BEFORE_LABELS:
        # Each position has its own label here. `shift_labels` tells the model not to shift them once more.
        row["shift_labels"] = labels[None]
    outputs = dict(zip(stacks, [*returned[:-1], chunk], strict=True))
    with overridden({stack: partial(_return, output) for stack, output in outputs.items()}):
        return forward(**{**inputs, **row})


def _called_stacks(
    model: Any, forward: Callable[..., Any], anatomy: Anatomy, inputs: Mapping[str, Any]
) -> tuple[nn.Module, ...]:
    """The outermost modules that the forward calls and that contain the first block, or the last one.

    In a decoder or an encoder both are the same module; an encoder-decoder has two.
    """
    called: list[nn.Module] = []

    def note(module: nn.Module, _inputs: Any) -> None:
        called.append(module)

    around = [_holders(model, block.name) for block in (anatomy.blocks[0], anatomy.blocks[-1])]
    hooks = [holder.register_forward_pre_hook(note) for holder in {*around[0], *around[1]}]
    try:
        forward(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    outermost = (next(holder for holder in holders if holder in called) for holders in around)
    return tuple(dict.fromkeys(outermost))


def _holders(model: nn.Module, path: str) -> list[nn.Module]:
    """The module at `path` and all modules that contain it, except the model itself; the outermost first."""
    names = path.split(".")
    return [model.get_submodule(".".join(names[:depth])) for depth in range(1, len(names) + 1)]


def _return(output: Any, *_args: Any, **_kwargs: Any) -> Any:
    return output


def _loss_and_gradients(
    score: Callable[[Tensor, Tensor], Any],
    labels: Tensor,
    chunk: int,
    parameters: Sequence[nn.Parameter],
    is_share: bool,
    hidden: Tensor,
    needs_hidden: bool,
) -> tuple[Tensor, list[Tensor | None]]:
    """The loss over all labelled positions, and its gradients: first that of `hidden`, then those of `parameters`.

    Args:
        score: gives the model's output for the hidden states and labels of one chunk.
        labels: of all labelled positions, [N].
        chunk: the largest number of positions of a chunk.
        parameters: the trained ones among those of the head.
        is_share: whether the loss of a chunk is its share of the batch's loss; otherwise it is the mean over the chunk.
        hidden: the hidden states at the labelled positions, [N, d].
        needs_hidden: whether the gradient of `hidden` is needed: something below the head trains.
    """
    total = hidden.new_zeros((), dtype=torch.float32)
    by_hidden: list[Tensor] = []
    by_parameter: list[Tensor] = []
    for states, targeted in zip(torch.split(hidden, chunk), torch.split(labels, chunk), strict=True):
        # A leaf of its own for each chunk: its graph, and with it its logits, are freed once it is differentiated.
        states = states.detach().requires_grad_(needs_hidden)
        with torch.enable_grad():
            loss = score(states, targeted).loss
            loss = loss if is_share else loss * (len(targeted) / len(labels))
            found = list(torch.autograd.grad(loss, [*([states] if needs_hidden else []), *parameters]))
        total += loss.detach()
        if needs_hidden:
            by_hidden.append(found.pop(0))
        # Every position is in one chunk, so their gradients are joined; parameters are in every chunk: added up.
        by_parameter = [a.add_(b) for a, b in zip(by_parameter, found, strict=True)] if by_parameter else found
        del found, loss, states  # otherwise they would still be in memory beside those of the next chunk
    return total, [torch.cat(by_hidden) if needs_hidden else None, *by_parameter]


class _Computed(torch.autograd.Function):
    """A loss whose gradients are computed in the forward pass. The backward pass only scales them.

    For autograd it is a function of the hidden states and the head's parameters, so that it goes on below `hidden` by
    itself, and adds to the `grad` of the parameters as for any other loss.
    """

    @staticmethod
    def forward(ctx: Any, compute: Callable[..., Any], hidden: Tensor, *parameters: Tensor) -> Tensor:
        loss: Tensor
        loss, ctx.gradients = compute(hidden, hidden.requires_grad)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        # On a CPU the usual scale of 1 is left out. On an accelerator reading it would make the host wait.
        if scale.device.type != "cpu" or scale != 1:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(scale)
        return None, *gradients
