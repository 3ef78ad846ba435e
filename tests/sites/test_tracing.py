"""Looking at a model leaves it as it was, works in whatever state it is, and is done once."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hub.errors import AttachError
from hub.sites import find_sites
from tests.sites.conftest import Stack
from tests.snapshots import take_snapshot

Build = Callable[..., Any]


class Restless(nn.Module):
    """A layer that draws numbers, counts its calls and changes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 16)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("seen", None)
        self.mode = "first"

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen = x[0, 0].clone()
        self.mode = "other"
        self.extra = nn.Identity()
        self.inner = nn.Sequential(self.inner)[0]
        noise = torch.rand(()) + random.random() + float(np.random.rand())
        y: Tensor = x + self.inner(x * noise)
        return y


@pytest.mark.parametrize("kind", ["llama", "bert", "t5", "mamba"])
def test_nothing_is_left_behind(kind: str, build: Build) -> None:
    model = build(kind)
    model.get_input_embeddings().weight.requires_grad_(False)
    next(module for module in model.modules() if isinstance(module, nn.Linear)).train()
    before, config = take_snapshot(model), model.config.to_dict()
    attributes = {name: dict(vars(module)) for name, module in model.named_modules()}
    assert find_sites(model)
    assert take_snapshot(model) == before
    assert model.config.to_dict() == config
    for name, module in model.named_modules():
        assert vars(module).keys() == attributes[name].keys()
        assert all(vars(module)[key] is value for key, value in attributes[name].items())


def test_attention_that_a_short_input_swaps_is_put_back(build: Build) -> None:
    model = build("big_bird")
    attention = model.bert.encoder.layer[0].attention
    sparse = attention.self
    assert find_sites(model)
    assert attention.self is sparse
    assert attention.attention_type == model.bert.attention_type == "block_sparse"


def test_what_a_forward_changes_is_put_back() -> None:
    model = Stack(Restless(), Restless())
    layer: Any = model.layers[0]
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    inner = layer.inner
    assert [site.path for site in find_sites(model) if site.kind == "branch"] == [
        "layers.0.inner",
        "layers.1.inner",
    ]
    assert torch.get_rng_state().equal(states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2][1].tolist()
    assert layer.calls.item() == 0
    assert layer.seen is None
    assert layer.mode == "first"
    assert layer.inner is inner
    assert not hasattr(layer, "extra")
    assert list(layer._modules) == ["inner"]


def test_training_flags_and_hooks_are_put_back_when_the_forward_raises() -> None:
    class Broken(Stack):
        def forward(self, input_ids: Tensor) -> Tensor:
            super().forward(input_ids)
            raise ValueError("no such luck\nand more")

    model = Broken(Restless())
    model.train()
    model.layers[0].eval()
    message = (
        r"can't find the sites of Broken: its forward on 8 tokens failed with ValueError: "
        r"no such luck; give it a batch that it takes, once: hub\.sites\.find_sites\("
    )
    with pytest.raises(AttachError, match=message) as error:
        find_sites(model)
    assert isinstance(error.value.__cause__, ValueError)
    assert [module.training for module in (model, model.layers[0], model.norm)] == [
        True,
        False,
        True,
    ]
    assert not any(module._forward_hooks for module in model.modules())
    assert model.layers[0].calls.item() == 0
    assert torch.is_grad_enabled()


def test_gradients_and_modes_around_it_do_not_matter(build: Build) -> None:
    expected = find_sites(build("bert"))
    for around in (torch.inference_mode(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16)):
        with around:
            assert find_sites(build("bert", attention_probs_dropout_prob=0.3)) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama", "bert", "t5", "qwen2_moe"])
def test_precision_and_training_mode_do_not_matter(
    kind: str, dtype: torch.dtype, build: Build
) -> None:
    expected = find_sites(build(kind))
    assert find_sites(build(kind, pad_token_id=3).to(dtype).train()) == expected


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "t5", "gpt_neox"])
def test_model_without_memory_has_the_same_sites(kind: str, build: Build) -> None:
    with torch.device("meta"):
        model = build(kind, pad_token_id=3)
    assert find_sites(model) == find_sites(build(kind))


