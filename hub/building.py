"""Building: the live modules that a method makes for its sites, and the names of their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._device import DeviceContext

from hub.sites import Site

FILLS = frozenset({"uniform_", "normal_", "kaiming_uniform_", "kaiming_normal_"})


@dataclass(frozen=True)
class Modules:
    """What a method built: a module for each site, and what they have in common, if anything.

    A tensor's name is ``{path of the site}.{name in the module}``; that of a shared one is its name
    in the shared module, wherever else that module is found.
    """

    sites: dict[Site, nn.Module] = field(default_factory=dict)
    shared: nn.Module | None = None

    def owners(self) -> Iterator[tuple[str, nn.Module]]:
        """Every module that may hold tensors of its own, and what their names begin with."""
        return ((start, owner) for _, start, owner in self.walk())

    def walk(self) -> Iterator[tuple[str, str, nn.Module]]:
        """The same, each after the path of its site; that is empty for what is shared."""
        known: set[nn.Module] = set()
        if self.shared is not None:
            yield from (("", *found) for found in walk_owners("", self.shared, set()))
            known = set(self.shared.modules())
        for site, module in self.sites.items():
            for found in walk_owners(f"{site.path}.", module, set(known)):
                yield site.path, *found

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor that the adapter keeps, by name."""
        return name_tensors(self.owners())


def build_modules(method: Any, sites: Sequence[Site], config: Any) -> Modules:
    """Let a method build for the sites that it chose."""
    shared = method.build_shared(sites, config)
    given = () if shared is None else (shared,)
    return Modules({site: method.build(site, config, *given) for site in sites}, shared)


class Hollow(DeviceContext):
    """Modules that are built inside have tensors without values, on the meta device.

    Random numbers there are no numbers, and cost more than real ones: drawing them is skipped.
    """

    def __init__(self) -> None:
        super().__init__("meta")

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in FILLS:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]


def walk_owners(
    start: str, module: nn.Module, known: set[nn.Module]
) -> Iterator[tuple[str, nn.Module]]:
    """`module` and what is inside it but not `known`, and what their tensors are named by."""
    for name, owner in module.named_modules(memo=known):
        yield f"{start}{name}." if name else start, owner


def name_tensors(owners: Iterator[tuple[str, nn.Module]]) -> dict[str, torch.Tensor]:
    """The parameters and persistent buffers of these modules, by name."""
    named: dict[str, torch.Tensor] = {}
    for start, owner in owners:
        named |= {start + name: p for name, p in owner._parameters.items() if p is not None}
        named |= {
            start + name: buffer
            for name, buffer in owner._buffers.items()
            if buffer is not None and name not in owner._non_persistent_buffers_set
        }
    return named
