"""What a hook does to the kinds of output that modules give."""

from __future__ import annotations

import copy
import pickle
import threading
import weakref
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from hub.attachment.effects import (
    Acting,
    Effect,
    InputEffect,
    KeywordEffect,
    KeywordInputEffect,
    Switch,
    hang_effects,
)
from hub.sites import Site

Pair = namedtuple("Pair", ["first", "second"])
ONE, TWO = torch.tensor([1.0]), torch.tensor([2.0])


class Plus(nn.Module):
    """Adds its input to the output."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + x


def make(effect: Any, *chain: nn.Module) -> Any:
    """The hook with a chain to run."""
    effect.acting.chains = (chain or (Plus(),),) * 2
    return effect


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
    changed = make(Effect(Switch(), Acting(), 1))(nn.Identity(), (ONE,), output)
    assert type(changed) is type(output)
    items = list(changed.values()) if isinstance(changed, dict) else list(changed)
    assert [item.item() for item in items] == [1.0, 3.0]
    before = list(output.values()) if isinstance(output, dict) else list(output)
    assert [item.item() for item in before] == [1.0, 2.0]


def test_an_input_by_keyword_is_found() -> None:
    effect = make(KeywordEffect(Switch(), Acting(), name="states"), Plus(), Plus())
    assert effect(nn.Identity(), (), {"states": ONE}, TWO).item() == 4.0
    assert effect(nn.Identity(), (ONE,), {}, TWO).item() == 4.0


def test_a_switched_off_effect_leaves_the_output() -> None:
    switch = Switch()
    switch.on = False
    assert make(Effect(switch, Acting()))(nn.Identity(), (ONE,), TWO) is None
    assert (
        make(KeywordEffect(switch, Acting(), name="x"))(nn.Identity(), (), {"x": ONE}, TWO) is None
    )


class Double(nn.Module):
    """Doubles its site's input."""

    def before(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


class Echo(nn.Module):
    """Gives three times what went in."""

    def forward(self, x: torch.Tensor, flag: int = 0) -> torch.Tensor:
        return 3 * x + flag


class Layer(nn.Module):
    """A stream to which a branch of a doubled stream is added."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Flatten(0)
        self.branch = Echo()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.branch(x=2 * self.norm(x))
        return x + y.reshape(x.shape)


class PlusStream(Plus):
    """Adds the stream to the output."""

    reads_stream = True


@pytest.mark.parametrize("name", [None, "x"])
def test_what_changes_the_input_comes_before_what_changes_the_output(name: str | None) -> None:
    model = nn.ModuleDict({"echo": Echo()})
    target = model["echo"]
    site = Site("projection", "echo", "other", None, 1, 1, input_name=name)
    acting = Acting()
    hang = partial(hang_effects, model, site, Switch(), acting)
    handles = hang(inputs=True, outputs=True, streams=False)
    acting.chains = (Double(), Double()), (Plus(),)
    call = {} if name is None else {name: ONE}
    given = (ONE,) if name is None else ()
    # Plus sees what the module saw: 3 * 4 + 4, and the other argument is left alone.
    assert target(*given, **call).item() == 16.0
    assert target(*given, flag=1, **call).item() == 17.0
    for handle in handles:
        handle.remove()
    assert target(ONE).item() == 3.0


def test_a_module_that_only_changes_the_input_hangs_no_second_hook() -> None:
    model = nn.ModuleDict({"echo": Echo()})
    site = Site("projection", "echo", "other", None, 1, 1)
    acting = Acting()
    hang = partial(hang_effects, model, site, Switch(), acting)
    assert len(hang(inputs=True, outputs=False, streams=False)) == 1
    acting.chains = (Double(),), ()
    assert model["echo"](ONE, 1).item() == 7.0


def make_streamed() -> tuple[Layer, Switch, int]:
    layer, switch = Layer(), Switch()
    site = Site("branch", "branch", "feedforward", 0, 1, 1, input_name="x", stream="norm")
    acting = Acting()
    hang = partial(hang_effects, layer, site, switch, acting)
    handles = hang(inputs=False, outputs=True, streams=True)
    acting.chains = (), (Plus(), PlusStream())
    return layer, switch, len(handles)


def test_a_module_at_a_branch_can_get_the_stream() -> None:
    layer, switch, hooks = make_streamed()
    assert hooks == 2
    x = torch.tensor([[1.0]])
    # 1 + (6 + what went in, 2 + the stream, 1)
    assert layer(x).item() == 10.0
    switch.on = False
    assert layer(x).item() == 7.0


def test_threads_keep_their_streams_apart() -> None:
    layer, _, _ = make_streamed()
    both = threading.Barrier(2)

    def wait(module: nn.Module, args: Any) -> None:
        both.wait(10)

    layer.branch.register_forward_pre_hook(wait)
    with ThreadPoolExecutor(2) as pool:
        given = [torch.tensor([[1.0]]), torch.tensor([[10.0]])]
        assert [value.item() for value in pool.map(layer, given)] == [10.0, 100.0]


@pytest.mark.parametrize("copy", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_has_a_stream_of_its_own(copy: Any) -> None:
    layer, switch, _ = make_streamed()
    other = copy(layer)
    switch.on = False
    assert other(torch.tensor([[1.0]])).item() == 10.0


def test_the_stream_is_let_go_after_the_branch() -> None:
    layer, _, _ = make_streamed()
    x = torch.tensor([[1.0]])
    alive = weakref.ref(x)
    layer(x)
    del x
    assert alive() is None


def test_a_switched_off_effect_leaves_the_input() -> None:
    switch = Switch()
    switch.on = False
    assert make(InputEffect(switch, Acting()), Double())(nn.Identity(), (ONE,)) is None
    assert (
        make(KeywordInputEffect(switch, Acting(), name="x"), Double())(
            nn.Identity(), (), {"x": ONE}
        )
        is None
    )


def test_an_input_by_keyword_is_found_beside_what_is_no_tensor() -> None:
    effect = make(KeywordEffect(Switch(), Acting(), name="x"))
    assert effect(nn.Identity(), (torch.Size([1]),), {"x": ONE}, TWO).item() == 3.0
    early = make(KeywordInputEffect(Switch(), Acting(), name="x"), Double())
    shape = torch.Size([1])
    assert early(nn.Identity(), (shape,), {"x": ONE}) == ((shape,), {"x": TWO})


def test_an_input_by_keyword_can_come_by_position() -> None:
    effect = make(KeywordInputEffect(Switch(), Acting(), name="x"), Double())
    assert effect(nn.Identity(), (ONE, 5), {}) == ((TWO, 5), {})
