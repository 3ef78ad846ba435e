"""The promise about sites: wherever a method claims to act, it does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

import hub
from hub.testing.models import compute_logits, make_inputs, make_labels
from hub.testing.subject import Subject, measure_distance

# Long enough for every expert of a tiny mixture to be given a token.
ROWS, LENGTH = 4, 16
# What rounding alone may move the logits by, as a share of the largest.
NOISE = {torch.float64: 1e-8, torch.float32: 1e-6}
# What it may give for a gradient that is zero, as a share of the largest one.
LEAST = {torch.float64: 1e-8, torch.float32: 1e-7}


def act_at_every_site(subject: Subject) -> None:
    """Every tensor gets a gradient, and every site's own tensors change what the model gives."""
    model = widen_model(subject.build_model())
    adapter = subject.create_trained(model)
    inputs = make_inputs(model, ROWS, LENGTH)
    with hub.attach(model, adapter, trainable=True) as attachment:
        sites = attachment.modules(adapter)
        subject.require(bool(sites), "it acts at no site; refuse with ConfigError in choose_sites")
        prove_gradients(subject, model, inputs, sites)
        prove_effects(subject, model, inputs, sites)


def prove_gradients(
    subject: Subject, model: Any, inputs: dict[str, Any], sites: dict[hub.Site, nn.Module]
) -> None:
    """Require a gradient that is not zero, nor only rounding, for every parameter at every site."""
    named = {
        f"{site.path}.{name}": parameter
        for site, module in sites.items()
        for name, parameter in module.named_parameters()
    }
    subject.backward(model(**inputs, labels=make_labels(model, inputs)).loss)
    gradients = {name: parameter.grad for name, parameter in named.items()}
    for parameter in named.values():  # what sites share is there more than once
        parameter.grad = None
    sizes = {
        name: 0.0 if gradient is None else float(gradient.abs().max())
        for name, gradient in gradients.items()
    }
    least = LEAST[next(model.parameters()).dtype] * max(sizes.values())
    for name, size in sizes.items():
        subject.require(
            least < size < float("inf") or subject.is_inert(name),
            f"the gradient of {name} is {size}, so nothing that it holds changes the loss",
        )


def prove_effects(
    subject: Subject, model: Any, inputs: dict[str, Any], sites: dict[hub.Site, nn.Module]
) -> None:
    """Require that moving one site's own tensors moves the logits."""
    expected = compute_logits(model, **inputs)
    least = NOISE[expected.dtype] * float(expected.abs().max())
    seen = Counter(id(p) for module in sites.values() for p in set(module.parameters()))
    for site, module in sites.items():
        own = [p for p in module.parameters() if seen[id(p)] == 1]
        with moved(own) if own else silenced(module):
            apart = measure_distance(compute_logits(model, **inputs), expected)
        subject.require(
            apart > least or subject.is_inert(site.path),
            f"it claims to act at {site.path} (a {site.kind} of role {site.role}), and changing "
            f"its tensors there moves no logit (by more than {apart:.1g}); leave the site out in "
            "choose_sites",
        )


@contextmanager
def moved(parameters: list[nn.Parameter]) -> Iterator[None]:
    """The parameters with other values for a moment."""
    kept = [parameter.detach().clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.5)
    yield
    with torch.no_grad():
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)


@contextmanager
def silenced(module: nn.Module) -> Iterator[None]:
    """A module whose parameters are all shared, without an effect of its own for a moment."""
    plain: Any = module
    if hasattr(plain, "extend"):
        real = plain.extend
        plain.extend = lambda: torch.zeros_like(real())
        yield
        del plain.extend
    else:
        plain.forward = lambda x, y: y
        yield
        del plain.forward


def widen_model(model: Any) -> Any:
    """The model in float64, where a small effect is no rounding; as it is where it can't be."""
    wide = model.double()
    try:
        compute_logits(wide)
    except RuntimeError:
        return model.float()
    return wide
