"""Promises about training: what changes, what does not, and that it is the same every time."""

from __future__ import annotations

import math
from typing import Any

import torch

import hub
from hub.testing.models import compute_logits
from hub.testing.subject import Subject, compute_loss, parse_contents

STEPS = 3  # a factor that starts behind two others at zero moves in the third


def train_the_adapter_alone(subject: Subject) -> None:
    """A few steps move every tensor that learns, from its start, and no bit of the base."""
    model = subject.build_model()
    adapter = subject.create(model)
    learning = subject.find_learning(model, adapter)
    started = {name: tensor.detach().clone() for name, tensor in adapter.tensors.items()}
    with subject.unchanged(model, "training"):
        loss = subject.train(model, adapter, STEPS)
    subject.require(math.isfinite(loss), f"the loss is {loss} after {STEPS} steps")
    for name, parameter in model.named_parameters():
        subject.require(parameter.grad is None, f"training left a gradient at the base's {name}")
    for name in learning:
        moved = not torch.equal(adapter.tensors[name], started[name])
        subject.require(
            moved or subject.is_inert(name),
            f"{name} is where it started after {STEPS} steps, so it never learns; make it a "
            "buffer, or give it a start from which its gradient is not zero",
        )


def learn_on_after_loading(subject: Subject) -> None:
    """An adapter that was saved and loaded goes on learning where it was asked to."""
    model = subject.build_model()
    adapter = parse_contents(subject.create_trained(model).format())
    before = {name: tensor.detach().clone() for name, tensor in adapter.tensors.items()}
    subject.train(model, adapter, 1)
    moved = [name for name, tensor in adapter.tensors.items() if not tensor.equal(before[name])]
    subject.require(bool(moved), "nothing of a loaded adapter moved in a training step")


def repeat_from_a_seed(subject: Subject) -> None:
    """The same seed gives the same start, the same outputs and the same training."""
    runs = []
    for _ in range(2):
        model = subject.build_model()
        adapter = subject.create(model)
        started = {name: tensor.detach().clone() for name, tensor in adapter.tensors.items()}
        torch.manual_seed(1)
        with hub.attach(model, adapter):
            first, second = compute_logits(model), compute_logits(model)
            subject.require_equal(second, first, "two forward passes in eval mode")
        subject.train(model, adapter, 2)
        runs.append((started, dict(adapter.tensors)))
    for part, when in enumerate(("at the start", "after two steps")):
        for name, tensor in runs[0][part].items():
            subject.require_equal(
                runs[1][part][name], tensor, f"{name} {when}, twice from the same seed"
            )


def checkpoint_without_a_difference(subject: Subject) -> None:
    """Gradient checkpointing, reentrant or not, gives the gradients of a plain backward pass."""
    plain = compute_gradients(subject, None)
    for reentrant in (False, True):
        checkpointed = compute_gradients(subject, reentrant)
        for name, gradient in plain.items():
            where = f"the gradient of {name} with checkpointing (use_reentrant={reentrant})"
            found = checkpointed[name]
            if gradient is None or found is None:
                subject.require(gradient is found, f"{where} is {found}, without it {gradient}")
            else:
                subject.require_close(found, gradient, where, 1e-4)


def compute_gradients(subject: Subject, reentrant: bool | None) -> dict[str, torch.Tensor | None]:
    """The gradients of every tensor that learns; None for no checkpointing."""
    model = subject.build_model()
    adapter = subject.create_trained(model)
    learning = subject.find_learning(model, adapter)
    if reentrant is not None:
        enable_checkpointing(model, reentrant)
    with hub.attach(model, adapter, trainable=True):
        model.train()
        torch.manual_seed(2)
        subject.backward(compute_loss(model))
    return {name: tensor.grad for name, tensor in learning.items()}


def enable_checkpointing(model: Any, reentrant: bool) -> None:
    """As transformers calls it in this release."""
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": reentrant})


def work_in_half_precision(subject: Subject) -> None:
    """On a base in bfloat16 an adapter learns in float32, serves in bfloat16, and stays close."""
    full = subject.build_model()
    adapter = subject.create_trained(full)
    bare = compute_logits(full)
    with hub.attach(full, adapter, trainable=False):
        expected = compute_logits(full)
    model = subject.build_model().to(torch.bfloat16)
    rounding = float((compute_logits(model).float() - bare).abs().max() / bare.abs().max())
    with hub.attach(model, adapter, trainable=False):
        served = compute_logits(model)
    subject.require(
        served.dtype == torch.bfloat16, f"the logits of a bfloat16 base are {served.dtype}"
    )
    subject.require_close(
        served.float(), expected, "the logits in bfloat16, and in float32", 0.1 + 4 * rounding
    )
    with hub.attach(model, adapter, trainable=True) as attachment:
        subject.backward(compute_loss(model))
        for parameter in attachment.parameters():
            subject.require(
                parameter.dtype == torch.float32, f"it learns in {parameter.dtype}, not float32"
            )
    for name, tensor in adapter.tensors.items():
        subject.require(
            tensor.grad is None or bool(tensor.grad.isfinite().all()),
            f"the gradient of {name} on a bfloat16 base is not finite",
        )
