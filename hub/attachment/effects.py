"""What stands in the model while an adapter is attached: hooks that are plain objects.

They hold the adapters' live modules and a switch, and nothing that a forward pass changes, so any
number of threads can run one attached model; a deep copy of the model gets its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from hub.attachment.nodes import Chain, Slice, run_after
from hub.attachment.routing import Table
from hub.errors import AttachError
from hub.sites import Site


class Switch:
    """Whether an attachment acts; one for all of its hooks.

    on: the hooks act. merged: the base's weights hold the effects instead. table: who acts on which
    row.
    """

    def __init__(self) -> None:
        self.on = True
        self.merged = False
        self.table: Table | None = None

    @property
    def state(self) -> tuple[bool, bool, Table | None]:
        """What a backward pass must find as its forward did."""
        return self.on, self.merged, self.table


class Acting:
    """What acts at one site at present: its place in the table, which routing changes.

    chains: what changes the site's input, and its output; modules and nodes, one after the other.
    """

    __slots__ = ("chains",)

    def __init__(self) -> None:
        self.chains: tuple[Chain, Chain] = ((), ())


class Effect:
    """A forward hook: what a chain makes of a site's output.

    index: which element of the output is meant, where the site's module returns several.
    """

    def __init__(self, switch: Switch, acting: Acting, index: int | None = None) -> None:
        self.switch = switch
        self.acting = acting
        self.index = index

    @property
    def chain(self) -> Chain:
        """What acts."""
        return self.acting.chains[1]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not self.switch.on:
            return None
        if self.index is not None:
            return self.change(args[0], output)
        # The same as `change`, without a call: this runs at every projection of every token.
        for effect in self.acting.chains[1]:
            output = effect.forward(args[0], output)
        return output

    def change(self, x: torch.Tensor, output: Any) -> Any:
        """The output with the effect in it. The modules' forward is called directly: they carry no
        hooks of their own, and torch's way of calling a module costs as much as a small product."""
        index = self.index
        y = output if index is None else pick_element(output, index)
        for module in self.chain:
            y = module.forward(x, y)
        return y if index is None else replace_element(output, index, y)


