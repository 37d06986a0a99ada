"""Frozen matrices in 8 or 4 bits, rounded by bitsandbytes: QLoRA's base, or a frozen bottom that stays in memory.

8 bits: each row scaled by its largest value. 4 bits: NormalFloat in blocks of 64 values, their scales rounded too
(QLoRA, arXiv 2305.14314). A matrix is put back to the dtype that it had for each product.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from frostline.anatomy import Anatomy
from frostline.core.errors import ConfigError
from frostline.core.sizes import size_text

Bits = Literal[4, 8]


@dataclass(frozen=True)
class Quantized:
    """What `quantize_frozen` did: how many matrices, and their bytes before and after."""

    bits: Bits
    matrices: int
    bytes_before: int
    bytes_after: int

    @property
    def notice(self) -> str:
        return (
            f"{self.matrices} frozen matrices are held in {self.bits} bits ({size_text(self.bytes_after)} instead of "
            f"{size_text(self.bytes_before)}): training and its evaluations see them rounded, the delta's base is not"
        )


def quantize_frozen(model: nn.Module, anatomy: Anatomy, bits: Bits) -> Quantized:
    """Hold the frozen matrices of the blocks of `model` in 8 or 4 bits, in place, after a plan was applied.

    The frozen matrices of a LoRA block are rounded too. Left as they are: embeddings, head, norms, biases, experts
    that share one tensor, and what transformers keeps in float32 for this model. Gradients pass through to what
    lies below. To merge, load the delta on its base afresh.

    Raises `UserError` when bitsandbytes is not installed, or nothing is frozen that could be rounded.
    """
    library = _bitsandbytes()
    count = before = after = 0
    for name, linear in list(_frozen_linears(model, anatomy)):
        owner, _, attribute = name.rpartition(".")
        rounded = QuantizedLinear(linear, bits, library.functional).train(linear.training)
        setattr(model.get_submodule(owner), attribute, rounded)
        count, before, after = count + 1, before + linear.weight.nbytes, after + rounded.bytes
    if not count:
        raise ConfigError("frozen_bits: the plan freezes no matrix that could be rounded: leave it out")
    return Quantized(bits, count, before, after)


class QuantizedLinear(nn.Module):
    """A frozen linear layer whose matrix [out, in] is held in 8 or 4 bits."""

    codes: Tensor
    scales: Tensor

    def __init__(self, linear: Any, bits: Bits, functional: Any) -> None:
        super().__init__()
        matrix = linear.weight.detach()
        if isinstance(linear, Conv1D):
            matrix = matrix.T.contiguous()
        self._shape, self._dtype, self._functional, self.state = matrix.shape, matrix.dtype, functional, None
        if bits == 4:
            # In one row: on a CPU the blocks of a matrix whose rows are no multiple of 64 are given back wrong.
            codes, self.state = functional.quantize_4bit(matrix.flatten(), quant_type="nf4", compress_statistics=True)
        else:
            codes, scales, _ = functional.int8_vectorwise_quant(matrix.to(torch.float16))
            self.register_buffer("scales", scales / 127)
        self.register_buffer("codes", codes)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        """The matrix as it is computed with, in the dtype that it had."""
        if self.state is None:
            return self.codes.to(self._dtype) * self.scales[:, None].to(self._dtype)
        self.state.to(self.codes.device)
        matrix: Tensor = self._functional.dequantize_4bit(self.codes, self.state)
        return matrix.view(self._shape)

    @property
    def bytes(self) -> int:
        """Of the codes and their scales."""
        scales = [self.scales] if self.state is None else self.state.as_dict(packed=True).values()
        return self.codes.nbytes + sum(scale.nbytes for scale in scales)

    def forward(self, inputs: Tensor) -> Tensor:
        product: Tensor = _Product.apply(inputs, self)  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + self.bias.to(product.dtype)


class _Product(torch.autograd.Function):
    """inputs [..., in] times the matrix; for the backward pass the matrix is made again instead of kept."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, linear: QuantizedLinear) -> Tensor:
        ctx.linear = linear
        return nn.functional.linear(inputs, linear.weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.linear.weight.to(gradient.dtype), None


def _frozen_linears(model: nn.Module, anatomy: Anatomy) -> Iterator[tuple[str, Any]]:
    blocks = tuple(f"{block.name}." for block in anatomy.blocks)
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, module in model.named_modules():
        if name.startswith(blocks) and type(module) in (nn.Linear, Conv1D) and kept.isdisjoint(name.split(".")):
            weight: Any = module.weight
            if not weight.requires_grad:
                yield name, module


def _bitsandbytes() -> Any:
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of kernels for inference that it did not find
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            import bitsandbytes
    except ImportError:
        raise ConfigError("frozen_bits wants bitsandbytes: pip install 'frostline[quantized]'") from None
    finally:
        logger.setLevel(level)
    return bitsandbytes
