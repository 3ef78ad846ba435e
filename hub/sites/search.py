"""Finding the sites of a model, in one tiny forward, and remembering them."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from hub.errors import AttachError
from hub.sites.linears import get_sizes, has_sizes
from hub.sites.reading import read_sites
from hub.sites.site import Site
from hub.sites.ties import find_ties
from hub.sites.tracing import list_modules, trace_forward

_found: dict[Any, tuple[Site, ...]] = {}


def find_sites(model: nn.Module, example: Mapping[str, Any] | None = None) -> tuple[Site, ...]:
    """The sites of `model` in the order in which they run.

    They are found in one forward on 8 tokens, which leaves the model as it was, and remembered for
    models of the same class, configuration and modules; a model without a configuration is looked
    at every time. `example` is a batch, by keyword, for a model that can't run on token ids alone.
    A compiled model's sites are those of the model that was compiled.

    Raises AttachError where that forward fails, and on a model that carries other adapters.
    """
    model = unwrap_model(model)
    modules = list_modules(model)
    refuse_others(modules)
    key = _make_key(model, modules)
    if key is not None and key in _found:
        return _found[key]
    sites = read_sites(trace_forward(model, example), model, modules)
    if key is not None:
        _found[key] = sites
    return sites


def unwrap_model(model: Any) -> nn.Module:
    """The model that torch.compile wrapped, or the model itself. Raises AttachError on no model."""
    model = getattr(model, "_orig_mod", model)
    if not isinstance(model, nn.Module):
        raise AttachError(
            f"{model!r} is a {type(model).__name__} and not a loaded model; load the base with "
            "transformers first"
        )
    return model


def refuse_others(modules: Mapping[str, nn.Module]) -> None:
    """Raise AttachError where peft's adapters are in the model: their modules would be taken for
    the base's own."""
    for path, module in modules.items():
        if type(module).__module__.startswith("peft."):
            raise AttachError(
                f"this model carries adapters of peft ({path or 'it'} is a "
                f"{type(module).__name__}); take them off with unload(), fold them in with "
                "merge_and_unload(), or load the base anew"
            )


def _make_key(model: nn.Module, modules: dict[str, nn.Module]) -> Any:
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        return None
    shapes = [
        (path, type(module), get_sizes(module) if has_sizes(module) else None)
        for path, module in modules.items()
    ]
    ties = find_ties(modules)
    return type(model), repr(config.to_dict()), tuple(shapes), tuple(sorted(ties.items()))
