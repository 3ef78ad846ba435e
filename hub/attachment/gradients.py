"""Gradients through layers that write their own backward.

A reversible network (Reformer) runs its layers inside one function of autograd's, which gives a
gradient to their weights only where it is asked for one to its input. Over a frozen base nothing
asks.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from hub.sites import ATTACHED, find_sites


def ask_gradients(model: nn.Module) -> list[RemovableHandle]:
    """Hooks by which the input embeddings ask for a gradient, where `model` has such layers."""
    if not writes_backward(model):
        return []
    inputs = [site.path for site in find_sites(model) if site.kind == "embedding"]
    return [model.get_submodule(path).register_forward_hook(ask_gradient) for path in inputs]


def ask_gradient(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Let what the embeddings give want a gradient."""
    if torch.is_grad_enabled() and isinstance(output, torch.Tensor):
        output.requires_grad_(True)


def writes_backward(model: nn.Module) -> bool:
    """Whether the file of one of the base's classes defines a function with its own backward."""
    own = (m for path, m in model.named_modules() if path.split(".")[0] != ATTACHED)
    names = {type(module).__module__ for module in own}
    files = [vars(sys.modules[name]) for name in names if name in sys.modules]
    return any(
        isinstance(value, type)
        and issubclass(value, torch.autograd.Function)
        and value.__module__ in names
        and not value.__module__.startswith("torch.")
        for file in files
        for value in file.values()
    )
