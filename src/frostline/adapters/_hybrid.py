"""A PEFT method that gives each block an adapter kind of its own: LoRA, a prefix, or a bottleneck adapter.

PEFT's registering function accepts only names of its own enumeration. Entries in PEFT's public tables of methods work:
an adapter can be created, saved, loaded, switched off and merged, and a model can have several. `PeftMixedModel` does
not accept the method.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

from accelerate import init_empty_weights
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import set_additional_trainable_modules
from torch import Tensor, nn

from frostline.adapters._bare import without_adapter_layers
from frostline.adapters._base import check_base, describe_base
from frostline.adapters._folder import ordinary_lora
from frostline.adapters._hybrid_config import HybridConfig, HybridType
from frostline.adapters._hybrid_keys import as_pefts, keys_alone, without_name
from frostline.adapters._kinds import adapters_in
from frostline.adapters._layer import AdapterPart, HybridLayer, check_mergeable
from frostline.adapters._placing import Placed, check_places, check_trained_whole, randomize, wrap
from frostline.adapters._rows import BASE, rows_named, trained_whole
from frostline.adapters._weighted import Combination, combine, combined_modes
from frostline.anatomy import Anatomy, find_anatomy
from frostline.core.errors import AdapterError, UnsupportedModel


class HybridModel(BaseTuner):
    """The tuner of `HybridConfig`."""

    prefix = "hybrid_"
    tuner_layer_cls = HybridLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Put the adapter's parts around their modules. Parts of other adapters stay where they are.

        Raises `PlanError` or `UnsupportedModel` when the config does not fit the model. The model is unchanged then.
        """
        config: HybridConfig = self.peft_config[adapter_name]
        others = {p: p.requires_grad for p in model.parameters()} if _adapted(model) else {}
        first = getattr(self, "anatomy", None) is None
        try:
            self._check_new_adapter_config(config)
            with init_empty_weights() if low_cpu_mem_usage else nullcontext():
                placed, kinds = self._make(model, config)
            paths = [path for path, _ in placed]
            check_places(model, paths, by_transformers=first and config.base is not None)
            check_trained_whole(model, config.modules_to_save or (), paths)
        except Exception:
            del self.peft_config[adapter_name]  # transformers and PEFT would count it among the model's adapters
            raise
        for path, part in placed:
            if not config.init_weights:
                randomize(part)
            wrap(model, path, adapter_name, part)
        for kind in kinds:
            kind.watch(model)
        self.targeted_module_names += [path for path in paths if path not in self.targeted_module_names]
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
        self._mark_only_adapters_as_trainable(model)
        set_additional_trainable_modules(
            model=model,
            peft_config=config,
            model_config=BaseTuner.get_model_config(self),
            adapter_name=adapter_name,
            activate_adapter=adapter_name in self.active_adapters,
        )
        for parameter, requires_grad in others.items():  # another adapter changes nothing for those that were there
            parameter.requires_grad_(requires_grad)

    def _make(self, model: nn.Module, config: HybridConfig) -> tuple[list[Placed], list[Any]]:
        """The parts of an adapter, and the classes of its kinds."""
        if getattr(self, "anatomy", None) is None:
            with without_adapter_layers(model):
                try:
                    self.anatomy: Anatomy = find_anatomy(model)
                except UnsupportedModel as error:
                    raise UnsupportedModel(
                        f"HybridConfig: {error}; for a model without such blocks use an adapter of PEFT that takes "
                        "names of modules, such as peft.LoraConfig(target_modules=[...])"
                    ) from None
                self._base = describe_base(model, self.anatomy)
        check_base(config.base, self._base)
        members = adapters_in(config.modes(len(self.anatomy.blocks)), self.anatomy)
        config.as_lora(ordinary_lora(members, self.anatomy))
        placed = [Placed(*found) for kind, block in members for found in kind.parts(model, block, self.anatomy)]
        config.in_use(self._base, [path for path, _ in placed])
        return placed, list(dict.fromkeys(type(kind) for kind, _ in members))

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("each part has its own module; PEFT's matching of names is not used")

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Parts are made in float32. With `autocast_adapter_dtype=False` they get the dtype of their module instead."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if autocast_adapter_dtype:
            return
        for layer in self._layers():
            dtypes = [p.dtype for p in layer.base_layer.parameters() if p.dtype.is_floating_point]
            if adapter_name in layer.hybrid_parts and dtypes:
                for parameter in layer.hybrid_parts[adapter_name].parameters():
                    parameter.data = parameter.data.to(getattr(layer.base_layer, "compute_dtype", None) or dtypes[0])

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT's context around a call, in which `adapter_names` names the adapter of each row.

        Raises `AdapterError` for a name that is not there, in training, while merged, and for an adapter that does not
        work row by row.
        """
        names: Sequence[str] | None = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        if self.training:
            raise AdapterError("Cannot pass `adapter_names` when the model is in training mode: use model.eval()")
        layers = self._layers()
        _check_rows(layers, set(names) - {BASE})
        beams = kwargs.get("num_beams")
        with rows_named([*layers, *trained_whole(self.model)], names, beams if isinstance(beams, int) else 1):
            yield

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: Combination = "svd",
        svd_rank: int | None = None,
    ) -> None:
        """Add an adapter that is the sum of others times their weights, as PEFT does for its LoRA.

        Args:
            adapters: names of adapters of LoRA without a gate, on the same blocks or on others.
            weights: a number for each, also a negative one.
            adapter_name: of the new adapter.
            combination_type: `cat` puts the matrices one after the other: exact, and the ranks add up. `svd` takes the
                best matrices of rank `svd_rank`. `linear` adds A to A and B to B, which is a rough approximation.
            svd_rank: by default the largest rank of the adapters.

        Raises `AdapterError` for an adapter that is not there or not LoRA, and for ranks that differ with `linear`.
        """
        if adapter_name in self.peft_config:
            raise AdapterError(f"Adapter {adapter_name} exists already: use another name")
        if not adapters or len(set(adapters)) != len(weights) or len(adapters) != len(weights):
            raise AdapterError("add_weighted_adapter: use different adapters, and one weight for each")
        for name in adapters:
            _check_known(self.peft_config, name)
            if self.peft_config[name].modules_to_save:
                raise AdapterError(
                    f"add_weighted_adapter: {name} trains modules whole, which have no sum: use adapters without "
                    "modules_to_save"
                )
        depth = len(self.anatomy.blocks)
        given = [self.peft_config[name].modes(depth) for name in adapters]
        modes = combined_modes(given, self.anatomy, combination_type, svd_rank)
        self.peft_config[adapter_name] = HybridConfig.of_modes(modes, inference_mode=True)
        self.inject_adapter(self.model, adapter_name)
        for layer in self._layers():
            combine(layer.hybrid_parts, dict(zip(adapters, weights, strict=True)), adapter_name, combination_type)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """As PEFT's. Raises `AdapterError`, before anything changes, for what cannot be merged."""
        self._check_merge(adapter_names, safe_merge)
        super().merge_adapter(adapter_names, safe_merge)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        if merge:
            self._check_merge(adapter_names, safe_merge)
        unloaded = super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)
        # PEFT does not look inside a module that carries an adapter. An attention or a feed-forward with an adapter
        # can hold matrices with adapters, so go on until none is left.
        while self._layers():
            super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)
        return unloaded

    def _check_merge(self, adapter_names: list[str] | None, safe_merge: bool) -> None:
        for name in adapter_names or ():
            _check_known(self.peft_config, name)
        check_mergeable(self.model, adapter_names)
        for layer in self._layers() if safe_merge else ():
            layer.check_finite(adapter_names or layer.active_adapters)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, HybridLayer):
            child.unload()
        setattr(parent, child_name, new_module)

    def _layers(self) -> list[HybridLayer]:
        return [layer for layer in self.model.modules() if isinstance(layer, HybridLayer)]

    @classmethod
    def _get_adapter_state_dict(cls, model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        found: dict[str, Tensor] = super()._get_adapter_state_dict(model, *args, **kwargs)
        name = kwargs["adapter_name"] if "adapter_name" in kwargs else args[1]
        alone = keys_alone(model, name, found)
        if kwargs["config"].is_lora:
            alone = {key: as_pefts(without_name(own, name)) for key, own in alone.items()}
        return {alone[key]: tensor for key, tensor in found.items()}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return without_name(key, adapter_name)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        saved = {}
        for key, alone in keys_alone(model, adapter_name, model.state_dict()).items():
            name = without_name(alone, adapter_name)
            for written in (name, as_pefts(name)):  # PEFT's files have the prefix; a bare model has not
                saved[written] = saved["base_model.model." + written] = key
        return {saved.get(key, key): tensor for key, tensor in state_dict.items()}


def _adapted(model: nn.Module) -> bool:
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def _check_known(configs: dict[str, Any], name: str) -> None:
    if name not in configs:
        raise AdapterError(f"Adapter {name} does not exist: use one of {', '.join(configs)}")


def _check_rows(layers: Sequence[HybridLayer], names: set[str]) -> None:
    """Raise `AdapterError` when rows cannot have these adapters each."""
    unknown = names - {name for layer in layers for name in layer.hybrid_parts}
    if unknown:
        raise AdapterError(f"Trying to infer with non-existing adapter(s): {', '.join(sorted(unknown))}")
    if any(layer.merged for layer in layers):
        raise AdapterError("Cannot pass `adapter_names` when there are merged adapters: use unmerge_adapter first")
    for layer in layers:
        for part in layer.called(sorted(names)):
            if isinstance(part, AdapterPart) and not part.by_row:
                raise AdapterError(
                    "adapter_names: prefixes and mixtures do not work row by row: use set_adapter and one batch for "
                    "each adapter"
                )


PEFT_TYPE_TO_CONFIG_MAPPING[HybridType.HYBRID] = HybridConfig
PEFT_TYPE_TO_TUNER_MAPPING[HybridType.HYBRID] = HybridModel
PEFT_TYPE_TO_PREFIX_MAPPING[HybridType.HYBRID] = HybridModel.prefix
