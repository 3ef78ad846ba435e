"""Building: the live modules that a method makes for its sites, and the names of their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hub.sites import Site


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
        known: set[nn.Module] = set()
        if self.shared is not None:
            yield from walk_owners("", self.shared, set())
            known = set(self.shared.modules())
        for site, module in self.sites.items():
            yield from walk_owners(f"{site.path}.", module, set(known))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor that the adapter keeps, by name."""
        return name_tensors(self.owners())


def build_modules(method: Any, sites: Sequence[Site], config: Any) -> Modules:
    """Let a method build for the sites that it chose."""
    shared = method.build_shared(sites, config)
    given = () if shared is None else (shared,)
    return Modules({site: method.build(site, config, *given) for site in sites}, shared)


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