class KeywordEffect(Effect):
    """The same, for a module that is called with its input by keyword.

    name: that keyword.
    """

    def __init__(
        self, switch: Switch, acting: Acting, index: int | None = None, *, name: str
    ) -> None:
        super().__init__(switch, acting, index)
        self.name = name

    def __call__(  # type: ignore[override]
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> Any:
        if not self.switch.on:
            return None
        # By its name first: what comes by position may be no tensor, such as a shape.
        return self.change(kwargs[self.name] if self.name in kwargs else args[0], output)


class Stream:
    """A residual stream on its way from where it can be read to the branch that is added to it.

    Every thread that runs the model has its own.
    """

    def __init__(self) -> None:
        self._local = threading.local()

    def put(self, x: torch.Tensor) -> None:
        """Keep x until the branch is there."""
        self._local.x = x

    def take(self) -> torch.Tensor:
        """What was kept, and keep it no longer."""
        x: torch.Tensor = self._local.x
        self._local.x = None  # torch.compile follows no del here
        return x

    def __deepcopy__(self, memo: dict[int, Any]) -> Stream:
        own: Stream = memo.setdefault(id(self), Stream())
        return own

    def __reduce__(self) -> Any:
        return Stream, ()


class StreamReader:
    """A forward pre-hook on a module that is given the stream: keeps it for the branch."""

    def __init__(self, stream: Stream, switch: Switch) -> None:
        self.stream = stream
        self.switch = switch

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.switch.on:
            self.stream.put(next(walk_tensors([*args, *kwargs.values()])))


class StreamEffect(KeywordEffect):
    """An effect some of whose modules get the stream that the branch is added to as their x."""

    def __init__(
        self,
        switch: Switch,
        acting: Acting,
        index: int | None = None,
        *,
        name: str | None,
        stream: Stream,
    ) -> None:
        super().__init__(switch, acting, index, name=name or "")
        self.stream = stream

    def change(self, x: torch.Tensor, output: Any) -> Any:
        """The output with the effect in it."""
        index, stream = self.index, self.stream.take()
        y = output if index is None else pick_element(output, index)
        stream = stream if stream.shape == y.shape else stream.reshape(y.shape)
        y = run_after(self.chain, x, y, Slice(stream))
        return y if index is None else replace_element(output, index, y)


class InputEffect:
    """A forward pre-hook: what a chain makes of a site's input."""

    def __init__(self, switch: Switch, acting: Acting) -> None:
        self.switch = switch
        self.acting = acting

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        if not self.switch.on:
            return None
        x = args[0]
        for effect in self.acting.chains[0]:
            x = effect.before(x)
        return x if len(args) == 1 else (x, *args[1:])


class KeywordInputEffect(InputEffect):
    """The same, for a module that is called with its input by keyword.

    name: that keyword.
    """

    def __init__(self, switch: Switch, acting: Acting, *, name: str) -> None:
        super().__init__(switch, acting)
        self.name = name

    def __call__(  # type: ignore[override]
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not self.switch.on:
            return None
        named = self.name in kwargs
        x = kwargs[self.name] if named else args[0]
        for effect in self.acting.chains[0]:
            x = effect.before(x)
        return (args, {**kwargs, self.name: x}) if named else ((x, *args[1:]), kwargs)


def hang_effects(
    model: nn.Module,
    site: Site,
    switch: Switch,
    acting: Acting,
    *,
    inputs: bool,
    outputs: bool,
    streams: bool,
) -> list[RemovableHandle]:
    """Hang hooks at one site: for what changes its input, and its output, and reads the stream."""
    target, name = find_module(model, site.owner), site.input_name
    handles = []
    if inputs:
        inner = InputEffect(switch, acting)
        if name is not None:
            inner = KeywordInputEffect(switch, acting, name=name)
        handles.append(target.register_forward_pre_hook(inner, with_kwargs=name is not None))
    if outputs:
        by_name = name is not None
        if streams and site.stream is not None:
            by_name, stream = True, Stream()
            outer: Effect = StreamEffect(
                switch, acting, site.output_index, name=name, stream=stream
            )
            reader = StreamReader(stream, switch)
            taker = find_module(model, site.stream)
            handles.append(taker.register_forward_pre_hook(reader, with_kwargs=True))
        elif name is not None:
            outer = KeywordEffect(switch, acting, site.output_index, name=name)
        else:
            outer = Effect(switch, acting, site.output_index)
        handles.append(target.register_forward_hook(outer, with_kwargs=by_name))
    return handles


def find_module(model: nn.Module, path: str) -> nn.Module:
    """The module at a path, where there is one: torch's `get_submodule` takes thrice as long."""
    module: Any = model
    for name in path.split(".") if path else ():
        module = module._modules[name]
    found: nn.Module = module
    return found


class CheckpointGuard:
    """A forward hook on the whole model that ties a backward pass to the forward it came from.

    Gradient checkpointing runs layers again during backward. If the adapters were switched or
    taken off in between, the second run would compute something else, and the gradients would be
    silently wrong. The guard lets that backward pass fail instead.
    """

    def __init__(self, switch: Switch) -> None:
        self.switch = switch

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        if not any(getattr(child, "gradient_checkpointing", False) for child in module.modules()):
            return
        switch, before = self.switch, self.switch.state

        def check(gradient: torch.Tensor) -> None:
            if switch.state != before:
                raise AttachError(
                    "the adapters were switched, routed, merged or detached between this forward "
                    "pass and its backward; with gradient checkpointing the layers run again in "
                    "between, so call backward first"
                )

        for tensor in walk_tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(check)  # type: ignore[no-untyped-call]


def walk_tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in a model's output, whatever it is made of."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from walk_tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from walk_tensors(item)


def pick_element(output: Any, index: int) -> torch.Tensor:
    """The element of a tuple, list or ModelOutput."""
    items = list(output.values()) if isinstance(output, Mapping) else output
    element: torch.Tensor = items[index]
    return element


def replace_element(output: Any, index: int, value: torch.Tensor) -> Any:
    """The same kind of tuple, list or ModelOutput with one element replaced."""
    if isinstance(output, Mapping):
        key = list(output)[index]
        return type(output)(**{**output, key: value})
    items = [*output[:index], value, *output[index + 1 :]]
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
