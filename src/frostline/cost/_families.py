"""What a block's matrices and norms do not tell of how they are wired: one line per family that is special."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """The wiring of a model family's blocks. The default is a Llama's.

    `post_norm`: attention reads the block's input itself, norms come after. `parallel`: attention and
    feed-forward both read the block's input. `rotary`: queries and keys are rotated, so they are tensors of
    their own. `unfused`: attention is eager whatever is asked for. `output_copied`: what fused attention
    returns is copied for the next matrix (where only a part of queries and keys is rotated). `softcap`:
    scores and logits pass a tanh. `layer_norm`: norms centre their input although they have no bias.
    `activation_tensors`: how many tensors of the feed-forward's width the activation function keeps.
    `keeps_output`: what it keeps is its output (relu), which the next matrix keeps as well.
    `splits`: queries can be computed at fewer positions than keys and values; not where attention is the
    module's own instead of transformers' registered functions. `first_runs`: the first block of each stack makes
    what the others read (T5's position bias), so that it runs even where its states are stored.
    """

    post_norm: bool = False
    parallel: bool = False
    rotary: bool = True
    unfused: bool = False
    output_copied: bool = False
    softcap: bool = False
    layer_norm: bool = False
    activation_tensors: int = 1
    keeps_output: bool = False
    splits: bool = True
    first_runs: bool = False


# transformers writes gelu_new out in elementary steps; each keeps its operands.
_GELU_NEW = 4

_FAMILIES = {
    "bert": Family(post_norm=True),
    "roberta": Family(post_norm=True),
    "xlm-roberta": Family(post_norm=True),
    "electra": Family(post_norm=True),
    "deberta": Family(post_norm=True, unfused=True, splits=False),
    "deberta-v2": Family(post_norm=True, unfused=True, splits=False),
    "distilbert": Family(post_norm=True),
    "bart": Family(post_norm=True),
    "olmo2": Family(post_norm=True),
    "modernbert": Family(layer_norm=True),
    "gpt2": Family(rotary=False, activation_tensors=_GELU_NEW),
    "gpt_bigcode": Family(rotary=False),
    "gpt_neo": Family(activation_tensors=_GELU_NEW, splits=False),
    "gptj": Family(parallel=True, unfused=True, activation_tensors=_GELU_NEW, splits=False),
    "codegen": Family(parallel=True, unfused=True, activation_tensors=_GELU_NEW, splits=False),
    "phi": Family(parallel=True, output_copied=True, activation_tensors=_GELU_NEW),
    "phi3": Family(output_copied=True),
    "gpt_neox": Family(parallel=True, output_copied=True),
    "falcon": Family(parallel=True, splits=False),
    "cohere": Family(parallel=True, layer_norm=True),
    "gemma2": Family(softcap=True),
    "opt": Family(keeps_output=True),
    "t5": Family(keeps_output=True, first_runs=True),
}


def family(model_type: str) -> Family:
    """The wiring of `config.model_type`'s blocks."""
    return _FAMILIES.get(model_type, Family())
