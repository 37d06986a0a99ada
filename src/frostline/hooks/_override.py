"""Let a module do something else, in its place in the model, and put it back.

The module stays where it is: its name, its weights, its state and its place in the model's tree are as they were. So
nothing that looks at the model (`state_dict`, `named_parameters`, a callback that saves) sees a half one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property, update_wrapper
from types import MethodType
from typing import Any

from torch import nn

Run = Callable[..., Any]

FORWARD = "forward"
CALL = "_compiled_call_impl"
"""What torch calls instead of a module's hooks and forward, where it is set."""


class Override:
    """Another function in the place of one method of `module`, until `remove`; `own` is the method as it was.

    `FORWARD` runs within the module's hooks; wrappers such as DDP and autocast call it too. `CALL` takes the place of
    a whole call: the module's hooks do not run. A deep copy of the module has its own method again.
    """

    def __init__(self, module: nn.Module, run: Run, attribute: str = FORWARD) -> None:
        self.module, self.attribute = module, attribute
        self._before: Any = vars(module).get(attribute)
        self.own: Run = module._call_impl if attribute == CALL and self._before is None else getattr(module, attribute)
        self._put = _Put(self, run)
        vars(module)[attribute] = self._put

    def by_name(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call of `own`, each under the name of its parameter."""
        return dict(zip(self._names, args, strict=False)) | dict(kwargs)

    @cached_property
    def _names(self) -> list[str]:
        return list(inspect.signature(self.own).parameters)

    def remove(self) -> None:
        """Put the module's own method back, unless another one was put over this since."""
        attributes = vars(self.module)
        if attributes.get(self.attribute) is self._put:
            if self._before is None:
                del attributes[self.attribute]
            else:
                attributes[self.attribute] = self._before

    def in_copy(self, copied: nn.Module, memo: dict[int, Any]) -> Any:
        """What stands at the method's place in a deep copy of the module."""
        if isinstance(self._before, _Put):
            return self._before.__deepcopy__(memo)
        return own_method(copied, self.attribute)


class _Put:
    """What stands in the module: callable as the method, with its signature."""

    def __init__(self, override: Override, run: Run) -> None:
        self._override, self._run = override, run
        update_wrapper(self, override.own, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self._override.module))
        return self if copied is None else self._override.in_copy(copied, memo)

    def __reduce__(self) -> Any:
        return own_method, (self._override.module, self._override.attribute)


def own_method(module: nn.Module, attribute: str) -> Any:
    """The method that a module has by its class; None where the class has none (`CALL`)."""
    own = getattr(type(module), attribute)
    return None if own is None else MethodType(own, module)


def is_overridden(module: nn.Module, attribute: str = FORWARD) -> bool:
    """Whether another function stands in the place of the module's method."""
    return isinstance(vars(module).get(attribute), _Put)


@contextmanager
def overridden(runs: Mapping[nn.Module, Run], attribute: str = FORWARD) -> Iterator[None]:
    """Inside, each of these modules does something else."""
    with ExitStack() as stack:
        for module, run in runs.items():
            stack.callback(Override(module, run, attribute).remove)
        yield


@contextmanager
def attribute_set(owner: nn.Module, name: str, value: Any) -> Iterator[None]:
    """Inside, the attribute `name` of this one module is `value`, also where its class has one."""
    own = vars(owner)
    before = {name: own[name]} if name in own else {}
    own[name] = value
    try:
        yield
    finally:
        own.pop(name, None)
        own.update(before)
