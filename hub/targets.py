"""Targets: the projections that a method's configuration names, by peft's rules."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hub.errors import ConfigError
from hub.sites import Site

ROLES = {
    "attention": frozenset({"query", "key", "value", "qkv", "output"}),
    "feedforward": frozenset({"in", "gate", "out"}),
}


def choose_targets(
    method: str,
    sites: Sequence[Site],
    targets: str | tuple[str, ...],
    *,
    exclude: str | tuple[str, ...] = (),
    layers: tuple[int, ...] | None = None,
    layers_pattern: tuple[str, ...] = (),
) -> list[Site]:
    """The projections among `sites` that are named.

    targets: "attention", "feedforward", "all" (every projection but embeddings and the head), a
        regular expression that a module's whole path matches, or names that its path ends with.
    exclude: paths to leave out, as a regular expression or as names.
    layers, layers_pattern: only these layers' modules, counted in the module list of that name.

    Raises ConfigError, which begins with the method's name, where nothing is named, a pattern is no
    regular expression, or `layers` would narrow one, and where nothing is left.
    """
    by_role = isinstance(targets, str) and targets in {"all", *ROLES}
    if not targets:
        raise ConfigError(
            f"{method}: targets is empty; give attention, feedforward, all, or a pattern"
        )
    if isinstance(targets, str) and not by_role and layers is not None:
        raise ConfigError(
            f"{method}: layers can't narrow the pattern {targets!r}; say the layers in it"
        )

    def fits(site: Site) -> bool:
        # An expert goes by the name of the parameter that holds it too.
        paths = [site.path] + ([site.path.rpartition(".")[0]] if site.expert is not None else [])
        if exclude and any(is_named(method, path, exclude) for path in paths):
            return False
        return any(names_path(site, path) for path in paths)

    def names_path(site: Site, path: str) -> bool:
        if targets == "all":
            return site.role not in ("head", "embedding") and is_inside(path)
        if isinstance(targets, str) and by_role:
            return site.role in ROLES[targets] and is_inside(path)
        if path in whole:
            return True
        return is_named(method, path, targets) and (isinstance(targets, str) or is_inside(path))

    def is_inside(path: str) -> bool:
        if layers is None:
            return True
        lists = "|".join(layers_pattern) or r"[^.]*"
        found = re.match(rf"(?:.*?\.)?(?:{lists})\.(\d+)\.", path)
        return found is not None and int(found[1]) in layers

    whole = frozenset(() if isinstance(targets, str) else targets)
    projections = [site for site in sites if site.kind == "projection"]
    chosen = [site for site in projections if fits(site)]
    if not chosen and (exclude or layers is not None):
        named = choose_targets(method, sites, targets)
        given = {"exclude": exclude or None, "layers": layers}
        said = " and ".join(
            f"{name}={value!r}" for name, value in given.items() if value is not None
        )
        raise ConfigError(
            f"{method}: {said} leaves none of the {len(named)} modules that targets means, such as "
            f"{named[0].path}; leave out less"
        )
    if not chosen:
        asked = targets if isinstance(targets, str) else targets[0]
        there = sorted({site.path.rsplit(".", 1)[-1] for site in projections})
        raise ConfigError(
            f"{method}: no projection matches targets={asked!r}; this base has "
            f"{', '.join(there) or 'none'}"
        )
    return chosen


def is_named(method: str, path: str, names: str | tuple[str, ...]) -> bool:
    """A pattern must match the whole path; a name, the path or its end. Raises ConfigError."""
    if not isinstance(names, str):
        return any(path == name or path.endswith(f".{name}") for name in names)
    try:
        return re.fullmatch(names, path) is not None
    except re.error as error:
        raise ConfigError(f"{method}: {names!r} is no regular expression: {error}") from error
