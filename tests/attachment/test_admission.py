"""What a composition names is there once, by whatever names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import hub
from hub.errors import AttachError
from tests.snapshots import run, shake_adapter
from tests.tiny import build_tiny


@pytest.fixture
def model() -> Any:
    return build_tiny("llama")


@pytest.fixture
def adapter(model: Any) -> hub.Adapter:
    """a@1, which half@1 has half of."""
    made: hub.Adapter = shake_adapter(hub.Adapter.create("lora", model, r=2), scale=0.2)
    registry = hub.Registry()
    registry.add(made, name="a")
    registry.alias("a@1", "production")
    registry.add(hub.Average("a@1", None), name="half")
    registry.add(hub.Stack("half@1", "half@1"), name="whole")
    return made


def count_parameters(attachment: hub.Attachment) -> int:
    return len(list(attachment.parameters()))


def test_a_version_that_several_names_mean_is_there_once(model: Any, adapter: hub.Adapter) -> None:
    names = ("a@1", "a", "half@1", "a@production", "whole@1")
    parts = (*names, hub.Stack(None, "half"))
    with hub.attach(model, hub.BatchSplit(*parts), rows=list(range(len(parts)))) as attachment:
        assert len(attachment.active) == 1
        for name in names:
            attachment.route([name])
    with hub.attach(model, hub.Stack("a@1", "half@1")) as attachment:
        found = run(model)
    other = hub.load("a@1")
    with hub.attach(model, hub.Stack(adapter, hub.Average(other, None)), trainable=False):
        torch.testing.assert_close(found, run(model), rtol=1e-5, atol=1e-5)


def test_a_version_that_learns_in_two_places_is_one(model: Any, adapter: hub.Adapter) -> None:
    with hub.attach(model, hub.Stack("half@1", "a"), trainable="a@1") as attachment:
        assert count_parameters(attachment) == len(adapter.tensors)


def test_an_adapter_beside_its_version_learns_alone(model: Any, adapter: hub.Adapter) -> None:
    with hub.attach(model, hub.Stack(adapter, "half@1"), trainable=adapter) as attachment:
        assert len(attachment.active) == 2
        assert count_parameters(attachment) == len(adapter.tensors)


def test_new_parts_of_a_fuse_learn_with_it_unless_it_is_named_alone(model: Any) -> None:
    parts = [hub.Adapter.create("lora", model, r=2, targets=["q_proj"]) for _ in range(2)]
    fuse = hub.Fuse.create(model, *parts)
    assert isinstance(fuse.by, hub.Adapter)
    own = len(fuse.by.tensors)
    with hub.attach(model, fuse) as attachment:
        assert count_parameters(attachment) == own + sum(len(part.tensors) for part in parts)
    with hub.attach(model, fuse, trainable=fuse.by) as attachment:
        assert count_parameters(attachment) == own
    for number, part in enumerate(parts):
        hub.Registry().add(part, name=f"p{number}")
    fuse = hub.Fuse.create(model, "p0@1", "p1@1")
    with hub.attach(model, fuse) as attachment:
        assert count_parameters(attachment) == own


def test_a_fuse_is_made_for_parts_that_act(model: Any) -> None:
    with pytest.raises(AttachError, match="none of these does any"):
        hub.Fuse.create(model, None, hub.Stack(None))


def test_what_is_added_shares_what_is_there(model: Any, adapter: hub.Adapter) -> None:
    with hub.attach(model, "a@1") as attachment:
        (there,) = attachment.active
        number = attachment.add("whole@1")
        attachment.route(number)
        assert attachment.active == (there,)
        attachment.route("a@1")
        attachment.remove(number)
        run(model)


def test_what_learned_is_no_more_the_version(model: Any, adapter: hub.Adapter) -> None:
    with hub.attach(model, "a@1", trainable=True) as attachment:
        for parameter in attachment.parameters():
            parameter.data += 1
        (there,) = attachment.active
        attachment.route(attachment.add("half@1"))
        assert there not in attachment.active


def test_a_folder_may_say_of_other_content_that_it_is_a_version(
    model: Any, adapter: hub.Adapter, tmp_path: Path
) -> None:
    for tensor in adapter.tensors.values():
        tensor.data += 1
    adapter.save(tmp_path / "a")
    with hub.attach(model, hub.Stack("a@1", tmp_path / "a")) as attachment:
        one, other = attachment.active
        assert (one.label, other.label) == ("a@1", "a@1")
        assert any(not torch.equal(t, other.tensors[name]) for name, t in one.tensors.items())
