"""transformers' way to attention functions, with a look at the module that attends on it.

Attention has no module of its own between the projections and the output, so no hook of torch's
sees the query. What a module calls is the function that AttentionInterface.get_interface gives it.
From the first adapter that acts there, that function is preceded by a look whether the module
carries an `AttentionHook`. One that carries none, of this model or another, gets just the function
that it asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial, wraps
from typing import Any

from torch import nn

Attend = Callable[..., Any]


class AttentionHook:
    """Sits among a module's forward hooks, where it does nothing but be found.

    So it is copied with the module, and goes when its handle is removed.
    """

    def __call__(self, *_: Any) -> None:
        """Nothing: the attention function asks for `attend`."""

    def attend(
        self, function: Attend, name: str, module: nn.Module, *given: Any, **more: Any
    ) -> Any:
        """Attend in place of `function`, which transformers calls `name`.

        given: query, key, value, each (batch, heads, seq, head_dim), and the mask.
        """
        raise NotImplementedError


def find_attention_hook(module: nn.Module) -> AttentionHook | None:
    """The hook that `module` carries, the last one hung in."""
    for hook in reversed(module._forward_hooks.values()):
        if isinstance(hook, AttentionHook):
            return hook
    return None


def attend(function: Attend, name: str, module: nn.Module, *given: Any, **more: Any) -> Any:
    """Call an attention function, by way of the hook where `module` carries one."""
    hook = find_attention_hook(module)
    if hook is None:
        return function(module, *given, **more)
    return hook.attend(function, name, module, *given, **more)


@cache
def dispatch_attention() -> None:
    """Let the functions be preceded by that look from now on."""
    from transformers.modeling_utils import AttentionInterface

    find: Callable[..., Attend] = AttentionInterface.get_interface

    @wraps(find)
    def get_interface(table: Any, name: str, default: Attend) -> Attend:
        return partial(attend, find(table, name, default), name)

    AttentionInterface.get_interface = get_interface  # type: ignore[method-assign, assignment]
