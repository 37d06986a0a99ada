"""The messages between a client and the server, with the number of bytes of each kind.

B rows, T tokens, d hidden width

client -> server, every round          the states at the cut [B, T, d], labels, marks of the tokens
server -> client, every round          the gradient of the states [B, T, d]
both, every `average_every` rounds     the client's trained matrices, and their average
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from frostline.core.errors import FrostlineError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ATTENDED, PADDING = 1, 2
"""Bits of a mark: the attention mask includes the token; the token is the padding token."""


class Kind(StrEnum):
    """Kinds of messages. Labels include the marks and the sizes of the batch."""

    ACTIVATIONS = "activations"
    GRADIENTS = "gradients"
    LABELS = "labels"
    MATRICES_UP = "matrices_up"
    MATRICES_DOWN = "matrices_down"


class PeerLost(FrostlineError):
    """Another process does not answer: it has ended, or takes too long."""


class Wire(Protocol):
    """Sends bytes to one other process and receives bytes from it, in order."""

    def send(self, data: Tensor) -> None:
        """Send `data`, uint8 [n]."""
        ...

    def receive(self, size: int) -> Tensor:
        """The next message of the other process, which has `size` bytes, uint8 [size]."""
        ...


class Peer:
    """The process at the other end of a wire. Tensors are sent to it and received; `sent` counts bytes by kind."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.sent: Counter[str] = Counter()

    def send(self, kind: Kind, tensor: Tensor) -> None:
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        self.sent[kind.value] += data.numel()
        self._wire.send(data)

    def receive(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self._wire.receive(prod(shape) * dtype.itemsize).view(dtype).reshape(shape)


@dataclass(frozen=True)
class BatchAtCut:
    """A client's batch at the cut. The tokens themselves stay with the client.

    Attributes:
        states: hidden states [B, T, d].
        labels: int32, of the tokens [B, T] or of the rows [B].
        marks: uint8 [B, T], with the bits `ATTENDED` and `PADDING`.
    """

    states: Tensor
    labels: Tensor
    marks: Tensor

    def send(self, server: Peer) -> None:
        rows, tokens, width = self.states.shape
        per_token, dtype = int(self.labels.dim() == 2), DTYPES.index(self.states.dtype)
        server.send(Kind.LABELS, torch.tensor([rows, tokens, width, per_token, dtype], dtype=torch.int32))
        server.send(Kind.LABELS, self.labels)
        server.send(Kind.LABELS, self.marks)
        server.send(Kind.ACTIVATIONS, self.states)

    @classmethod
    def receive(cls, client: Peer) -> BatchAtCut:
        rows, tokens, width, per_token, dtype = client.receive((5,), torch.int32).tolist()
        labels = client.receive((rows, tokens) if per_token else (rows,), torch.int32)
        marks = client.receive((rows, tokens), torch.uint8)
        return cls(client.receive((rows, tokens, width), DTYPES[dtype]), labels, marks)


def marks_of(input_ids: Tensor, attention_mask: Tensor | None, padding: int | None) -> Tensor:
    """The marks of a batch's tokens.

    Args:
        input_ids: [B, T].
        attention_mask: [B, T]; None where all tokens count.
        padding: id of the padding token; None where the model has none.
    """
    attended = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    padded = torch.zeros_like(input_ids) if padding is None else input_ids.eq(padding)
    return (attended.bool() * ATTENDED + padded.bool() * PADDING).to(torch.uint8)
