"""What a training asks of FSDP2, and the model sharded as it asks.

A unit is what is gathered at once: a block, or all that is outside the blocks (the root). What the activation cache
replaces is in no unit: it is never sharded and never gathered.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Mapping
from typing import Any, cast

import torch
import torch.distributed as distributed
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, OffloadPolicy, fully_shard, register_fsdp_forward_method
from transformers import TrainingArguments

from frostline.adapters import ranks_state
from frostline.anatomy import Anatomy
from frostline.core.errors import ConfigError
from frostline.hooks import share_again, whole

ELEMENTWISE = (
    *(torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam),
    *(torch.optim.Adagrad, torch.optim.RMSprop, torch.optim.Adamax, torch.optim.Adadelta),
)
"""Optimizers that treat each number alone: a share of a tensor steps as it does in the whole tensor."""

READ = ("version", "reshard_after_forward", "cpu_ram_efficient_loading")
NOT_READ = (
    *("auto_wrap_policy", "transformer_layer_cls_to_wrap", "min_num_params", "state_dict_type"),
    *("backward_prefetch", "forward_prefetch", "limit_all_gathers", "use_orig_params", "sync_module_states"),
)
REFUSED = ("cpu_offload", "activation_checkpointing", "xla", "xla_fsdp_v2", "xla_fsdp_settings", "xla_fsdp_grad_ckpt")
"""Options of `fsdp_config`: what has an effect, what has none (a notice says so), and what is refused if it is on."""


def refused_engine(args: TrainingArguments) -> str | None:
    """Why no training under a plan can use the engine that `args` or the launcher asks for; None where it can."""
    if args.deepspeed or _launched_with("DEEPSPEED"):
        return "deepspeed: its checkpoints and shards are not supported: use DDP (torchrun), or fsdp with version 2"
    if _launched_with("MEGATRON_LM"):
        return "Megatron-LM: it is not supported: use DDP (torchrun), or fsdp with version 2"
    parallel = args.parallelism_config
    if parallel is not None and parallel.total_size > 1:
        return "parallelism_config: only all processes together can share a model: leave it out, and use fsdp"
    if (version := _version(args)) not in (None, 2):
        return f"fsdp: version {version} is not supported: use version 2 (fsdp_config: version)"
    if not args.fsdp:
        return None
    given = cast(dict[str, Any], args.fsdp_config)
    if any(value for name, value in given.items() if name.startswith("xla")):
        return "fsdp_config: xla is not supported: leave it out"
    for name in given:
        if name not in (*READ, *NOT_READ, *REFUSED):
            return f"fsdp_config: unknown option '{name}': use {', '.join(READ)}"
    return None


def asks_sharding(fsdp: Any) -> bool:
    """Whether FSDP is asked for: by the training argument `fsdp`, or by `accelerate launch`."""
    return bool(fsdp) or _launched_with("FSDP")


def no_effect(args: TrainingArguments) -> list[str]:
    """What of the options of FSDP has no effect, a line for all of them."""
    given = [name for name in NOT_READ if args.fsdp and cast(dict[str, Any], args.fsdp_config).get(name)]
    if not args.fsdp:
        names = {"auto_wrap_policy": "NO_WRAP", "transformer_cls_to_wrap": "", "state_dict_type": ""}
        given = [name for name, usual in names.items() if os.environ.get(f"FSDP_{name.upper()}", usual) != usual]
    if not given:
        return []
    return [f"fsdp: each block is a unit, and checkpoints hold whole tensors: {', '.join(given)} has no effect"]


def asked_sharding(args: TrainingArguments) -> FullyShardedDataParallelPlugin | None:
    """What is asked of FSDP2; None where it is not asked for.

    Raises `ConfigError` for an engine or an option that is not supported.
    """
    if (refused := refused_engine(args)) is not None:
        raise ConfigError(refused)
    if _version(args) is None:
        return None
    if not distributed.is_initialized():
        raise ConfigError(
            "fsdp: it divides a model among processes, and no launcher started any: use torchrun --nproc-per-node 2 "
            "(or more), or leave fsdp out"
        )
    plugin = FullyShardedDataParallelPlugin(**(args.fsdp_plugin_args or {"fsdp_version": 2}))
    why_not = {
        "cpu_offload: trained weights stay on the device": getattr(plugin.cpu_offload, "pin_memory", None) is not None,
        "activation_checkpointing: use the training argument of this name": plugin.activation_checkpointing,
        "ignored_modules: every block that trains is sharded": plugin.ignored_modules is not None,
        "min_num_params: each block is sharded by itself": bool(plugin.min_num_params),
        "mixed_precision_policy: it follows bf16": plugin.mixed_precision_policy is not None and not args.bf16,
        "fp16: use bf16": args.fp16,
        "torch_compile": args.torch_compile,
        "auto_find_batch_size: use per_device_train_batch_size": args.auto_find_batch_size,
    }
    if found := [reason for reason, given in why_not.items() if given]:
        raise ConfigError(f"fsdp cannot be used with {found[0]}: leave it out")
    return plugin


def check_unsharded(args: TrainingArguments) -> None:
    """Raise `ConfigError` where an attached trainer is to train in shards, or with an engine that is not supported."""
    if asked_sharding(args) is not None:
        raise ConfigError(
            "attach: fsdp would shard the frozen bottom too: use frostline.Trainer with these arguments, in a script"
        )


def fill_from_first(model: nn.Module, device: torch.device) -> None:
    """Give every process the weights of the first, where the others have not read them (cpu_ram_efficient_loading).

    Args:
        model: whose parameters lie on the meta device in some processes. They get values on the CPU, as after loading.
        device: on which the processes send.
    """
    lack = torch.tensor(float(any(p.is_meta for p in model.parameters())), device=device)
    distributed.all_reduce(lack)
    if not lack:
        return
    filled: dict[Any, Any] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None and tensor not in filled:
                    sent = torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.detach().to(device)
                    distributed.broadcast(sent, src=0)
                    if tensor.is_meta:
                        own = sent.cpu()
                        own = nn.Parameter(own, tensor.requires_grad) if held is module._parameters else own
                    else:
                        tensor.data.copy_(sent)
                        own = tensor
                    filled[tensor] = own
                held[name] = None if tensor is None else filled[tensor]


def check_optimizer(optimizer: Any) -> None:
    """Raise `ConfigError` for a class of optimizers that read more of a tensor than each number by itself."""
    if optimizer not in ELEMENTWISE:
        name = getattr(optimizer, "__name__", optimizer)
        raise ConfigError(
            f"optim: {name} reads whole tensors, and with fsdp each process has only a part of them: use adamw_torch "
            "or sgd"
        )


def shard(
    model: Any,
    text: nn.Module,
    anatomy: Anatomy,
    apart: Collection[nn.Parameter],
    plugin: FullyShardedDataParallelPlugin,
    *,
    bf16: bool,
) -> None:
    """Let all processes share the parameters of `model`, in place. Each then holds its part of each of them.

    Args:
        model: what is called in training, on its device, the same in all processes.
        text: the transformers model in it.
        anatomy: its blocks.
        apart: parameters that stay whole in each process, because stored states replace what reads them.
        plugin: what was asked.
        bf16: gather weights in bfloat16, in which autocast computes. Gradients are summed in float32.

    Raises `ConfigError` for a parameter that cannot be divided.
    """
    for name, parameter in model.named_parameters():
        if not parameter.dim() and parameter not in apart:
            raise ConfigError(f"fsdp: {name} is a single number, which cannot be divided: use DDP (torchrun)")
    options: dict[str, Any] = {
        "reshard_after_forward": bool(plugin.reshard_after_forward),
        "mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy(),
        "offload_policy": OffloadPolicy(),
        "ignored_params": set(apart),
    }
    for block in anatomy.blocks:
        module = text.get_submodule(block.name)
        if any(parameter not in apart for parameter in module.parameters()):
            fully_shard(module, **options)
    # The root is read at both ends of a pass, so it stays gathered from the one to the other.
    fully_shard(model, **options | {"reshard_after_forward": False})
    if hasattr(model, "generate"):
        register_fsdp_forward_method(model, "generate")


def without_values(model: nn.Module) -> Any:
    """A copy of `model` that has no values of parameters, and takes no memory for them."""
    memo = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo)


def with_values(skeleton: Any, model: Any, *, keep: bool = True, device: torch.device | None = None) -> Any:
    """A copy of the sharded `model` as it was before, with the values of now.

    Args:
        skeleton: from `without_values`, before the model was sharded.
        model: as it is now. All processes have to call this.
        keep: whether this process gets the copy; the others get None.
        device: where all values are copied to. None: they stay where they are, and what is not sharded is not copied.
    """
    copied = copy.deepcopy(skeleton) if keep else None
    share_again(model)
    values = {}
    for name, parameter in model.named_parameters():
        value = whole(parameter.detach())
        if keep:
            values[name] = value if device is None else value.to(device, copy=True)
    if copied is None:
        return None
    new = {p: nn.Parameter(values[name], p.requires_grad) for name, p in copied.named_parameters()}
    for module in copied.modules():
        for name, held in module._parameters.items():
            module._parameters[name] = None if held is None else new[held]
    for name, buffer in model.named_buffers():
        copied.get_buffer(name).copy_(buffer)
    return copied


def gathered(named: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The whole tensors of `named`, on the CPU. All processes have to call this."""
    return {name: whole(tensor.detach()).cpu() for name, tensor in named.items()}


