"""Layers: which of a model's module lists holds the layers that repeat, and which holds
alternatives, such as experts."""

from collections.abc import Iterable, Mapping

from torch import nn


def list_containers(modules: Mapping[str, nn.Module]) -> frozenset[str]:
    """Paths of the module lists of a model; of its sequences where it has no list."""
    lists = [path for path, module in modules.items() if isinstance(module, nn.ModuleList)]
    sequences = (path for path, module in modules.items() if isinstance(module, nn.Sequential))
    return frozenset(lists or sequences)


def find_item(path: str, lists: Iterable[str]) -> str | None:
    """The item of one of `lists`, the outermost, that `path` is or lies in."""
    found = [name for name in lists if path.startswith(name + ".")]
    if not found:
        return None
    shortest = min(found, key=len)
    return ".".join(path.split(".")[: shortest.count(".") + 2])


def number_layers(
    modules: Mapping[str, nn.Module], lists: frozenset[str], branches: Iterable[str]
) -> dict[str, int]:
    """The index of every layer, by path: the items of the lists that hold `branches`.

    Lists of lists of layers (stages) are numbered through.
    """
    numbers: dict[str, int] = {}
    holders: dict[str, list[str]] = {}
    for branch in branches:
        item = find_item(branch, lists)
        if item is not None:
            holders.setdefault(item.rpartition(".")[0], []).append(branch)
    for holder, inside in holders.items():
        layers: list[str] = []
        for item in _list_items(modules, holder):
            layers += _list_stage(modules, lists, item, inside) or [item]
        numbers.update((layer, place) for place, layer in enumerate(layers))
    return numbers


def find_layer(path: str, layers: Mapping[str, int]) -> str | None:
    """The one of `layers` that `path` is or lies in."""
    names = path.split(".")
    starts = (".".join(names[:length]) for length in range(1, len(names) + 1))
    return next((start for start in starts if start in layers), None)


def list_alternatives(
    modules: Mapping[str, nn.Module], layers: Mapping[str, int], branches: Iterable[str]
) -> list[list[str]]:
    """Groups of modules of which an input takes some: alike, in one list inside a layer, without a
    branch."""
    groups: list[list[str]] = []
    for path, module in modules.items():
        if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            continue
        if find_layer(path, layers) is None or any(b.startswith(f"{path}.") for b in branches):
            continue
        alike: dict[type, list[str]] = {}
        for item in _list_items(modules, path):
            alike.setdefault(type(modules.get(item)), []).append(item)
        groups += [items for items in alike.values() if len(items) > 1]
    return groups


def _list_stage(
    modules: Mapping[str, nn.Module], lists: frozenset[str], item: str, branches: Iterable[str]
) -> list[str]:
    """The layers in `item` where it is a stage: all its branches in one list of like modules."""
    below = [name for name in lists if name == item or name.startswith(item + ".")]
    held = [find_item(branch, below) for branch in branches if branch.startswith(item + ".")]
    holders = {None if layer is None else layer.rpartition(".")[0] for layer in held}
    if len(holders) != 1:
        return []
    holder = holders.pop()
    if holder is None:
        return []
    layers = _list_items(modules, holder)
    alike = len({type(modules.get(layer)) for layer in layers}) == 1
    return layers if alike and len(layers) > 1 else []


def _list_items(modules: Mapping[str, nn.Module], path: str) -> list[str]:
    return [f"{path}.{name}" for name in modules[path]._modules]
