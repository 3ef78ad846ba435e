"""transformers' functions for attention and for experts, with a look at the module on the way.

Between the projections and the output of an attention, and inside a stack of experts, no module
runs, so no hook of torch's sees anything. What runs there is a function that the module asks of
AttentionInterface or ExpertsInterface. From the first adapter that acts there, the function is
preceded by a look whether the module carries a `FunctionHook`. A module that carries none, of this
model or another, gets just the function that it asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial, wraps
from typing import Any

from torch import nn

Function = Callable[..., Any]


class FunctionHook:
    """Sits among a module's forward hooks, where it does nothing but be found.

    So it is copied with the module, and goes when its handle is removed.
    """

    def __call__(self, *_: Any) -> None:
        """Nothing: `run` is what acts."""

    def run(
        self, function: Function, name: str, module: nn.Module, *given: Any, **more: Any
    ) -> Any:
        """Do what `function`, which transformers calls `name`, would do for `module`.

        given: of an attention query, key and value, each (batch, heads, seq, head_dim), and the
        mask; of experts the tokens, (tokens, d_model), the experts of each, (tokens, k), and their
        shares, (tokens, k).
        """
        raise NotImplementedError


def call_function(
    function: Function, name: str, module: nn.Module, *given: Any, **more: Any
) -> Any:
    """Call a function, by way of the hook where `module` carries one, the last one hung in."""
    for hook in reversed(module._forward_hooks.values()):
        if isinstance(hook, FunctionHook):
            return hook.run(function, name, module, *given, **more)
    return function(module, *given, **more)


@cache
def watch_functions() -> None:
    """Let the functions be preceded by that look from now on."""
    from transformers.integrations.moe import ExpertsInterface
    from transformers.modeling_utils import AttentionInterface

    for interface in (AttentionInterface, ExpertsInterface):
        interface.get_interface = wrap_lookup(interface.get_interface)  # type: ignore[method-assign]


def wrap_lookup(find: Function) -> Function:
    """`find`, which gives a module its function, with the look in front of what it gives."""

    @wraps(find)
    def get_interface(table: Any, name: str, default: Function) -> Function:
        return partial(call_function, find(table, name, default), name)

    return get_interface
