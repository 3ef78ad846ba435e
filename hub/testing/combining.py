"""The promise about combining: several adapters become one that is what their weights say."""

from __future__ import annotations

from typing import Any

import torch

import hub
from hub.testing.models import compute_logits
from hub.testing.subject import Subject, parse_contents


def combine_or_refuse(subject: Subject) -> None:
    """One adapter at weight 1 is itself, at weight 0 nothing, and the mean of two does not depend
    on their order; it is saved and loaded like any. Or combining is refused with a reason."""
    model = subject.build_model()
    one, other = (subject.create_trained(model, seed) for seed in (0, 1))
    kept = {name: tensor.detach().clone() for name, tensor in one.tensors.items()}
    try:
        mean = hub.combine([one, other], how="linear")
    except hub.ConfigError as error:
        text = str(error)
        subject.require(not subject.combines, f"combining was refused: {text}")
        subject.require(
            "\n" not in text and subject.method in text,
            f"refusing to combine takes one line that names the method: {text}",
        )
        return
    subject.require(subject.combines is not False, "it was combined; it should have refused")
    for name, tensor in one.tensors.items():
        subject.require_equal(tensor, kept[name], f"{name} of a part, after combining")
    bare = compute_logits(model)
    found = answer(model, parse_contents(mean.format()))
    subject.require(bool(found.isfinite().all()), "the mean of two adapters gives no number")
    swapped = hub.combine([other, one], how="linear")
    subject.require_close(
        answer(model, swapped), found, "the logits of the mean of two, the other way round", 1e-4
    )
    same = hub.combine([one], how="linear", weights=[1.0])
    subject.require_close(
        answer(model, same), answer(model, one), "the logits of one adapter at weight 1", 1e-4
    )
    prove_neutral(subject, model, one, bare)


def prove_neutral(subject: Subject, model: Any, adapter: hub.Adapter, bare: torch.Tensor) -> None:
    """Require that an adapter at weight 0 changes nothing, unless it is refused, brings a head or
    puts positions in front, which nothing makes without effect."""
    with hub.attach(model, adapter, trainable=False) as attachment:
        modules = attachment.modules(adapter).values()
        if adapter.heads or any(hasattr(module, "extend") for module in modules):
            return
    try:
        nothing = hub.combine([adapter], how="linear", weights=[0.0])
    except hub.ConfigError:
        return
    subject.require_close(
        answer(model, nothing), bare, "the logits with one adapter at weight 0, and the bare ones"
    )


def answer(model: Any, adapter: hub.Adapter) -> torch.Tensor:
    """The logits with an adapter that serves."""
    with hub.attach(model, adapter, trainable=False):
        return compute_logits(model)
