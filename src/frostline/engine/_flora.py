"""FLORA: an optimizer that keeps momentum and accumulated gradients of matrices in a random subspace.

Hao, Cao and Mou, "Flora: Low-Rank Adapters Are Secretly Gradient Compressors", 2024. A gradient G [n, m] is compressed
to G P^T [n, r] by P [r, m] with entries from N(0, 1/r), and expanded with P again. Since E[P^T P] = I, the expanded
gradient is correct on average. P is never stored: it is drawn from its seed whenever it is needed.

From the paper: the projection; the sum over micro-batches in the compressed space, with a new projection for each step;
the momentum M <- beta1 M + (1 - beta1) G P^T with a P that lasts kappa steps; M <- M P_old P_new^T when P changes.

From the authors' code: the smaller side is projected; the momentum is that of the gradient divided by Adafactor's
factored second moment, without bias correction; the newest share of the update is not compressed,
beta1 M P + (1 - beta1) U; the root mean square of the update is clipped.

Our choices: every matrix is compressed, also embeddings (the authors' code leaves out matrices with sides beyond 4 : 1
and those shorter than the rank); other tensors are stepped by AdamW; the learning rate is multiplied by the root mean
square of the matrix only on request; gradients are clipped by the norm of the compressed sums.

Shapes: a matrix [n, m], rank r. The formulas show the last side projected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from transformers import TrainingArguments

from frostline.core.errors import ConfigError
from frostline.core.seeding import derive_seed
from frostline.cost import projected_side
from frostline.plan import FloraOptions

_TINY = 1e-30
_LEAST_SCALE = 1e-3


class Flora(torch.optim.Optimizer):
    """FLORA for matrices and AdamW for all other tensors, with decoupled weight decay.

    The state of a compressed matrix is its momentum [n, r] and means of squares [n] and [m]. Projections depend on
    `seed`, the order of the parameters and the kind of device, because they are drawn on the parameter's device. So a
    momentum from one kind of device is useless on another.

    Inside `accumulating`, gradients of matrices are compressed, summed and freed during the backward pass. `step` then
    expands the sums, one at a time.

    Args:
        params: the parameters, or groups of them.
        lr: the learning rate.
        weight_decay: of all parameters.
        options: rank, kappa and the like.
        seed: of all projections.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        options: FloraOptions | None = None,
        seed: int = 0,
    ) -> None:
        chosen = options or FloraOptions()
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "seed": seed, **chosen.model_dump()})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        options = _options(group)
        stream = 1 + max((kept["stream"] for kept in self.state.values() if "stream" in kept), default=-1)
        for parameter in group["params"]:
            if projected_side(parameter.shape, options) is not None and "stream" not in self.state[parameter]:
                self.state[parameter]["stream"] = stream
                stream += 1

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient, or a sum of compressed gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            options, others = _options(group), []
            for parameter in group["params"]:
                if projected_side(parameter.shape, options) is None:
                    others.append(parameter)
                elif (gradient := self._gradient(parameter, group, options)) is not None:
                    self._step_matrix(parameter, gradient, group, options)
            _step_others([parameter for parameter in others if parameter.grad is not None], self.state, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for state in self.state.values():  # the rounding of a matrix product depends on the memory layout
            state.update({key: value.clone() for key, value in state.items() if isinstance(value, Tensor)})

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients and the sums of compressed gradients."""
        super().zero_grad(set_to_none)
        self._forget_sums()

    @contextmanager
    def accumulating(self) -> Iterator[None]:
        """Inside this context, backward passes add each matrix's gradient to a compressed sum for the next `step`."""

        def add(group: dict[str, Any], options: FloraOptions, parameter: Tensor) -> None:
            assert parameter.grad is not None
            state = self.state[parameter]
            side = _side(parameter, options)
            share = compress(parameter.grad, _of_the_sum(parameter, side, state, group), side)
            state["sum"] = state["sum"].add_(share) if "sum" in state else share
            parameter.grad = None

        handles = []
        for group in self.param_groups:
            options = _options(group)
            handles += [
                parameter.register_post_accumulate_grad_hook(torch.no_grad()(partial(add, group, options)))
                for parameter in group["params"]
                if projected_side(parameter.shape, options) is not None
            ]
        try:
            yield
        except BaseException:
            self._forget_sums()
            raise
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def clip_norm(self, most: float) -> Tensor:
        """Scale gradients and compressed sums so that their norm is at most `most`. Returns the norm before.

        On average, the squared norm of a compressed sum equals that of the sum itself.
        """
        members = [parameter for group in self.param_groups for parameter in group["params"]]
        kept = (self.state[p].get("sum", p.grad) if p in self.state else p.grad for p in members)
        tensors = [tensor for tensor in kept if tensor is not None]
        norm = torch.nn.utils.get_total_norm(tensors)
        torch._foreach_mul_(tensors, torch.clamp(most / (norm + 1e-6), max=1.0))
        return norm

    def _gradient(self, parameter: Tensor, group: dict[str, Any], options: FloraOptions) -> Tensor | None:
        state = self.state[parameter]
        if "sum" not in state:
            return parameter.grad
        side = _side(parameter, options)
        projection = _of_the_sum(parameter, side, state, group)
        return expand(state.pop("sum"), projection, side)

    def _step_matrix(self, weight: Tensor, gradient: Tensor, group: dict[str, Any], options: FloraOptions) -> None:
        state = self.state[weight]
        state["step"] = state.get("step", 0) + 1
        update = gradient if options.second_moment == "none" else _divided(gradient, state, options)
        if options.beta1:
            update = self._with_momentum(weight, update, group, options)
        update = update / torch.clamp(_rms(update) / options.clip_threshold, min=1.0)
        rate = group["lr"] * (max(_LEAST_SCALE, float(_rms(weight))) if options.scale_parameter else 1.0)
        weight.mul_(1 - rate * group["weight_decay"]).add_(update, alpha=-rate)

    def _with_momentum(self, weight: Tensor, newest: Tensor, group: dict[str, Any], options: FloraOptions) -> Tensor:
        state, side = self.state[weight], _side(weight, options)
        now = state["step"]

        def drawn(after: int) -> Tensor:
            return _draw(weight, side, group, "momentum", state["stream"], after // options.kappa)

        projection = drawn(now - 1)
        if "momentum" not in state:
            state["momentum"] = compress(torch.zeros_like(newest), projection, side)
        update = torch.lerp(newest, expand(state["momentum"], projection, side), options.beta1)
        if now % options.kappa == 0:
            last, projection = projection, drawn(now)
            state["momentum"] = carry(state["momentum"], last, projection, side)
        state["momentum"].lerp_(compress(newest, projection, side), 1 - options.beta1)
        return update

    def _forget_sums(self) -> None:
        for state in self.state.values():
            state.pop("sum", None)


def compress(matrix: Tensor, projection: Tensor, side: int) -> Tensor:
    """`matrix` [n, m] with its dimension `side` (0 or 1) projected by `projection` [r, length of that dimension]."""
    return matrix @ projection.T if side else projection @ matrix


def expand(compressed: Tensor, projection: Tensor, side: int) -> Tensor:
    """The inverse of `compress`, on average over projections."""
    return compressed @ projection if side else projection.T @ compressed


def carry(compressed: Tensor, last: Tensor, projection: Tensor, side: int) -> Tensor:
    """`compressed` by the projection `last`, as if expanded and compressed again by `projection`.

    The two projections are multiplied first, so the expanded matrix never exists.
    """
    return compress(compressed, projection @ last.T, side)


def check_flora(args: TrainingArguments) -> None:
    """Raises `ConfigError` when FLORA cannot train with `args`."""
    if args.world_size > 1:
        raise ConfigError(
            "optim: flora compresses the gradients of one process, but several processes train: use one process, or "
            "optim=adamw_torch_fused"
        )
    if args.fp16 and args.gradient_accumulation_steps > 1:
        raise ConfigError(
            "optim: flora frees gradients that fp16 has to check before a step: use bf16=true instead of fp16"
        )


def _divided(gradient: Tensor, state: dict[str, Any], options: FloraOptions) -> Tensor:
    """The gradient divided by the root of its factored second moment (row and column means of its squares)."""
    squares = gradient.square().add_(_TINY)
    if "rows" not in state:
        state["rows"], state["columns"] = squares.new_zeros(squares.shape[0]), squares.new_zeros(squares.shape[1])
    share = state["step"] ** -options.decay_rate
    rows = state["rows"].lerp_(squares.mean(1), share)
    columns = state["columns"].lerp_(squares.mean(0), share)
    divided: Tensor = gradient * (rows / rows.mean()).rsqrt_()[:, None] * columns.rsqrt()
    return divided


def _step_others(parameters: list[Tensor], states: dict[Tensor, Any], group: dict[str, Any]) -> None:
    for parameter in parameters:
        if not states[parameter]:
            zeros = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
            states[parameter].update(step=torch.tensor(0.0), **zeros)
    adamw(
        parameters,
        [parameter.grad for parameter in parameters if parameter.grad is not None],
        [states[parameter]["exp_avg"] for parameter in parameters],
        [states[parameter]["exp_avg_sq"] for parameter in parameters],
        [],
        [states[parameter]["step"] for parameter in parameters],
        amsgrad=False,
        maximize=False,
        **{key: group[key] for key in ("beta1", "beta2", "lr", "weight_decay", "eps")},
    )


def _of_the_sum(matrix: Tensor, side: int, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """The projection of the gradients that are summed for the next step."""
    return _draw(matrix, side, group, "sum", state["stream"], state.get("step", 0))


def _draw(matrix: Tensor, side: int, group: dict[str, Any], *names: str | int) -> Tensor:
    """A projection [r, length of the side]. `names` say what it is used for, and are part of its seed."""
    generator = torch.Generator(matrix.device).manual_seed(derive_seed(group["seed"], "flora", *names))
    shape = (group["rank"], matrix.shape[side])
    drawn = torch.randn(shape, generator=generator, device=matrix.device, dtype=matrix.dtype)
    return drawn.div_(math.sqrt(group["rank"]))


def _side(matrix: Tensor, options: FloraOptions) -> int:
    side = projected_side(matrix.shape, options)
    assert side is not None
    return side


def _options(group: dict[str, Any]) -> FloraOptions:
    return FloraOptions(**{key: group[key] for key in FloraOptions.model_fields})


def _rms(tensor: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor)
    return norm / math.sqrt(tensor.numel())
