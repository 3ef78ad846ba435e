"""What a promise is tested on: one method with its options, on one tiny model."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import hub
from hub.discovery import installed_methods
from hub.errors import HubError
from hub.testing.models import build_tiny, make_inputs, make_labels
from hub.testing.snapshots import Snapshot, take_snapshot


class BrokenPromise(AssertionError):
    """A method does not do what every method does. The message names it, the model and the part."""


@cache
def build_kind(kind: str) -> Any:
    """The tiny model of a kind: "llama", or with its task, "bert/classification"."""
    name, _, task = kind.partition("/")
    return build_tiny(name, task or None)


@dataclass(frozen=True)
class Subject:
    """A method on a model.

    method: its name. kind: the model's. options: what the adapters are created with.
    build: gives the model of a kind, the same weights every time; it is never changed.
    shake: how far an adapter's values are moved, at random, to stand for trained ones.
    inert: what can't act, and why: a pattern for the beginning of a tensor's name, and the reason.
    merges, combines: whether `merge`, or `hub.combine`, must work; None when either will do.
    """

    method: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    build: Callable[[str], Any] = build_kind
    shake: float = 0.1
    inert: Mapping[str, str] = field(default_factory=dict)
    merges: bool | None = None
    combines: bool | None = None

    def require(self, holds: bool, fault: str) -> None:
        """Raise BrokenPromise, in the subject's name, unless it holds."""
        if not holds:
            raise BrokenPromise(f"{self.method} on {self.kind}: {fault}")

    def build_model(self) -> Any:
        """A model of its own, in eval mode."""
        return copy.deepcopy(self.build(self.kind))

    def create(self, model: Any, seed: int = 0) -> hub.Adapter:
        """A new adapter."""
        torch.manual_seed(seed)
        return hub.Adapter.create(self.method, model, **self.options)

    def create_trained(self, model: Any, seed: int = 0) -> hub.Adapter:
        """A new adapter none of whose values is at its start any more."""
        adapter = self.create(model, seed)
        generator = torch.Generator().manual_seed(seed + 7)
        with torch.no_grad():
            for tensor in self.find_learning(model, adapter).values():
                tensor.add_(torch.randn(tensor.shape, generator=generator) * self.shake)
        return adapter

    def find_learning(self, model: Any, adapter: hub.Adapter) -> dict[str, nn.Parameter]:
        """The adapter's tensors that learn, by name; the others are buffers."""
        with hub.attach(model, adapter, trainable=True) as attachment:
            learning = {id(parameter) for parameter in attachment.parameters()}
        found = {n: t for n, t in adapter.tensors.items() if id(t) in learning}
        self.require(bool(found), "nothing of a new adapter learns; give its modules nn.Parameter")
        return found

    def is_inert(self, name: str) -> bool:
        """Whether the author said that this tensor or site can't act."""
        return any(re.match(pattern, name) for pattern in self.inert)

    @contextmanager
    def unchanged(self, model: Any, while_: str) -> Iterator[Snapshot]:
        """Require that the model is bit for bit the same after as before."""
        before = take_snapshot(model)
        yield before
        change = before.find_change(take_snapshot(model))
        self.require(change is None, f"{while_} left the base model changed: {change}")

    def backward(self, loss: torch.Tensor) -> None:
        """Ask for the gradients of a loss."""
        self.require(loss.requires_grad, "the loss does not depend on anything that learns")
        loss.backward()  # type: ignore[no-untyped-call]

    def train(self, model: Any, adapter: hub.Adapter, steps: int) -> float:
        """Attach the adapter and take Adam's steps on one batch, with what the method itself adds
        to training; the last loss."""
        with hub.attach(model, adapter, trainable=True) as attachment:
            part = installed_methods().call(
                "hub_train",
                adapter.method,
                adapter=adapter,
                modules=attachment.modules(adapter),
                steps=steps,
            )
            optimizer = torch.optim.Adam(attachment.parameters(), lr=1e-2)
            model.train()
            for step in range(1, steps + 1):
                optimizer.zero_grad()
                loss = compute_loss(model)
                if part is not None and part.penalty is not None:
                    loss = loss + part.penalty()
                self.backward(loss)
                optimizer.step()
                if part is not None and part.after_step is not None:
                    part.after_step(step)
            model.eval()
        return loss.item()

    def require_refusal(
        self, kind: type[HubError], act: Callable[[], Any], what: str, *names: str
    ) -> None:
        """Require that `act` raises an error of this kind, one line that has all the names."""
        try:
            act()
        except kind as error:
            text = str(error)
        except Exception as error:
            shown = f"{type(error).__name__}: {error}"
            self.require(False, f"{what} raised {shown}; it must raise {kind.__name__}")
        else:
            self.require(False, f"{what} was accepted; it must raise {kind.__name__}")
        self.require("\n" not in text and bool(text), f"{what}: the error is not one line: {text}")
        for name in names:
            self.require(name in text, f"{what}: the error does not name {name!r}: {text}")

    def require_equal(self, found: torch.Tensor, expected: torch.Tensor, fault: str) -> None:
        """Require every bit to be equal."""
        self.require(
            found.shape == expected.shape, f"{fault}: {found.shape} instead of {expected.shape}"
        )
        apart = measure_distance(found, expected)
        self.require(torch.equal(found, expected), f"{fault}: they differ by up to {apart:.3g}")

    def require_close(
        self, found: torch.Tensor, expected: torch.Tensor, fault: str, share: float = 1e-5
    ) -> None:
        """Require the largest difference to be at most this share of the largest value."""
        self.require(
            found.shape == expected.shape, f"{fault}: {found.shape} instead of {expected.shape}"
        )
        apart, scale = measure_distance(found, expected), float(expected.abs().max())
        self.require(
            apart <= share * scale,  # also false where either is not a number
            f"{fault}: they differ by up to {apart:.3g}, where the largest value is {scale:.3g}",
        )


def measure_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference between two tensors of one shape."""
    return (
        float((one.detach().double() - other.detach().double()).abs().max()) if one.numel() else 0.0
    )


def parse_contents(contents: Mapping[str, bytes]) -> hub.Adapter:
    """The adapter that these files hold, by name, as it is loaded from a folder."""
    return hub.Adapter.parse(contents, Path("adapter"))


def compute_loss(model: Any, rows: int = 2, length: int = 7) -> torch.Tensor:
    """The model's own loss on a small batch."""
    inputs = make_inputs(model, rows, length)
    loss: torch.Tensor = model(**inputs, labels=make_labels(model, inputs)).loss
    return loss
