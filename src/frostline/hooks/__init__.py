"""Run a model, watch it, stop it at a module, replace what a module does, read hidden states in and out of a block."""

from frostline.hooks._attention import (
    AttentionHandle,
    AttentionHook,
    NotHookable,
    attention_call,
    attention_call_anew,
    attention_implementation,
    hook_attention,
    hookable,
    open_attention,
    uses_attention_function,
)
from frostline.hooks._capture import capture, observe
from frostline.hooks._hollow import hollow
from frostline.hooks._quietly import (
    ForwardPatch,
    all_trained,
    forwards,
    generator_state,
    replaced,
    undisturbed,
    with_hidden,
)
from frostline.hooks._running import device_of, evaluation_mode, hidden_of

__all__ = [
    "AttentionHandle",
    "AttentionHook",
    "ForwardPatch",
    "NotHookable",
    "all_trained",
    "attention_call",
    "attention_call_anew",
    "attention_implementation",
    "capture",
    "device_of",
    "evaluation_mode",
    "forwards",
    "generator_state",
    "hidden_of",
    "hollow",
    "hook_attention",
    "hookable",
    "observe",
    "open_attention",
    "replaced",
    "undisturbed",
    "uses_attention_function",
    "with_hidden",
]
