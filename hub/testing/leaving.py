"""Promises about what is left behind: nothing; and about merging."""

from __future__ import annotations

import torch

import hub
from hub.errors import AttachError
from hub.testing.models import compute_logits
from hub.testing.subject import Subject


def leave_no_trace(subject: Subject) -> None:
    """Creating, attaching, disabling and detaching leave the base bit for bit as it was."""
    model = subject.build_model()
    bare = compute_logits(model)
    with subject.unchanged(model, "creating an adapter"):
        adapter = subject.create_trained(model)
    for trainable in (False, True):
        with subject.unchanged(model, f"attaching and detaching (trainable={trainable})"):
            with hub.attach(model, adapter, trainable=trainable) as attachment:
                adapted = compute_logits(model)
                with attachment.disabled():
                    subject.require_equal(compute_logits(model), bare, "the logits while disabled")
                subject.require_equal(
                    compute_logits(model), adapted, "the logits before and after being disabled"
                )
            subject.require(
                not torch.equal(adapted, bare), "with trained values it changes no logit"
            )


def merge_or_refuse(subject: Subject) -> None:
    """Merged, the model gives what it gave attached; or merging is refused with a reason."""
    model = subject.build_model()
    adapter = subject.create_trained(model)
    bare = compute_logits(model)
    with (
        subject.unchanged(model, "merging and detaching"),
        hub.attach(model, adapter, trainable=False) as attachment,
    ):
        expected = compute_logits(model)
        try:
            attachment.merge()
        except AttachError as error:
            text = str(error)
            subject.require(not subject.merges, f"merging was refused: {text}")
            subject.require(
                "\n" not in text and adapter.label in text,
                f"refusing to merge takes one line that names the adapter: {text}",
            )
            subject.require_equal(compute_logits(model), expected, "the logits after the refusal")
            return
        subject.require(subject.merges is not False, "it was merged; it should have refused")
        merged = compute_logits(model)
        subject.require_close(merged, expected, "the logits merged, and attached", 1e-4)
        subject.require(not torch.equal(merged, bare), "merged, it changes no logit")
        attachment.unmerge()
        subject.require_equal(compute_logits(model), expected, "the logits after unmerge")
