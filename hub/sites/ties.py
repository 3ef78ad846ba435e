"""Ties: modules of a model that hold one and the same weight."""

from collections.abc import Mapping
from typing import Any

from torch import nn


def find_ties(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Of modules that share their weight: the path of the first, by the path of every one."""
    first: dict[int, str] = {}
    shared: dict[str, str] = {}
    for path, module in modules.items():
        weight: Any = module._parameters.get("weight")
        if weight is None:
            continue
        start = first.setdefault(id(weight), path)
        if start != path:
            shared[start] = shared[path] = start
    return shared
