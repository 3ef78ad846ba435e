"""Fitting an adapter to a model: live modules at its sites, filled with its tensors, all checked.

Nothing here touches the model, so that what does not fit leaves it as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from hub.adapter import Adapter, lies_in
from hub.discovery import installed_methods
from hub.errors import AttachError, MethodError
from hub.heads import copy_head
from hub.sites import Site, find_sites

NAMED = 3


@dataclass(frozen=True)
class Fit:
    """An adapter, ready for one model.

    sites: the live module at each site, in the model's order.
    heads: the live head for each path where the adapter carries one.
    learns: whether its parameters are trained while attached.
    """

    adapter: Adapter
    learns: bool
    sites: dict[Site, nn.Module] = field(default_factory=dict)
    heads: dict[str, nn.Module] = field(default_factory=dict)

    def modules(self) -> list[tuple[str, nn.Module]]:
        """Every live module and the path where it acts; two kinds of site may share a path."""
        return [*((site.path, module) for site, module in self.sites.items()), *self.heads.items()]

    def parameters(self) -> Iterable[nn.Parameter]:
        """The live parameters, each once."""
        return {id(p): p for _, module in self.modules() for p in module.parameters()}.values()


def fit_adapter(adapter: Adapter, model: nn.Module, *, learns: bool) -> Fit:
    """Build the live modules of `adapter` for `model`.

    A learning adapter's own parameters are used, in float32, so that training changes the adapter.
    A serving one gets parameters of the precision of the module it acts on, that share the
    adapter's memory where no conversion is needed.

    Raises AttachError where names or shapes don't fit this model, ConfigError where the
    configuration does not, MethodError where the method's plugin is at fault.
    """
    method = installed_methods().get(adapter.method)
    sites = [site for site in find_sites(model) if not lies_in(site.path, adapter.heads)]
    chosen = method.choose_sites(sites, adapter.config)
    fit = Fit(adapter, learns)
    with torch.device("meta"):
        for site in chosen:
            fit.sites[site] = method.build(site, adapter.config)
    for path in adapter.heads:
        fit.heads[path] = copy_head(model, path)
    expected = {
        f"{path}.{name}": tuple(tensor.shape)
        for path, module in fit.modules()
        for name, tensor in module.state_dict().items()
    }
    check_names(adapter, expected)
    for path, module in fit.modules():
        place = find_place(model, path)
        fill_module(module, path, adapter, place, learns=learns)
    return fit


def check_names(adapter: Adapter, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise AttachError unless the adapter has exactly the tensors that the model calls for."""
    found = adapter.tensors
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    wrong = [
        f"{name} {tuple(found[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    faults = []
    if missing:
        faults.append(f"lacks {name_some(missing)}")
    if extra:
        faults.append(f"has {name_some(extra)} with no place in it")
    if wrong:
        faults.append(f"has {name_some(wrong)}")
    if faults:
        raise AttachError(
            f"adapter {adapter.label} does not fit this model: of the {len(expected)} tensors that "
            f"its configuration calls for here, it {'; it '.join(faults)}; load the class of "
            "model that it was trained on, or fetch the adapter anew"
        )


def fill_module(
    module: nn.Module,
    path: str,
    adapter: Adapter,
    place: tuple[torch.device, torch.dtype],
    *,
    learns: bool,
) -> None:
    """Put the adapter's tensors into a live module."""
    device, dtype = place
    for prefix, owner in module.named_modules():
        start = f"{path}.{prefix}." if prefix else f"{path}."
        for name in [name for name, _ in owner.named_parameters(recurse=False)]:
            parameter = adapter.tensors[start + name]
            if learns:
                parameter.data = parameter.data.to(device=device, dtype=torch.float32)
                parameter.requires_grad_(True)
            else:
                parameter = nn.Parameter(
                    parameter.detach().to(device=device, dtype=dtype), requires_grad=False
                )
            owner.register_parameter(name, parameter)
        for name in [name for name, _ in owner.named_buffers(recurse=False)]:
            if start + name not in adapter.tensors:
                raise MethodError(
                    f"method {adapter.method!r} keeps the buffer {name!r} out of its state, so a "
                    "loaded adapter can't fill it; make it persistent, or compute it in forward"
                )
            setattr(owner, name, adapter.tensors[start + name].detach().to(device))


def find_place(model: nn.Module, path: str) -> tuple[torch.device, torch.dtype]:
    """Where the module at `path` computes and in what precision: its weights', or its parents'."""
    names = path.split(".")
    for end in range(len(names), -1, -1):
        module = model.get_submodule(".".join(names[:end]))
        for parameter in module.parameters():
            if parameter.is_floating_point():
                return parameter.device, parameter.dtype
    return torch.device("cpu"), torch.float32


def name_some(names: Sequence[str]) -> str:
    """The first few of many, and how many more."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
