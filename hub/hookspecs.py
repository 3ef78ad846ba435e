"""The hooks of a method plugin, and nothing else.

A plugin is a module (or any object) that an installed distribution names in the entry point group
``hub``, under the name of its method::

    [project.entry-points.hub]
    lora = "hub_lora"

It implements `hub_method`, and any of the others where the default does not do::

    import hub

    @hub.hookimpl
    def hub_method() -> hub.Method:
        return LoRA()

A hook is asked of the plugin that owns the adapter's method, never of the others. A hook that a
plugin does not implement, or that returns None, means the default. Names that are not here are
reported as misspelt, and the plugin is not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import torch
    from torch import nn

    from hub.adapter import Adapter
    from hub.method import Method, Training
    from hub.sites import Site

INTERFACE = 1
"""The version of this page. A plugin that was written against another one says so with a module
attribute ``hub_interface = N``; it is refused with a line that names both numbers."""

hookspec = pluggy.HookspecMarker("hub")
hookimpl = pluggy.HookimplMarker("hub")


@hookspec(firstresult=True)
def hub_method() -> Method[Any]:
    """Describe the method: its name, its configuration, its sites and its equation.

    Every plugin implements this one. ``Method.name`` is the entry point's name.
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def hub_train(adapter: Adapter, modules: Mapping[Site, nn.Module], steps: int) -> Training | None:
    """Take part in training: a penalty on the loss, something to do after every step.

    adapter: the adapter that is about to train, attached.
    modules: its live modules by their site; their parameters are the adapter's own.
    steps: how many optimizer steps the run will take.

    The default adds nothing to the loss and does nothing after a step.
    """


@hookspec(firstresult=True)
def hub_load(
    config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> tuple[Mapping[str, Any], Mapping[str, torch.Tensor]] | None:
    """Turn what an adapter's files hold into what the method means, before anything is checked.

    config: ``adapter_config.json`` without the fields that belong to every method.
    tensors: by name, ``{path of the site}.{tensor}``, peft's prefix taken off.

    The default hands both on as they are. Use it for an older layout of your own files.
    """


@hookspec(firstresult=True)
def hub_compose(
    site: Site,
    chains: Sequence[Sequence[nn.Module]],
    rows: Sequence[int] | None,
    before: nn.Module | None,
) -> nn.Module | None:
    """Join what this method does at one site into one module with the same effect, but faster.

    site: a projection, a branch or a norm.
    chains: what `Method.build` made, in the order in which it acts. Where `rows` is None there is
        one chain of two modules or more, which every row has: neighbours in a stack.
    rows: for each row of a batch its chain's number; a chain may be empty, which leaves a row as it
        is.
    before: what was returned here for the rows until now, which are no more; its memory may be
        taken over.

    The module returned is called like the others, ``forward(x, y) -> y``, with ``before(x)`` where
    theirs have it. With rows x is ``(rows, n, in_features)``, y ``(rows, n, out_features)``. What
    it gathers of the parameters of `chains` it may keep in a `hub.Kept`, which knows when they
    change; it is asked for anew when rows do.

    The default runs one after the other, each on what the one before left, and the rows of each
    chain together.
    """
