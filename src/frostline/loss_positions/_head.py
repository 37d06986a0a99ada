"""The head and the loss at labelled positions alone, in chunks: no tensor of all tokens by the vocabulary.

The model's own forward runs up to the end of its last stack. Then, for each chunk of positions, it runs once
more with stacks that only give back what they gave, the last one the chunk's hidden states: so scales, caps,
biases and the loss stay the model's own code. The gradient of a chunk is taken at once, and its scores freed.

    B rows, T tokens, N labelled positions, n positions in a chunk, d hidden width, V vocabulary
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


class HeadRunsWhole(FrostlineError):
    """The head cannot run at the labelled positions alone; the message says why."""


@dataclass(frozen=True)
class Head:
    """What comes after the last stack of a model.

    `stacks` are the modules that the model's forward calls to get hidden states, in order; `parameters` those
    that the loss depends on after the last of them (a tied embedding too), trained or not; `by_items` whether
    the model divides its loss by `num_items_in_batch`.
    """

    stacks: tuple[nn.Module, ...]
    parameters: tuple[nn.Parameter, ...]
    by_items: bool
    output_type: type[Any]


def default_chunk(vocab_size: int) -> int:
    """Positions whose scores take 64 MiB in float32."""
    return max(1, _CHUNK_BYTES // (_BYTES_A_SCORE * vocab_size))


@dataclass(frozen=True)
class ChunkedHead:
    """Computes a batch's loss in chunks of at most `chunk` positions. `forward` is the model's own."""

    forward: Callable[..., Any]
    head: Head
    rule: LossRule
    chunk: int

    def labelled(self, inputs: Mapping[str, Any]) -> int:
        """How many positions of a batch carry a label."""
        return int((targets(self.rule, inputs) != IGNORED).sum())

    def __call__(self, inputs: Mapping[str, Any]) -> Any:
        """The model's output for `inputs`, with the loss and nothing else."""
        wanted = targets(self.rule, inputs)
        read = wanted != IGNORED
        ran = run_stacks(self.forward, self.head.stacks, inputs)
        hidden = ran[-1][0][read.to(ran[-1][0].device)]
        score = partial(score_chunk, self.forward, self.head.stacks, ran, self.rule, inputs)
        whole = self.head.by_items and inputs.get("num_items_in_batch") is not None
        trained = [parameter for parameter in self.head.parameters if parameter.requires_grad]
        compute = partial(_loss_and_gradients, score, wanted[read], self.chunk, trained, whole)
        loss = _Computed.apply(compute, hidden, *trained)  # type: ignore[no-untyped-call]
        return self.head.output_type(loss=loss)


def find_head(
    model: Any, forward: Callable[..., Any], anatomy: Anatomy, rule: LossRule, inputs: Mapping[str, Any]
) -> Head:
    """The head of `model`, whose own forward is `forward`: seen by running it on a small batch.

    Raises `HeadRunsWhole` when what comes after the last stack needs more than its hidden states.
    """
    wanted = targets(rule, inputs)
    read = wanted != IGNORED
    labels = wanted[read][:2]
    with undisturbed(model):
        with torch.no_grad():
            stacks = _called_stacks(model, forward, anatomy, inputs)
            ran = run_stacks(forward, stacks, inputs)
        hidden = ran[-1][0][read].detach()[:2].requires_grad_()
        score = partial(score_chunk, forward, stacks, ran, rule)
        with all_trained(model) as able:
            try:
                output = score(inputs, hidden, labels)
            except Exception as error:
                raise HeadRunsWhole(f"it fails on some positions' hidden states alone ({first_line(error)})") from error
            gradients = torch.autograd.grad(output.loss, able, allow_unused=True)
        counted = dict(inputs) | {"num_items_in_batch": torch.tensor(1000, device=hidden.device)}
        try:
            by_items = not torch.allclose(score(counted, hidden, labels).loss, output.loss)
        except TypeError:
            by_items = False
    parameters = tuple(parameter for parameter, gradient in zip(able, gradients, strict=True) if gradient is not None)
    return Head(stacks, parameters, by_items, type(output))


