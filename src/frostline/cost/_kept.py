"""What one norm, and matrices that read one tensor, keep for the backward pass: terms of `_activations`.

w bytes per number of the weights, c of matrix products
"""

from __future__ import annotations

from collections.abc import Sequence

from frostline.cost._flow import MatrixFlow
from frostline.cost._structure import Norm
from frostline.cost._workload import FLOAT, Workload


def norm_kept(norm: Norm, carries: bool, trains: bool, w: int) -> float:
    """A norm's bytes per token: LayerNorm keeps its input, mean and factor; RMSNorm works in float32, and keeps the
    normed numbers too if its weight trains."""
    if norm.centres:
        return (carries or trains) * (w * norm.width + 2 * FLOAT * norm.groups)
    return carries * FLOAT * (norm.width + norm.groups) + trains * w * norm.width


def inputs_kept(
    matrices: Sequence[MatrixFlow], width: float, held: int, c: int, workload: Workload, kept_already: bool = False
) -> float:
    """What matrices that read one tensor keep of it, in bytes per token.

    Args:
        matrices: they all read the same tensor.
        width: numbers of that tensor per token.
        held: its bytes per number.
        c: bytes per number in matrix products.
        workload: the work.
        kept_already: another operation keeps the tensor in type `c`.
    """
    trained = sum(matrix.trained for matrix in matrices)
    lora_c = 2 if workload.bf16 else FLOAT
    total = 0.0
    plain = 0  # branches that read the tensor itself
    rows = 1  # a mixture's experts read each token several times
    for matrix in matrices:
        branch = matrix.branch
        if branch is None:
            continue
        rows = branch.rows
        total += lora_c * rows * branch.kept
        plain += branch.gated and not branch.after
        if branch.drops:
            total += rows * branch.reads * (lora_c + FLOAT * matrix.branch_carries)
        elif branch.after:  # a gate reads another tensor, which is as wide
            total += lora_c * branch.reads * (1 + branch.gated)
        else:
            plain += 1
    if workload.bf16 or held != FLOAT:  # PEFT makes a float32 copy, autocast a narrow one
        total += rows * plain * lora_c * width
        plain = 0
    # A trained matrix keeps its input. If the tensor has the type of the product, all of them keep the same tensor;
    # else autocast makes a copy for each.
    readers = trained + plain
    if held == c:
        readers = int(readers > 0 and not kept_already)
    return total + rows * readers * c * width


def weights_kept(matrix: MatrixFlow, w: int, workload: Workload) -> float:
    """Bytes of copies of the matrix and of its branch."""
    linear = matrix.linear
    # A quantized matrix is made whole again in the backward pass, and keeps no copy.
    quantized = workload.frozen_bits is not None and matrix.roundable
    copied = workload.bf16 and w != 2 and linear.copies == 1 and not quantized
    total = 0.0
    if matrix.carries and (copied or matrix.partly):
        total += (2 if workload.bf16 else w) * linear.copies * linear.in_features * linear.out_features
    if workload.bf16 and matrix.branch:
        each = max(1, matrix.branch.experts)
        total += 2 * each * (matrix.branch.down * matrix.branch_carries + matrix.branch.up)
    return total
