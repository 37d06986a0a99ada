"""Frozen matrices in 8 or 4 bits, quantized by bitsandbytes: QLoRA's base, or a frozen bottom that stays in memory.

8 bits: each row is scaled by its largest value. 4 bits: NormalFloat in groups of 64 values, whose scales are quantized
too (QLoRA, arXiv 2305.14314). For each product a matrix is converted back to the dtype that it had.
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
    """What `quantize_frozen` did: number of matrices, and their bytes before and after."""

    bits: Bits
    matrices: int
    bytes_before: int
    bytes_after: int

    @property
    def notice(self) -> str:
        return (
            f"{self.matrices} frozen matrices are held in {self.bits} bits ({size_text(self.bytes_after)} instead of "
            f"{size_text(self.bytes_before)}): training and its evaluations use them so, but the base of the delta "
            "is not quantized"
        )


def quantize_frozen(model: nn.Module, anatomy: Anatomy, bits: Bits) -> Quantized:
    """Quantize the frozen matrices of the blocks of `model` in place, after a plan was applied.

    The frozen matrices of a LoRA block are quantized too. Embeddings, head, norms, biases, experts that share one
    tensor, and what transformers keeps in float32 for this model stay as they are. Gradients flow through quantized
    matrices. To merge, load the delta on its base again.

    Args:
        model: a model to which a plan was applied.
        anatomy: its blocks.
        bits: 8 or 4.

    Raises `ConfigError` when bitsandbytes is not installed, or the plan freezes no matrix.
    """
    library = _bitsandbytes()
    count = before = after = 0
    for name, linear in list(_frozen_linears(model, anatomy)):
        owner, _, attribute = name.rpartition(".")
        quantized = QuantizedLinear(linear, bits, library.functional).train(linear.training)
        setattr(model.get_submodule(owner), attribute, quantized)
        count, before, after = count + 1, before + linear.weight.nbytes, after + quantized.bytes
    if not count:
        raise ConfigError("frozen_bits: the plan freezes no matrix that could be quantized: leave frozen_bits out")
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
            # As one row: on a CPU, bitsandbytes dequantizes a matrix wrongly if its rows are not multiples of 64.
            codes, self.state = functional.quantize_4bit(matrix.flatten(), quant_type="nf4", compress_statistics=True)
        else:
            codes, scales, _ = functional.int8_vectorwise_quant(matrix.to(torch.float16))
            self.register_buffer("scales", scales / 127)
        self.register_buffer("codes", codes)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        """The dequantized matrix, in the dtype that it had."""
        if self.state is None:
            return self.codes.to(self._dtype) * self.scales[:, None].to(self._dtype)
        self.state.to(self.codes.device)
        matrix: Tensor = self._functional.dequantize_4bit(self.codes, self.state)
        return matrix.view(self._shape)

    @property
    def bytes(self) -> int:
        """The size of the codes and their scales."""
        scales = [self.scales] if self.state is None else self.state.as_dict(packed=True).values()
        return self.codes.nbytes + sum(scale.nbytes for scale in scales)

    def forward(self, inputs: Tensor) -> Tensor:
        product: Tensor = _Product.apply(inputs, self)  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + self.bias.to(product.dtype)


class _Product(torch.autograd.Function):
    """inputs [..., in] times the matrix. The backward pass dequantizes the matrix again instead of keeping it."""

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
    logger.setLevel(logging.ERROR)  # it warns about missing kernels for inference
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            import bitsandbytes
    except ImportError:
        raise ConfigError("frozen_bits needs bitsandbytes: use pip install 'frostline[quantized]'") from None
    finally:
        logger.setLevel(level)
    return bitsandbytes
