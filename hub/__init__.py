"""A hub and registry for adapters: train, version, compose, publish, pull and load anywhere.

    import hub

    adapter = hub.Adapter.create("lora", model, r=8)
    hub.train(model, adapter, "rows.jsonl", tokenizer=tokenizer, template="{{ x }}|||{{ y }}")
    version = hub.Registry().add(adapter, name="sst2", task="sentiment")
    hub.push("sst2@1", "org/sst2")

    with hub.attach(model, hub.Stack("de@2", "sst2@production")):
        model.generate(...)

Importing this package imports neither torch nor transformers; the first use of a name does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hub.errors import ConfigError, HubError

if TYPE_CHECKING:
    from hub.adapter import Adapter
    from hub.attachment import Attachment, attach
    from hub.bases import Base
    from hub.bottlenecks import Bottleneck, BottleneckConfig
    from hub.combining import Rule, combine
    from hub.composition import Average, BatchSplit, Fuse, Parallel, Split, Stack
    from hub.differences import DifferenceConfig, DifferenceMethod
    from hub.hookspecs import hookimpl
    from hub.keeping import Kept
    from hub.method import Method, Training, drop_neutral
    from hub.notation import parse_composition
    from hub.references import load
    from hub.registration import Registry
    from hub.remotes import pull, push
    from hub.sites import Site
    from hub.targets import choose_targets
    from hub.training import evaluate, train

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "Attachment",
    "Average",
    "Base",
    "BatchSplit",
    "Bottleneck",
    "BottleneckConfig",
    "ConfigError",
    "DifferenceConfig",
    "DifferenceMethod",
    "Fuse",
    "HubError",
    "Kept",
    "Method",
    "Parallel",
    "Registry",
    "Rule",
    "Site",
    "Split",
    "Stack",
    "Training",
    "attach",
    "choose_targets",
    "combine",
    "drop_neutral",
    "evaluate",
    "hookimpl",
    "load",
    "parse_composition",
    "pull",
    "push",
    "train",
]

_HOMES = {
    "Adapter": "adapter",
    "Attachment": "attachment",
    "Average": "composition",
    "Base": "bases",
    "BatchSplit": "composition",
    "Bottleneck": "bottlenecks",
    "BottleneckConfig": "bottlenecks",
    "DifferenceConfig": "differences",
    "DifferenceMethod": "differences",
    "Fuse": "composition",
    "Kept": "keeping",
    "Method": "method",
    "Parallel": "composition",
    "Registry": "registration",
    "Rule": "combining",
    "Site": "sites",
    "Split": "composition",
    "Stack": "composition",
    "Training": "method",
    "attach": "attachment",
    "choose_targets": "targets",
    "combine": "combining",
    "drop_neutral": "method",
    "evaluate": "training",
    "hookimpl": "hookspecs",
    "load": "references",
    "parse_composition": "notation",
    "pull": "remotes",
    "push": "remotes",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hub' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"hub.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
