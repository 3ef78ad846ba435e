"""Promises about outputs: shapes, padding, rows, generation, company."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch

import hub
from hub.attachment.effects import walk_tensors
from hub.testing.models import (
    compute_logits,
    is_classifier,
    make_inputs,
    pad_rows,
    pick_rows,
)
from hub.testing.subject import Subject, compute_loss, measure_distance

Compare = Callable[[Any], Iterator[tuple[str, torch.Tensor, torch.Tensor]]]


def keep_every_shape(subject: Subject) -> None:
    """Logits and hidden states have the bare model's shapes and types."""
    model = subject.build_model()
    adapter = subject.create_trained(model)

    def read() -> list[tuple[torch.Size, torch.dtype]]:
        with torch.no_grad():
            output = model(**make_inputs(model), output_hidden_states=True)
        kept = [part for name, part in output.items() if name != "past_key_values"]
        return [(tensor.shape, tensor.dtype) for tensor in walk_tensors(kept)]

    bare = read()
    with hub.attach(model, adapter):
        found = read()
    subject.require(found == bare, f"its outputs are {found}, the bare model's {bare}")


def ignore_padding(subject: Subject) -> None:
    """Padding on either side does not change what a row gets, where the bare model's does not."""
    for side in ("right", "left"):

        def compare(model: Any, side: str = side) -> Iterator[tuple[str, Any, Any]]:
            inputs = make_inputs(model)
            lengths = [7, 4]
            together = compute_logits(model, **pad_rows(model, inputs, lengths, side))
            for row, length in enumerate(lengths):
                one = pick_rows(inputs, row)
                alone = compute_logits(model, **pad_rows(model, one, [length], side))[0]
                found = together[row]
                if is_per_token(model):
                    start = 0 if side == "right" else max(lengths) - length
                    found = found[start : start + length]
                yield f"row {row} of {length} tokens, padded on the {side}", found, alone

        hold_against_bare(subject, compare)


def keep_rows_apart(subject: Subject) -> None:
    """A row gets the same whatever stands in the other rows."""

    def compare(model: Any) -> Iterator[tuple[str, Any, Any]]:
        inputs = make_inputs(model, rows=3)
        together = compute_logits(model, **inputs)
        for row in range(3):
            alone = compute_logits(model, **pick_rows(inputs, row))[0]
            yield f"row {row} of a batch", together[row], alone

    hold_against_bare(subject, compare)


def generate_with_and_without_cache(subject: Subject) -> None:
    """Generating with the cache gives the tokens and logits that it gives without; a row that is
    padded on the left, as a batch of prompts is, gets what it gets alone."""

    def compare(model: Any) -> Iterator[tuple[str, Any, Any]]:
        inputs = make_inputs(model)
        cached, plain = (generate(model, inputs, use_cache=used) for used in (True, False))
        yield "the tokens with a cache", cached.sequences, plain.sequences
        for step, (found, expected) in enumerate(zip(cached.logits, plain.logits, strict=True)):
            yield f"the logits of step {step} with a cache", found, expected
        if is_per_token(model):
            short = {name: tensor[:, 3:] for name, tensor in pick_rows(inputs, 1).items()}
            both = pad_rows(model, {"input_ids": inputs["input_ids"].flip(1)}, [7, 4], "left")
            both["input_ids"][1, 3:] = short["input_ids"][0]
            both.pop("position_ids", None)  # generate counts them itself
            together, alone = generate(model, both), generate(model, short)
            for step, (found, expected) in enumerate(
                zip(together.logits, alone.logits, strict=True)
            ):
                yield f"the logits of step {step} in a padded batch", found[1], expected[0]

    hold_against_bare(subject, compare)


def generate(model: Any, inputs: dict[str, Any], **options: Any) -> Any:
    """Five tokens, the likeliest each time, with their logits."""
    options |= dict(max_new_tokens=5, min_new_tokens=5, do_sample=False)
    with torch.no_grad():
        return model.generate(**inputs, **options, output_logits=True, return_dict_in_generate=True)


