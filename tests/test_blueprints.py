"""What is kept of a configuration is kept of what it said, and not of what it may say later."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hub
from tests.snapshots import run, shake_adapter
from tests.tiny import build_tiny


@pytest.fixture
def model() -> Any:
    return build_tiny("llama")


def answer(model: Any, adapter: hub.Adapter) -> torch.Tensor:
    with hub.attach(model, adapter, trainable=False):
        return run(model)


def make(model: Any, r: int, alpha: float) -> hub.Adapter:
    """Of a rank that no other test has, whose blueprints may be kept still."""
    adapter = hub.Adapter.create("lora", model, r=r, alpha_pattern={"q_proj": alpha})
    shaken: hub.Adapter = shake_adapter(adapter)
    return shaken


def test_a_table_that_changes_in_a_configuration_is_heeded(model: Any) -> None:
    adapter = make(model, 2, 40.0)
    first = answer(model, adapter)
    adapter.config.alpha_pattern["q_proj"] = 4.0
    second = answer(model, adapter)
    assert not torch.allclose(first, second)
    assert torch.equal(second, answer(model, make(model, 2, 4.0)))
    adapter.config.alpha_pattern["q_proj"] = 40.0
    assert torch.equal(answer(model, adapter), first)


def test_another_adapter_gets_what_its_own_configuration_says(model: Any) -> None:
    one, two = make(model, 3, 40.0), make(model, 3, 4.0)
    first = answer(model, one)
    one.config.alpha_pattern["q_proj"] = 4.0
    assert not torch.allclose(answer(model, two), first)


def test_a_table_that_was_given_may_change_later(model: Any) -> None:
    table = {"q_proj": 40.0}
    adapter = hub.Adapter.create("lora", model, alpha_pattern=table)
    table["q_proj"] = 4.0
    assert adapter.config.alpha_pattern == {"q_proj": 40.0}