def run_stacks(forward: Callable[..., Any], stacks: Sequence[nn.Module], inputs: Mapping[str, Any]) -> list[Any]:
    """What each of `stacks` gives when the model runs on `inputs`, which ends with the last of them."""
    ran: list[Any] = []

    def run(own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        ran.append(own(*args, **kwargs))
        return stop() if len(ran) == len(stacks) else ran[-1]

    with stoppable() as stop, overridden({stack: partial(run, stack.forward) for stack in stacks}):
        forward(**inputs)
    if stop.reached:
        return ran
    raise HeadRunsWhole("the model's forward did not reach the end of its last stack")


def score_chunk(
    forward: Callable[..., Any],
    stacks: Sequence[nn.Module],
    ran: Sequence[Any],
    rule: LossRule,
    inputs: Mapping[str, Any],
    hidden: Tensor,
    wanted: Tensor,
) -> Any:
    """The model's output for hidden states [n, d] after its last stack, with their labels [n]."""
    chunk = type(ran[-1])(last_hidden_state=hidden[None])
    labels = {"labels": wanted[None]}
    if rule is LossRule.BEFORE_LABELS:
        labels["shift_labels"] = wanted[None]
    given = dict(zip(stacks, [*ran[:-1], chunk], strict=True))
    with overridden({stack: partial(_give, output) for stack, output in given.items()}):
        return forward(**{**inputs, **labels})


def _called_stacks(
    model: Any, forward: Callable[..., Any], anatomy: Anatomy, inputs: Mapping[str, Any]
) -> tuple[nn.Module, ...]:
    """The outermost modules that the forward calls and that hold the first, or the last, block."""
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
    """The modules around the one at `path`, and it, outermost first and without the model itself."""
    names = path.split(".")
    return [model.get_submodule(".".join(names[:depth])) for depth in range(1, len(names) + 1)]


def _give(output: Any, *_args: Any, **_kwargs: Any) -> Any:
    return output


def _loss_and_gradients(
    score: Callable[[Tensor, Tensor], Any],
    wanted: Tensor,
    chunk: int,
    parameters: Sequence[nn.Parameter],
    whole: bool,
    hidden: Tensor,
    needed: bool,
) -> tuple[Tensor, list[Tensor | None]]:
    """The loss of hidden states [N, d] with labels `wanted` [N]; its gradients by them and by `parameters`.

    A chunk's loss is the mean over it, or (`whole`) its share of the batch's already. `needed` says whether
    the hidden states' gradient is.
    """
    total = hidden.new_zeros((), dtype=torch.float32)
    by_hidden: list[Tensor] = []
    by_parameter: list[Tensor] = []
    for states, labels in zip(torch.split(hidden, chunk), torch.split(wanted, chunk), strict=True):
        states = states.detach().requires_grad_(needed)
        with torch.enable_grad():
            loss = score(states, labels).loss
            loss = loss if whole else loss * (len(labels) / len(wanted))
            found = list(torch.autograd.grad(loss, [*([states] if needed else []), *parameters]))
        total += loss.detach()
        if needed:
            by_hidden.append(found.pop(0))
        by_parameter = [a.add_(b) for a, b in zip(by_parameter, found, strict=True)] if by_parameter else found
        del found, loss, states  # or the next chunk's would be alive beside them
    return total, [torch.cat(by_hidden) if needed else None, *by_parameter]


class _Computed(torch.autograd.Function):
    """A loss whose gradients are computed with it."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[..., Any], hidden: Tensor, *parameters: Tensor) -> Tensor:
        loss: Tensor
        loss, ctx.gradients = compute(hidden, hidden.requires_grad)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if scale.device.type != "cpu" or scale != 1:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(scale)
        return None, *gradients