def hold_against_bare(subject: Subject, compare: Compare) -> None:
    """Require two ways to agree with the adapter as far as they do without.

    Where they are far apart on the bare model there is nothing to be held to.
    """
    model = subject.build_model()
    adapter = subject.create_trained(model)
    bare = [measure_distance(a, b) / float(b.abs().max()) for _, a, b in compare(model)]
    with hub.attach(model, adapter, trainable=False):
        for apart, (what, found, expected) in zip(bare, compare(model), strict=True):
            if apart < 1e-3:
                subject.require_close(found, expected, f"{what}, and without", 1e-5 + 10 * apart)


def stand_beside_lora(subject: Subject) -> None:
    """In a stack with LoRA, in either order, both act and both learn."""
    model = subject.build_model()
    adapter = subject.create_trained(model)
    lora = create_lora(model, adapter)
    alone = []
    for one in (adapter, lora):
        with hub.attach(model, one, trainable=False):
            alone.append(compute_logits(model))
    for stack in ((adapter, lora), (lora, adapter)):
        order = " then ".join(one.method for one in stack)
        with subject.unchanged(model, f"a stack of {order}"):
            with hub.attach(model, hub.Stack(*stack), trainable=False):
                both = compute_logits(model)
            subject.require(
                bool(both.isfinite().all()), f"{order} gives logits that are not finite"
            )
            for logits, one in zip(alone, (adapter, lora), strict=True):
                subject.require(
                    not torch.equal(both, logits),
                    f"{order} gives what {one.method} gives alone, so the other does not act",
                )
            with hub.attach(model, hub.Stack(*stack), trainable=True):
                subject.backward(compute_loss(model))
        for one in stack:
            gradients = [tensor.grad for tensor in one.tensors.values() if tensor.grad is not None]
            subject.require(
                any(bool(gradient.any()) for gradient in gradients),
                f"{order}: {one.method} gets no gradient",
            )
            for tensor in one.tensors.values():
                tensor.grad = None


def create_lora(model: Any, beside: hub.Adapter) -> hub.Adapter:
    """A LoRA adapter with an effect, at the same projections where `beside` acts at any.

    It has no head of its own, since a model answers with one.
    """
    with hub.attach(model, beside) as attachment:
        paths = [
            site.path
            for site in attachment.modules(beside)
            if site.kind == "projection" and site.role != "embedding"
        ]
    torch.manual_seed(5)
    lora = hub.Adapter.create("lora", model, r=2, targets=paths or "all")
    heads = tuple(f"{path}." for path in lora.heads)
    tensors = {
        name: tensor.detach() + 0.1 * torch.randn(tensor.shape)
        for name, tensor in lora.tensors.items()
        if not name.startswith(heads)
    }
    return hub.Adapter("lora", lora.config, tensors, base=lora.base, task_type=lora.task_type)


def copy_with_the_model(subject: Subject) -> None:
    """A deep copy of an attached model gives the same and stands alone."""
    model = subject.build_model()
    adapter = subject.create_trained(model)
    attachment = hub.attach(model, adapter, trainable=True)
    expected = compute_logits(model)
    twin = copy.deepcopy(model)
    attachment.detach()
    subject.require_equal(compute_logits(twin), expected, "a deep copy of an attached model")
    carried = hub.Attachment.of(twin)
    assert carried is not None
    with torch.no_grad():
        for parameter in carried.parameters():
            parameter.add_(1.0)
    with hub.attach(model, adapter, trainable=True):
        subject.require_equal(
            compute_logits(model), expected, "the original, after its deep copy was changed"
        )


def is_per_token(model: Any) -> bool:
    """Whether the logits are those of the tokens that are padded."""
    return not is_classifier(model) and not model.config.is_encoder_decoder
