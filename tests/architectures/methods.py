"""The methods that are tried in every cell, with their default options."""

from __future__ import annotations

from typing import Any

from hub.discovery import installed_methods

# By the name in the table: the method and its options.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ("lora", "ia3", "houlsby", "prefix", "prompt", "ptuning")},
    "dora": ("lora", {"dora": True}),
    **{name: (name, {}) for name in ("pfeiffer", "parallel", "bitfit", "llama_adapter")},
    **{name: (name, {}) for name in ("diff", "full")},
}
# It acts where the parts of a fuse do, whose methods are tried, and not alone.
LEADERS = {"fusion"}


def list_variants() -> list[str]:
    """Those above, and whatever other method is installed that acts alone."""
    installed = [plugin.name for plugin in installed_methods().plugins()]
    return [*VARIANTS, *(name for name in installed if name not in {*VARIANTS, *LEADERS})]


def find_variant(name: str) -> tuple[str, dict[str, Any]]:
    """The method of that name in the table, and its options."""
    return VARIANTS.get(name, (name, {}))
