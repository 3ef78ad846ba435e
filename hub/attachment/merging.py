"""Folding adapters into the base's weights, and putting the very same weights back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hub.adapter import Adapter
from hub.attachment.answers import average_heads, find_head
from hub.attachment.fitting import Fit, find_place
from hub.attachment.nodes import changes_input
from hub.attachment.routing import list_adapters, show
from hub.attachment.substitutes import Substitute
from hub.composition import Average, Operator, Part, Stack
from hub.discovery import installed_methods
from hub.errors import AttachError
from hub.quantization import dequantize_weight, is_quantized
from hub.sites import Site, find_sites

# A parameter and "data", or a quantized layer and "forward", and what that shall be; ... for the
# forward of its class.
Swap = list[tuple[Any, str, Any]]
# What parameters shall hold, in float32.
Merged = dict[nn.Parameter, torch.Tensor]


def merge_line(model: nn.Module, line: Part, fits: Mapping[Adapter, Fit]) -> Swap:
    """The weights with every adapter of a composition folded in: each parameter and what it shall
    hold.

    A quantized weight stays, and its layer gets a substitute. Nothing is changed yet. Raises
    AttachError where an effect is no change of weights, or a weight has a second use that must not
    change.
    """
    base = Weights(model)
    merged: Merged = {}
    # What changes a site's input acts inside all that changes its output, as while attached.
    for inner in (False, True):
        merged = fold(base, line, fits, merged, inner=inner)
    paths = (path for adapter in list_adapters([line]) for path in fits[adapter].heads)
    for path in dict.fromkeys(paths):
        own = model.get_submodule(path)
        for name, tensor in average_heads(find_head(line, path, fits), own, path).items():
            parameter = own.get_parameter(name)
            base.check_single_use(parameter, f"the trained head at {path}.{name}")
            merged[parameter] = tensor
    swap: Swap = []
    for weight, new in merged.items():
        if weight in base.quantized:
            path, layer = base.quantized[weight]
            kept = new.detach().to(find_place(model, path)[1]).contiguous()
            swap.append((layer, "forward", Substitute(layer, kept)))
        else:
            kept = new.detach().to(weight.dtype, copy=True).contiguous()
            swap.append((weight, "data", kept))
    return swap


class Weights:
    """What the parameters of a model hold, as numbers.

    quantized: the path and the layer of each weight that holds codes.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.quantized = {
            module.weight: (path, module)
            for path, module in model.named_modules()
            if is_quantized(module)
        }
        self._users = count_users(model)

    def read(
        self, merged: Merged, parameter: nn.Parameter, expert: int | None = None
    ) -> torch.Tensor:
        """What a parameter shall hold, or one expert's part of it, in float32; what it stands for
        in the base where `merged` does not say."""
        if parameter not in merged and parameter in self.quantized:
            whole = dequantize_weight(self.quantized[parameter][1])
        else:
            whole = merged.get(parameter, parameter.data)
        return (whole if expert is None else whole[expert]).float()

    def check_single_use(self, parameter: nn.Parameter, where: str) -> None:
        """Raise AttachError where another module holds the same parameter."""
        if self._users.get(id(parameter), 0) > 1:
            raise AttachError(
                f"{where}: the weight is shared with another module, which must not change; leave "
                "it out of the adapter to merge, or serve the adapter attached"
            )


def fold(
    base: Weights, line: Part, fits: Mapping[Adapter, Fit], merged: Merged, *, inner: bool
) -> Merged:
    """What the parameters hold with a composition in them, over what `merged` says; `inner` for
    what changes the input of its sites, else for all other. Raises AttachError."""
    if isinstance(line, Adapter):
        merged = dict(merged)
        for site, module in fits[line].sites.items():
            if changes_input(module) == inner:
                merge_site(base, fits[line], site, merged)
        return merged
    if not isinstance(line, Operator):
        return merged
    if isinstance(line, Stack):
        for part in line.parts:
            merged = fold(base, part, fits, merged, inner=inner)
        return merged
    if not isinstance(line, Average):
        raise AttachError(
            f"{show(line)} is no change of weights, so can't merge; serve it attached"
        )
    parts = [fold(base, part, fits, merged, inner=inner) for part in line.parts]
    whole = dict(merged)
    for weight in dict.fromkeys(key for part in parts for key in part):
        values = [base.read(part, weight) for part in parts]
        whole[weight] = sum(
            (value * share for value, share in zip(values, line.shares, strict=True)),
            start=torch.zeros_like(values[0]),
        )
    return whole


