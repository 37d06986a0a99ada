"""Replace what one module does when it is called, and undo that.

The module object stays in the model, with its name, weights and state. So whatever looks at the model (`state_dict`,
`named_parameters`, a callback that saves it) still sees the whole model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property, update_wrapper
from types import MethodType
from typing import Any, cast

from torch import nn

Run = Callable[..., Any]

FORWARD = "forward"
CALL = "_compiled_call_impl"
"""Where this attribute is set, torch calls it instead of the module's hooks and forward."""


class Override:
    """Replaces one method of `module` by another function, until `remove`. `own` calls the replaced method.

    With `FORWARD` the module's hooks still run around the new function; wrappers such as DDP and autocast use it too.
    With `CALL` the new function replaces the whole call, so the module's hooks do not run. A deep copy of the module
    has its own method again. `own` is looked up at each call: the class of a module may get another forward later.

    Args:
        module: whose method is replaced.
        run: the new function; it gets the arguments of the call.
        attribute: `FORWARD` or `CALL`, or the name of another method.
    """

    def __init__(self, module: nn.Module, run: Run, attribute: str = FORWARD) -> None:
        self.module, self.attribute = module, attribute
        self._is_set = attribute in vars(module)  # also to None
        self._before: Any = vars(module).get(attribute)
        self._replacement = _Replacement(self, run)
        vars(module)[attribute] = self._replacement

    def own(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method that was replaced."""
        return self.replaced(*args, **kwargs)

    @property
    def replaced(self) -> Run:
        """The method that was replaced, as the module or its class has it now."""
        if self._before is not None:
            return cast(Run, self._before)
        if self.attribute == CALL:
            return self.module._call_impl
        return MethodType(getattr(type(self.module), self.attribute), self.module)

    def by_name(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call of `own`, each under the name of its parameter."""
        return dict(zip(self._names, args, strict=False)) | dict(kwargs)

    @cached_property
    def _names(self) -> list[str]:
        return list(inspect.signature(self.replaced).parameters)

    def remove(self) -> None:
        """Restore the module's own method, unless something else has replaced this override since."""
        attributes = vars(self.module)
        if attributes.get(self.attribute) is self._replacement:
            if self._is_set:
                attributes[self.attribute] = self._before
            else:
                del attributes[self.attribute]

    def in_copy(self, copied: nn.Module, memo: dict[int, Any]) -> Any:
        """The method that a deep copy of the module gets."""
        if isinstance(self._before, _Replacement):
            return self._before.__deepcopy__(memo)
        return own_method(copied, self.attribute)


class _Replacement:
    """The object that replaces the method in the module. It has the signature of the method."""

    def __init__(self, override: Override, run: Run) -> None:
        self._override, self._run = override, run
        update_wrapper(self, override.replaced, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self._override.module))
        return self if copied is None else self._override.in_copy(copied, memo)

    def __reduce__(self) -> Any:
        return own_method, (self._override.module, self._override.attribute)


def own_method(module: nn.Module, attribute: str) -> Any:
    """The method that the class of a module defines; None where it defines none (`CALL`)."""
    own = getattr(type(module), attribute)
    return None if own is None else MethodType(own, module)


def is_overridden(module: nn.Module, attribute: str = FORWARD) -> bool:
    """Whether an `Override` replaces the module's method now."""
    return isinstance(vars(module).get(attribute), _Replacement)


@contextmanager
def overridden(runs: Mapping[nn.Module, Run], attribute: str = FORWARD) -> Iterator[None]:
    """Inside this context, each of these modules runs the given function instead of its own method."""
    with ExitStack() as stack:
        for module, run in runs.items():
            stack.callback(Override(module, run, attribute).remove)
        yield


@contextmanager
def attribute_set(owner: nn.Module, name: str, value: Any) -> Iterator[None]:
    """Inside this context, the attribute `name` of this one module is `value`, whatever its class defines.

    Args:
        owner: the module.
        name: of the attribute.
        value: which the attribute has inside the context.
    """
    own = vars(owner)
    before = {name: own[name]} if name in own else {}
    own[name] = value
    try:
        yield
    finally:
        own.pop(name, None)
        own.update(before)