def test_compiled_model_has_the_sites_of_the_plain_one(build: Build) -> None:
    expected = find_sites(build("llama"))
    compiled = torch.compile(build("llama", pad_token_id=3), backend="eager")
    assert find_sites(compiled) == expected
    in_place = build("llama", pad_token_id=4)
    in_place.compile(backend="eager")
    for layer in in_place.model.layers:
        layer.compile(backend="eager")
    assert find_sites(in_place) == expected


def test_hooks_of_the_user_keep_working(build: Build) -> None:
    model = build("llama")
    expected = find_sites(model)
    other = build("llama", pad_token_id=3)
    shapes: list[torch.Size] = []
    projection = other.model.layers[0].self_attn.o_proj
    projection.register_forward_hook(lambda module, args, output: output.clone())
    projection.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape))
    assert find_sites(other) == expected
    assert set(shapes) == {(1, 8, 32)}
    assert len(projection._forward_hooks) == len(projection._forward_pre_hooks) == 1


def test_attention_kernels_that_hide_the_data_are_set_aside(build: Build) -> None:
    model = build("llama")
    expected = find_sites(model)
    other = build("llama", pad_token_id=3)
    other.config._attn_implementation_internal = "flex_attention"
    assert find_sites(other) == expected
    assert other.config._attn_implementation == "flex_attention"


def count_forwards(model: nn.Module) -> list[int]:
    counts: list[int] = []
    model.register_forward_pre_hook(lambda *_: counts.append(1))
    return counts


def test_second_look_is_remembered(build: Build) -> None:
    model, same = build("bert"), build("bert", seed=1)
    first, second = count_forwards(model), count_forwards(same)
    sites = find_sites(model)
    looks = len(first)
    assert find_sites(model) is sites
    assert find_sites(same) is sites
    assert (len(first), len(second)) == (looks, 0)


def test_two_looks_see_the_same() -> None:
    model = Stack(Restless())
    counts = count_forwards(model)
    assert find_sites(model) == find_sites(model)
    assert len(counts) == 2, "without a configuration there is nothing to remember it by"


def test_another_configuration_class_or_module_is_looked_at_anew(build: Build) -> None:
    plain = find_sites(build("llama"))
    assert find_sites(build("llama", "classification")) != plain
    assert find_sites(build("llama", intermediate_size=56)) != plain
    pruned = build("llama")
    del pruned.model.layers[1]
    assert {site.block for site in find_sites(pruned)} == {0, None}
    narrowed = build("llama")
    narrowed.lm_head = nn.Linear(32, 7)
    assert find_sites(narrowed)[-1].out_features == 7


def test_adapters_that_are_attached_are_not_looked_at(build: Build) -> None:
    model = build("llama")
    sites = find_sites(model)
    model.add_module("hub_adapters", nn.ModuleList([nn.Linear(32, 32)]))
    assert find_sites(model) is sites


def test_the_memory_holds_no_model(build: Build) -> None:
    model = build("llama")
    find_sites(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_an_example_stands_in_for_tokens() -> None:
    class Pixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 16, 4, 4)
            self.layers = nn.ModuleList([Restless()])
            self.config = Settings()

        def forward(self, *, pixel_values: Tensor) -> Tensor:
            x = self.patches(pixel_values).flatten(2).transpose(1, 2)
            y: Tensor = self.layers[0](x)
            return y

    class Settings:
        def to_dict(self) -> dict[str, int]:
            return {"width": 16}

    model = Pixels()
    with pytest.raises(AttachError, match="can't find the sites of Pixels"):
        find_sites(model)
    sites = find_sites(model, example={"pixel_values": torch.rand(1, 3, 8, 8)})
    assert [site.path for site in sites if site.kind == "branch"] == ["layers.0.inner"]
    assert find_sites(Pixels()) is sites


def test_special_tokens_are_avoided(build: Build) -> None:
    model = build("llama", pad_token_id=2, bos_token_id=5, eos_token_id=[0, 7])
    given: list[Any] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs), with_kwargs=True
    )
    find_sites(model)
    ids = given[0]["input_ids"]
    assert ids.shape == (1, 8)
    assert not set(ids.flatten().tolist()) & {0, 2, 5, 7}
    assert given[0]["use_cache"] is False
