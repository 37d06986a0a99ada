"""Measure signals on a sample: one forward pass for hidden states, one forward and backward pass for gradients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from frostline.anatomy import Anatomy, find_anatomy
from frostline.bottom import BATCH_TOKENS, Load, batches_by_length
from frostline.core.errors import DataError
from frostline.hooks import device_of, evaluation_mode
from frostline.signals._choose import DEVIATIONS, FROM_GRADIENTS, FROM_STATES, Rows, choose_signals
from frostline.signals._deviation import SemanticBasis, difference_gain, log_gain, semantic_deviation, shift, similarity
from frostline.signals._gradients import loss_gradients, row_gradients
from frostline.signals._measurement import NOTHING, Measurement, mean
from frostline.signals._reading import ReadTokens, Tokens, reads_of
from frostline.signals._streamed import streamed
from frostline.signals._trace import trace
from frostline.signals._warm_up import FIVE_STEPS, WarmUp, warm_up_change
from frostline.signals._weights import block_norms, block_snr, low_rank_norms, relative_norms

Signals = dict[str, tuple[Measurement, ...]]
Collate = Callable[[Any], Mapping[str, Any]]

_ENERGY = "energy"  # ||h_(k-1)||^2: no signal by itself


def measure(
    model: Any,
    rows: Rows,
    collate: Collate,
    *,
    signals: Sequence[str] | None = None,
    tokens: Tokens = "first",
    load: Load | None = None,
    warm_up: WarmUp = FIVE_STEPS,
) -> Signals:
    """Measure signals of every block of `model`.

    `vds` and `shift` come with their gains, `snr` also for each matrix (`snr.<name within the block>`). The model runs
    in eval mode, in its own dtype, and is put back as it was.

    Args:
        model: the model.
        rows: the encoded sample.
        collate: makes a batch of rows.
        signals: names of signals; None for the default ones.
        tokens: which tokens are read in a row with many labels: `first` or `all`.
        load: reads tensors of blocks on the meta device, one block at a time. Gradients cannot be measured then.
        warm_up: the training steps before `weight_change` is measured; they are undone.

    Raises `ConfigError` or `UnsupportedModel` for a signal that cannot be measured, and `DataError` when no row has a
    label to predict.
    """
    anatomy = find_anatomy(model)
    chosen = choose_signals(model, anatomy, rows, signals, streaming=load is not None)
    from_gradients = [name for name in FROM_GRADIENTS if name in chosen]
    from_states = [name for name in FROM_STATES if name in chosen]
    if "projected_residual" in chosen:
        from_states.append(_ENERGY)
    found: Signals = {}
    with evaluation_mode(model):
        if from_states:
            # Streamed blocks are read again for every batch, so few large batches are faster.
            kind = "accelerator" if load is not None or device_of(model).type != "cpu" else "cpu"
            with nullcontext() if load is None else streamed(model, anatomy, load):
                found |= _from_states(model, anatomy, _batches(model, rows, collate, kind), from_states, tokens)
        if from_gradients:
            energy = found.pop(_ENERGY, ())
            found |= _from_gradients(model, anatomy, _batches(model, rows, collate), from_gradients, energy)
        if "fisher" in chosen:
            found["fisher"] = _fisher(model, anatomy, rows, collate)
        if "weight_change" in chosen:
            device = device_of(model)
            moved = warm_up_change(model, anatomy, rows, lambda part: _to(device, collate(part)), warm_up)
            found["weight_change"] = tuple(map(Measurement, moved))
    if "snr" in chosen:
        found |= _from_weights(model, anatomy, load)
    return found


def _from_states(
    model: Any, anatomy: Anatomy, batches: Iterator[Mapping[str, Any]], names: Sequence[str], tokens: Tokens
) -> Signals:
    basis = SemanticBasis(model.get_output_embeddings().weight) if "vds" in names else None
    norm = _final_norm(model, anatomy)
    levels: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
    for batch in batches:
        reads = reads_of(batch, anatomy, tokens)
        for stack, states in trace(model, anatomy, batch, reads).items():
            for name, values in _values(states, reads[stack], basis, norm, names).items():
                levels[stack, name].append(reads[stack].per_row(values, len(batch["input_ids"])).cpu())
    found: dict[str, list[Measurement]] = defaultdict(list)
    for (_, name), parts in levels.items():
        values = torch.cat(parts, dim=-1)
        if not values.shape[-1]:
            raise _no_label()
        for signal, measurements in _summaries(name, values).items():
            found[signal] += measurements
    return {name: tuple(measurements) for name, measurements in found.items()}


def _values(
    states: Tensor, reads: ReadTokens, basis: SemanticBasis | None, norm: nn.Module | None, names: Sequence[str]
) -> dict[str, Tensor]:
    """Signal -> [levels, R] of the states [n + 1, R, d] of one stack; `vds` has n + 1 levels, the others have n."""
    found = {}
    if basis is not None and reads.targets is not None:
        with torch.no_grad():
            latent = states if norm is None else norm(states.to(next(norm.parameters()).dtype)).float()
        found["vds"] = semantic_deviation(latent, basis(reads.targets))
    if "shift" in names:
        found["shift"] = shift(states[:-1], states[1:])
    if "similarity" in names:
        found["similarity"] = similarity(states[:-1], states[1:])
    if "final_similarity" in names:
        found["final_similarity"] = similarity(states[1:], states[-1:])
    if _ENERGY in names:
        found[_ENERGY] = states[:-1].square().sum(-1)
    return found


def _summaries(name: str, values: Tensor) -> Mapping[str, Sequence[Measurement]]:
    """Signal -> its mean over the rows for each block, from values [levels, N]; with the gains of a deviation."""
    means = [mean(level) for level in values]
    if name not in DEVIATIONS:
        return {name: means}
    steps = list(pairwise(values))
    gains = [difference_gain(*step) for step in steps]
    logs = [log_gain(*step) for step in steps]
    if name == "vds":  # d_0, of the embeddings, belongs to no block
        return {name: means[1:], f"{name}_gain": gains, f"{name}_log_gain": logs}
    return {name: means, f"{name}_gain": [NOTHING, *gains], f"{name}_log_gain": [NOTHING, *logs]}


def _from_gradients(
    model: Any,
    anatomy: Anatomy,
    batches: Iterator[Mapping[str, Any]],
    names: Sequence[str],
    energy: Sequence[Measurement],
) -> Signals:
    gradients = loss_gradients(model, anatomy, batches)
    if not gradients:
        raise _no_label()
    norms = {
        "gradient_norm": lambda: block_norms(gradients, anatomy),
        "relative_gradient_norm": lambda: relative_norms(gradients, dict(model.named_parameters()), anatomy),
        "projected_residual": lambda: low_rank_norms(gradients, [one.value or 0.0 for one in energy], anatomy),
    }
    return {name: tuple(map(Measurement, norms[name]())) for name in names}


def _fisher(model: Any, anatomy: Anatomy, rows: Rows, collate: Collate) -> tuple[Measurement, ...]:
    device = device_of(model)
    norms = [
        block_norms(gradients, anatomy)
        for gradients in row_gradients(model, anatomy, (_to(device, collate([row])) for row in rows))
    ]
    if not norms:
        raise _no_label()
    sizes = torch.tensor([[block.parameters] for block in anatomy.blocks], dtype=torch.float64)
    return tuple(map(mean, torch.tensor(norms, dtype=torch.float64).square().T / sizes))


def _from_weights(model: Any, anatomy: Anatomy, load: Load | None) -> Signals:
    blocks: list[dict[str, float]] = []
    for block in anatomy.blocks:
        away = [tensor.name for tensor in block.tensors if model.get_parameter(tensor.name).is_meta]
        tensors = {tensor.name: model.get_parameter(tensor.name) for tensor in block.tensors}
        blocks.append(dict(block_snr({**tensors, **(load(away) if load is not None and away else {})}, block)))
    kinds = dict.fromkeys(kind for block in blocks for kind in block)
    found = {"snr": tuple(Measurement(sum(block.values()) / len(block)) for block in blocks)}
    return found | {f"snr.{kind}": tuple(Measurement(block.get(kind)) for block in blocks) for kind in kinds}


def _no_label() -> DataError:
    return DataError("no row of the sample has a label to predict: use a larger max_length")


def _final_norm(model: nn.Module, anatomy: Anatomy) -> nn.Module | None:
    names = dict.fromkeys(tensor.name.rpartition(".")[0] for tensor in anatomy.final_norm)
    return model.get_submodule(next(iter(names))) if len(names) == 1 else None


def _batches(model: nn.Module, rows: Rows, collate: Collate, kind: str = "cpu") -> Iterator[dict[str, Any]]:
    """Batches of rows of similar length, on the model's device. The longest come first: they need the most memory."""
    device = device_of(model)
    most = BATCH_TOKENS[kind if device.type == "cpu" else "accelerator"]
    for batch in batches_by_length(rows, _length, most):
        yield _to(device, collate(batch))


def _length(row: Mapping[str, Any]) -> int:
    labels = torch.as_tensor(row["labels"])  # of the row itself (a class, a number), or of its tokens
    return max(len(row["input_ids"]), len(labels) if labels.dim() else 0)


def _to(device: torch.device, batch: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.to(device) for key, value in batch.items() if isinstance(value, Tensor)}
