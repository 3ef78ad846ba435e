"""Folding adapters into the base's weights, and putting the very same weights back."""

from __future__ import annotations

import torch
from torch import nn

from hub.attachment.effects import changes_input
from hub.attachment.fitting import Fit
from hub.discovery import installed_methods
from hub.errors import AttachError
from hub.sites import Site

Swap = list[tuple[nn.Parameter, torch.Tensor]]


def merge_fits(model: nn.Module, fits: list[Fit]) -> Swap:
    """The weights with every adapter folded in, in order: each parameter and what it shall hold.

    Nothing is changed yet. Raises AttachError where an effect is no change of weights, or a weight
    has a second use that must not change.
    """
    users = count_users(model)
    merged: dict[nn.Parameter, torch.Tensor] = {}
    # What changes a site's input acts inside all that changes its output, as while attached.
    for inner in (False, True):
        for fit in fits:
            for site, module in fit.sites.items():
                if changes_input(module) == inner:
                    merge_site(model, fit, site, merged, users)
    for fit in fits:
        who = f"adapter {fit.adapter.label}"
        for path, head in fit.heads.items():
            own = dict(model.get_submodule(path).named_parameters())
            for name, tensor in head.named_parameters():
                check_single_use(own[name], users, f"{who} at {path}.{name}")
                merged[own[name]] = tensor.data
    return [
        (weight, new.detach().to(weight.dtype, copy=True).contiguous())
        for weight, new in merged.items()
    ]


def merge_site(
    model: nn.Module,
    fit: Fit,
    site: Site,
    merged: dict[nn.Parameter, torch.Tensor],
    users: dict[int, int],
) -> None:
    """Fold one module into the weight and bias of its site, in `merged`. Raises AttachError."""
    method = installed_methods().get(fit.adapter.method)
    module = fit.sites[site]
    where = f"adapter {fit.adapter.label} at {site.path}"
    weight = find_weight(model, fit, site)
    current = merged.get(weight, weight.data).float()
    current = current.T if site.transposed else current
    delta = method.weight_delta(module, current)
    bias = model.get_submodule(site.owner).bias if site.bias else None
    change = None
    if isinstance(bias, nn.Parameter):
        value = merged.get(bias, bias.data).float()
        change = method.bias_delta(module, value)
        if change is not None:
            check_single_use(bias, users, where)
            merged[bias] = value + change.detach().to(value.device)
    if delta is not None:
        check_single_use(weight, users, where)
        new = current + delta.detach().to(current.device)
        merged[weight] = new.T if site.transposed else new
    elif change is None:
        raise AttachError(refuse_merge(fit, site))


def swap_weights(swap: Swap) -> Swap:
    """Let each parameter hold the tensor beside it, all or none; what they held before.

    Adding a change in half precision and taking it away again does not give the weight back, so
    the very tensors are kept. One that was moved or converted since comes back as the model is now.
    """
    before = [(weight, weight.data) for weight, _ in swap]
    try:
        for weight, new in swap:
            weight.data = new.to(weight.device, weight.dtype)
    except BaseException:
        for weight, old in before:
            weight.data = old
        raise
    return before


def find_weight(model: nn.Module, fit: Fit, site: Site) -> nn.Parameter:
    """The weight of a projection or a norm that can take a change. Raises AttachError."""
    if site.kind not in ("projection", "norm"):
        raise AttachError(refuse_merge(fit, site))
    where = f"adapter {fit.adapter.label} at {site.path}"
    weight = getattr(model.get_submodule(site.owner), "weight", None)
    if weight is None:
        raise AttachError(refuse_merge(fit, site))
    if not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
        raise AttachError(
            f"{where}: the weight is quantized, so can't take a change; load the base unquantized "
            "to merge"
        )
    return weight


def check_single_use(weight: nn.Parameter, users: dict[int, int], where: str) -> None:
    """Raise AttachError where another module holds the same parameter."""
    if users.get(id(weight), 0) > 1:
        raise AttachError(
            f"{where}: the weight is shared with another module, which must not change; leave it "
            "out of the adapter to merge, or serve the adapter attached"
        )


def refuse_merge(fit: Fit, site: Site) -> str:
    return (
        f"adapter {fit.adapter.label} at {site.path}: {fit.adapter.method} is no change of "
        "weights, so can't merge; serve it attached"
    )


def count_users(model: nn.Module) -> dict[int, int]:
    """How many modules hold each parameter, by its id."""
    users: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users[id(parameter)] = users.get(id(parameter), 0) + 1
    return users