def merge_site(base: Weights, fit: Fit, site: Site, merged: Merged) -> None:
    """Fold one module into the weight and bias of its site, in `merged`. Raises AttachError."""
    method = installed_methods().get(fit.adapter.method)
    module = fit.sites[site]
    where = f"adapter {fit.adapter.label} at {site.path}"
    weight = find_weight(base.model, fit, site)
    current = base.read(merged, weight, site.expert)
    current = current.T if site.transposed else current
    delta = method.weight_delta(module, current)
    bias = find_bias(base.model, site)
    change = None
    if bias is not None:
        value = base.read(merged, bias, site.expert)
        change = method.bias_delta(module, value)
        if change is not None:
            base.check_single_use(bias, where)
            write_part(merged, bias, site.expert, value + change.detach().to(value.device))
    if delta is not None:
        alike = find_alike(base.model, fit, site, current)
        if not alike:
            base.check_single_use(weight, where)
        elif site != alike[0]:
            return
        new = current + delta.detach().to(current.device)
        write_part(merged, weight, site.expert, new.T if site.transposed else new)
    elif change is None:
        raise AttachError(refuse_merge(fit, site))


def find_alike(model: nn.Module, fit: Fit, site: Site, current: torch.Tensor) -> list[Site]:
    """The sites that hold one weight with `site`, where the adapter changes it by the same at all
    of them, so that once will do; none where it does not."""
    if site.tied is None:
        return []
    group = [other for other in find_sites(model) if other.tied == site.tied]
    if not all(other in fit.sites for other in group):
        return []
    method = installed_methods().get(fit.adapter.method)
    weight = current.T if site.transposed else current
    changes = []
    for other in group:
        change = method.weight_delta(fit.sites[other], weight.T if other.transposed else weight)
        if change is None:
            return []
        changes.append(change.T if other.transposed else change)
    return group if all(torch.equal(changes[0], change) for change in changes) else []


def write_part(
    merged: Merged,
    parameter: nn.Parameter,
    expert: int | None,
    value: torch.Tensor,
) -> None:
    """Say what a parameter shall hold, or one expert's part of it."""
    if expert is None:
        merged[parameter] = value
        return
    whole = merged.get(parameter, parameter.data).to(torch.float32, copy=True)
    whole[expert] = value
    merged[parameter] = whole


def swap_weights(swap: Swap) -> Swap:
    """Let each hold what stands beside it, all or none; what they held before.

    Adding a change in half precision and taking it away again does not give the weight back, so
    the very tensors are kept. One that was moved or converted since comes back as the model is now.
    """
    before: Swap = []
    try:
        for item in swap:
            before.append(swap_attribute(*item))
    except BaseException:
        for item in before:
            swap_attribute(*item)
        raise
    return before


def swap_attribute(owner: Any, name: str, value: Any) -> tuple[Any, str, Any]:
    """Set one, and return what sets it back."""
    if name == "data":
        before = owner.data
        owner.data = value.to(owner.device, owner.dtype)
        return owner, name, before
    before = vars(owner).get(name, ...)
    if value is ...:
        delattr(owner, name)
    else:
        setattr(owner, name, value)
    return owner, name, before


def find_weight(model: nn.Module, fit: Fit, site: Site) -> nn.Parameter:
    """The weight of a projection or a norm that can take a change. Raises AttachError."""
    if site.kind not in ("projection", "norm"):
        raise AttachError(refuse_merge(fit, site))
    where = f"adapter {fit.adapter.label} at {site.path}"
    name = "weight" if site.part is None else site.part[0]
    weight = getattr(model.get_submodule(site.owner), name, None)
    if weight is None:
        raise AttachError(refuse_merge(fit, site))
    readable = is_quantized(model.get_submodule(site.owner))
    if not isinstance(weight, nn.Parameter) or not (readable or weight.is_floating_point()):
        raise AttachError(
            f"{where}: the weight is quantized in a way that can't be read; load the base "
            "unquantized to merge"
        )
    return weight


def find_bias(model: nn.Module, site: Site) -> nn.Parameter | None:
    """The bias of a site, where it has one that can take a change."""
    name = "bias" if site.part is None else f"{site.part[0]}_bias"
    bias = getattr(model.get_submodule(site.owner), name, None) if site.bias else None
    return bias if isinstance(bias, nn.Parameter) else None


def refuse_merge(fit: Fit, site: Site) -> str:
    return (
        f"adapter {fit.adapter.label} at {site.path}: {fit.adapter.method} is no change of "
        "weights, so can't merge; serve it attached"
    )


def count_users(model: nn.Module) -> dict[int, int]:
    """How many modules hold each parameter, by its id. One around another that holds it too, as
    BERT's prediction head holds its decoder's bias, only leaves the use of it to that one."""
    holders: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), []).append(path)
    return {
        parameter: sum(not any(other.startswith(f"{path}.") for other in paths) for path in paths)
        for parameter, paths in holders.items()
    }
