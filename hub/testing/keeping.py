"""Promises about files, configurations and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

import hub
from hub.discovery import installed_methods
from hub.errors import AttachError, BaseMismatch
from hub.sites import find_sites
from hub.testing.models import compute_logits
from hub.testing.subject import Subject, parse_contents


def give_the_same_after_loading(subject: Subject) -> None:
    """A saved adapter loads with the same values and gives the same logits on another copy."""
    model = subject.build_model()
    adapter = subject.create_trained(model)
    with hub.attach(model, adapter, trainable=False):
        expected = compute_logits(model)
    subject.require(
        not torch.equal(expected, compute_logits(model)), "with trained values it changes no logit"
    )
    loaded = parse_contents(adapter.format())
    fresh = subject.build_model()
    with hub.attach(fresh, loaded):
        subject.require_equal(compute_logits(fresh), expected, "the logits after loading")


def write_the_same_after_loading(subject: Subject) -> None:
    """Saving what was loaded gives the same bytes."""
    model = subject.build_model()
    contents = subject.create_trained(model).format()
    loaded = parse_contents(contents)
    for name, data in loaded.format().items():
        same = data == contents[name] if name != "hub.json" else True
        subject.require(same, f"{name} is another one after save, load and save")


def keep_its_configuration(subject: Subject) -> None:
    """A configuration says the same after its files, and means the same sites."""
    model = subject.build_model()
    method = installed_methods().get(subject.method)
    asked = method.make_config(**subject.options)
    adapter = subject.create(model)
    read = parse_contents(adapter.format()).config
    subject.require(
        read == adapter.config,
        f"the configuration reads back as {read}, it was {adapter.config}",
    )
    sites = find_sites(model)
    before, after = (method.choose_sites(sites, config) for config in (asked, adapter.config))
    subject.require(
        set(before) == set(after),
        f"the configuration that is kept means {len(after)} sites, what was asked for "
        f"{len(before)}, and they are not the same",
    )


def refuse_what_does_not_fit(subject: Subject) -> None:
    """A wrong option, base or tensor is an error of one line that names the adapter, and leaves
    the model as it was."""
    model = subject.build_model()
    other = scale_weights(subject.build_model())
    adapter = subject.create(model)
    name = next(name for name in adapter.tensors if not name.startswith(adapter.heads))
    tensors = dict(adapter.tensors)
    del tensors[name]
    cases: dict[str, tuple[Mapping[str, torch.Tensor], str]] = {
        "a tensor that is missing": (tensors, name),
        "a tensor of another shape": ({**adapter.tensors, name: torch.zeros(2, 3, 5, 7)}, name),
        "a tensor too many": ({**adapter.tensors, "no.such.place": torch.ones(1)}, "no.such.place"),
    }
    with subject.unchanged(model, "an error"), subject.unchanged(other, "an error"):
        wrong = {**subject.options, "no_such_option": 1}
        subject.require_refusal(
            hub.ConfigError,
            lambda: hub.Adapter.create(subject.method, model, **wrong),
            "an unknown option",
            subject.method,
            "no_such_option",
        )
        subject.require_refusal(
            BaseMismatch, lambda: hub.attach(other, adapter), "another base", subject.method
        )
        for what, (changed, word) in cases.items():
            bad = hub.Adapter(
                subject.method, adapter.config, changed, heads=adapter.heads, base=adapter.base
            )
            subject.require_refusal(
                AttachError, partial(hub.attach, model, bad), what, subject.method, word
            )


def refuse_with_a_reason(subject: Subject, reason: str) -> None:
    """Where it can't act, creating an adapter says why and leaves the model as it was.

    reason: a word that the error must have.
    """
    model = subject.build_model()
    with subject.unchanged(model, "a refusal"):
        subject.require_refusal(
            hub.ConfigError, lambda: subject.create(model), "an adapter", subject.method, reason
        )


def scale_weights(model: Any) -> Any:
    """The same architecture with other weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5).add_(0.01)
    return model
