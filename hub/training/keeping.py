"""Keeping a model, adapters and the random numbers as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hub.adapter import Adapter


@contextmanager
def keep_model(model: Any) -> Iterator[None]:
    """Put back each module's mode, and the attributes of the model and its configuration.

    A forward pass with labels writes into the configuration, the Trainer and generation do too,
    and accelerate leaves a mark on the model.
    """
    modes = [(module, module.training) for module in model.modules()]
    owners = [model, model.config, model.config.get_text_config()]
    attributes = [dict(vars(owner)) for owner in owners]
    try:
        yield
    finally:
        for owner, before in zip(owners, attributes, strict=True):
            vars(owner).clear()
            vars(owner).update(before)
        for module, mode in modes:
            module.training = mode


@contextmanager
def keep_on_error(adapters: Sequence[Adapter]) -> Iterator[None]:
    """Put back the adapters' tensors and what they say of themselves, when anything is raised."""
    tensors = [(p, p.detach().clone()) for adapter in adapters for p in adapter.tensors.values()]
    said = [dict(vars(adapter)) for adapter in adapters]
    try:
        yield
    except BaseException:
        for parameter, before in tensors:
            parameter.data = before
        for adapter, words in zip(adapters, said, strict=True):
            vars(adapter).update(words)
        raise


@contextmanager
def keep_random_state(model: nn.Module) -> Iterator[None]:
    """Let the caller's random numbers go on as if nothing had been drawn in between."""
    import numpy as np

    state, array_state = random.getstate(), np.random.get_state()
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(array_state)
