"""Folding adapters into the base's weights, and putting the very same weights back."""

from __future__ import annotations

import torch
from torch import nn

from hub.attachment.fitting import Fit
from hub.discovery import installed_methods
from hub.errors import AttachError

Undo = list[tuple[nn.Parameter, torch.Tensor]]


def merge_fits(model: nn.Module, fits: list[Fit]) -> Undo:
    """Fold every adapter into the weights, in order; what was replaced, to be put back.

    Adding a change in half precision and taking it away again does not give the weight back, so
    the replaced tensor itself is kept. Raises AttachError, and then changes nothing.
    """
    users = count_users(model)
    merged: dict[nn.Parameter, torch.Tensor] = {}
    for fit in fits:
        method = installed_methods().get(fit.adapter.method)
        for site, module in fit.sites.items():
            where = f"adapter {fit.adapter.label} at {site.path}"
            if site.kind != "projection":
                raise AttachError(f"{where}: {method.name} is no change of weights, so can't merge")
            weight = model.get_submodule(site.path).weight
            assert isinstance(weight, nn.Parameter)
            if not weight.is_floating_point():
                raise AttachError(f"{where}: the weight is quantized ({weight.dtype}), can't merge")
            if users[id(weight)] > 1:
                raise AttachError(
                    f"{where}: the weight is shared with another module, which must not change; "
                    "leave it out of the adapter's targets to merge"
                )
            current = merged.get(weight, weight.data).float()
            current = current.T if site.transposed else current
            delta = method.weight_delta(module, current)
            if delta is None:
                raise AttachError(f"{where}: {method.name} is no change of weights, so can't merge")
            new = current + delta.detach().to(current.device)
            merged[weight] = new.T if site.transposed else new
        for path, head in fit.heads.items():
            own = dict(model.get_submodule(path).named_parameters())
            merged |= {own[name]: tensor.data for name, tensor in head.named_parameters()}
    undo = [(weight, weight.data) for weight in merged]
    for weight, new in merged.items():
        weight.data = new.to(weight.dtype).contiguous().clone()
    return undo


def restore_weights(undo: Undo) -> None:
    """Put back what `merge_fits` replaced, and empty the list."""
    for weight, before in undo:
        weight.data = before
    undo.clear()


def count_users(model: nn.Module) -> dict[int, int]:
    """How many modules hold each parameter, by its id."""
    users: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users[id(parameter)] = users.get(id(parameter), 0) + 1
    return users