def check_plan(trainer: Any) -> None:
    """Raise `ConfigError` for a plan or a schedule that needs what a sharded model does not give."""
    applied = trainer.applied
    not_shown = {
        "LayerDrop and AdapterDrop leave units out": applied.plan.forward.drops,
        "AdaLoRA measures whole matrices": ranks_state(applied.peft_models),
        "quantized weights cannot be divided": not all(p.is_floating_point() for p in trainer.model.parameters()),
    }
    if found := [reason for reason, holds in not_shown.items() if holds]:
        raise ConfigError(f"fsdp: {found[0]}: use DDP (torchrun), or another plan")
    if trainer.schedule.settled:
        return
    name = trainer.schedule.first.strategy
    reasons = {
        "it measures the model while it trains": bool(trainer.schedule.observes),
        "the model is not in float32, and what begins to train changes its type": any(
            p.is_floating_point() and p.dtype != torch.float32 for p in trainer.model.parameters()
        ),
        "keep_left_state keeps whole tensors": trainer.left is not None,
        "load_best_model_at_end goes back to an earlier plan": trainer.args.load_best_model_at_end,
    }
    if found := [reason for reason, holds in reasons.items() if holds]:
        raise ConfigError(f"fsdp: '{name}' changes its plan, and {found[0]}: use DDP (torchrun), or a fixed plan")


def _version(args: TrainingArguments) -> int | None:
    """The version of FSDP that is asked for; None where none is."""
    if args.fsdp_plugin_args is not None:
        return int(args.fsdp_plugin_args["fsdp_version"])
    # accelerate sets the first of the two itself wherever a plugin is given.
    return int(os.environ["FSDP_VERSION"]) if _launched_with("FSDP") and "FSDP_VERSION" in os.environ else None


def _launched_with(engine: str) -> bool:
    """Whether `accelerate launch` was told to use this engine."""
    return os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true"
