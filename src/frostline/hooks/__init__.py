"""Run a model, watch it, stop it, replace what a module does, and compare two computations."""

from frostline.hooks._attention import (
    AttentionHandle,
    AttentionHook,
    NotHookable,
    attention_call,
    attention_implementation,
    hook_attention,
    hookable,
    open_attention,
    uses_attention_function,
)
from frostline.hooks._checkpointing import checkpoints_reentrantly
from frostline.hooks._compare import (
    FEWER_BITS,
    OTHER_BATCH,
    SAME_NUMBERS,
    STORED_IN_FEWER_BITS,
    Loss,
    Step,
    Tolerance,
    compare_training,
    compute_step,
    computes_in_fewer_bits,
)
from frostline.hooks._drops_by import drops_by
from frostline.hooks._foreign import foreign_hook, hooks_on
from frostline.hooks._outputs import PaddingWatch, summed
from frostline.hooks._override import CALL, FORWARD, Override, attribute_set, is_overridden, overridden
from frostline.hooks._own_state import state_kept
from frostline.hooks._packed import packed_lengths, packed_starts, says_how_packed
from frostline.hooks._passes import Passes, begin_step
from frostline.hooks._per_thread import PerThread, Turns
from frostline.hooks._rechecks import Rechecks
from frostline.hooks._sharded import any_sharded, is_sharded, own_bytes, own_part, sharded_like, share_again, whole
from frostline.hooks._states import device_of, hidden_given, hidden_of, with_hidden
from frostline.hooks._stop import Stop, capture, observe, run_until, stoppable
from frostline.hooks._undisturbed import Generators, all_trained, evaluation_mode, generators_kept, undisturbed
from frostline.hooks._zeros import zero_tensors

__all__ = [
    "CALL",
    "FEWER_BITS",
    "FORWARD",
    "OTHER_BATCH",
    "SAME_NUMBERS",
    "STORED_IN_FEWER_BITS",
    "AttentionHandle",
    "AttentionHook",
    "Generators",
    "Loss",
    "NotHookable",
    "Override",
    "PaddingWatch",
    "Passes",
    "PerThread",
    "Rechecks",
    "Step",
    "Stop",
    "Tolerance",
    "Turns",
    "all_trained",
    "any_sharded",
    "attention_call",
    "attention_implementation",
    "attribute_set",
    "begin_step",
    "capture",
    "checkpoints_reentrantly",
    "compare_training",
    "compute_step",
    "computes_in_fewer_bits",
    "device_of",
    "drops_by",
    "evaluation_mode",
    "foreign_hook",
    "generators_kept",
    "hidden_given",
    "hidden_of",
    "hook_attention",
    "hookable",
    "hooks_on",
    "is_overridden",
    "is_sharded",
    "observe",
    "open_attention",
    "overridden",
    "own_bytes",
    "own_part",
    "packed_lengths",
    "packed_starts",
    "run_until",
    "says_how_packed",
    "sharded_like",
    "share_again",
    "state_kept",
    "stoppable",
    "summed",
    "undisturbed",
    "uses_attention_function",
    "whole",
    "with_hidden",
    "zero_tensors",
]
