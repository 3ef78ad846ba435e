"""What a hook does to the kinds of output that modules give."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from hub.attachment.effects import Effect, KeywordEffect, Switch

Pair = namedtuple("Pair", ["first", "second"])
ONE, TWO = torch.tensor([1.0]), torch.tensor([2.0])


class Plus(nn.Module):
    """Adds its input to the output."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + x


@pytest.mark.parametrize(
    "output",
    [
        (ONE, TWO),
        [ONE, TWO],
        Pair(ONE, TWO),
        {"first": ONE, "second": TWO},
        BaseModelOutput(last_hidden_state=ONE, hidden_states=TWO),
    ],
    ids=lambda output: type(output).__name__,
)
def test_one_element_changes_and_the_kind_of_output_stays(output: Any) -> None:
    changed = Effect([Plus()], Switch(), 1)(nn.Identity(), (ONE,), output)
    assert type(changed) is type(output)
    items = list(changed.values()) if isinstance(changed, dict) else list(changed)
    assert [item.item() for item in items] == [1.0, 3.0]
    before = list(output.values()) if isinstance(output, dict) else list(output)
    assert [item.item() for item in before] == [1.0, 2.0]


def test_an_input_by_keyword_is_found() -> None:
    effect = KeywordEffect([Plus(), Plus()], Switch(), name="states")
    assert effect(nn.Identity(), (), {"states": ONE}, TWO).item() == 4.0
    assert effect(nn.Identity(), (ONE,), {}, TWO).item() == 4.0


def test_a_switched_off_effect_leaves_the_output() -> None:
    switch = Switch()
    switch.on = False
    assert Effect([Plus()], switch)(nn.Identity(), (ONE,), TWO) is None
    assert KeywordEffect([Plus()], switch, name="x")(nn.Identity(), (), {"x": ONE}, TWO) is None
