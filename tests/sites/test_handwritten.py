"""Layouts that no model of transformers has, or that only one has: what is added counts, not how
the modules are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from hub.sites import Site, find_sites
from tests.sites.conftest import Stack

D = 16
StackOf = Callable[..., nn.Module]


class Mixing(nn.Module):
    """Attention with one head, its projections under meaningless names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(D, D) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.d(scaled_dot_product_attention(self.c(x), self.a(x), self.b(x)))
        return y


class Hidden(nn.Module):
    """A feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(D, 24), nn.Linear(D, 24), nn.Linear(24, D)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c(self.a(x) * silu(self.b(x)))
        return y


def list_branches(model: nn.Module) -> list[tuple[str, str, int | None]]:
    return [(s.path, s.role, s.output_index) for s in find_sites(model) if s.kind == "branch"]


def test_roles_come_from_the_data_flow_and_not_from_names(stack: StackOf) -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p, self.q = Mixing(), Hidden()

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.p(x)
            y: Tensor = x + self.q(x)
            return y

    roles = {site.path: site.role for site in find_sites(stack(Layer(), Layer()))}
    letters = "abcd"
    assert [roles[f"layers.1.p.{x}"] for x in letters] == ["key", "value", "query", "output"]
    assert [roles[f"layers.1.q.{x}"] for x in letters[:3]] == ["in", "gate", "out"]
    assert (roles["layers.1.p"], roles["layers.1.q"]) == ("attention", "feedforward")


def test_scaled_and_shifted_branch_is_found_before_its_scaling(stack: StackOf) -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Hidden()
            self.scale = nn.Parameter(torch.rand(D))
            self.shift = nn.Parameter(torch.rand(D))

        def forward(self, x: Tensor) -> Tensor:
            branch = (self.inner(x) + self.shift) * torch.tanh(self.scale) / 2
            total: Tensor = x.double() * 0.9 + branch.double()
            return total.to(x.dtype)

    assert list_branches(stack(Layer(), Layer())) == [
        ("layers.0.inner", "feedforward", None),
        ("layers.1.inner", "feedforward", None),
    ]


def test_shared_dropout_is_passed_over(stack: StackOf) -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Mixing(), Hidden()
            self.dropout = nn.Dropout(0.1)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.dropout(self.first(x))
            y: Tensor = x + self.dropout(self.second(x))
            return y

    assert list_branches(stack(Layer())) == [
        ("layers.0.first", "attention", None),
        ("layers.0.second", "feedforward", None),
    ]


def test_add_inside_a_branch_is_no_branch(stack: StackOf) -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lower, self.upper = nn.Linear(D, D), nn.Linear(D, D)

        def forward(self, x: Tensor) -> Tensor:
            y = self.lower(x)
            z: Tensor = y + self.upper(y)
            return z

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = x + self.inner(x)
            return y

    assert list_branches(stack(Layer())) == [("layers.0.inner", "feedforward", None)]


class Plain(nn.Module):
    """A layer with two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.q = Mixing(), Hidden()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.p(x)
        y: Tensor = x + self.q(x)
        return y


@pytest.mark.parametrize("norm", [True, False])
def test_skip_around_all_layers_is_no_branch(norm: bool) -> None:
    class Around(Stack):
        def forward(self, input_ids: Tensor) -> Tensor:
            start = self.embed(input_ids)
            stream = start
            for layer in self.layers:
                stream = layer(stream)
            total: Tensor = self.head(start + (self.norm(stream) if norm else stream))
            return total

    assert list_branches(Around(Plain(), Plain())) == [
        (f"layers.{i}.{name}", role, None)
        for i in range(2)
        for name, role in [("p", "attention"), ("q", "feedforward")]
    ]


def test_layer_whose_result_the_next_one_adds_is_a_branch() -> None:
    class Later(Stack):
        def forward(self, input_ids: Tensor) -> Tensor:
            stream = self.embed(input_ids)
            for layer in self.layers:
                stream += layer(self.norm(stream))
            total: Tensor = self.head(stream)
            return total

    assert list_branches(Later(Mixing(), Hidden())) == [
        ("layers.0", "attention", None),
        ("layers.1", "feedforward", None),
    ]


def test_tokens_in_rows_and_tuples_are_followed(stack: StackOf) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Hidden()

        def forward(self, *, states: Tensor) -> dict[str, Any]:
            return {"cache": None, "states": self.inner(states)}

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = Pair()

        def forward(self, x: Tensor) -> Tensor:
            rows = x.reshape(-1, D)
            rows = rows + self.pair(states=x)["states"].reshape(-1, D)
            return rows.reshape(x.shape)

    sites = find_sites(stack(Layer()))
    assert list_branches(stack(Layer())) == [("layers.0.pair", "feedforward", 1)]
    assert {site.path: site.input_name for site in sites}["layers.0.pair"] == "states"


def test_streams_mixed_by_gates_are_followed() -> None:
    """Hyper-connections: several streams, the weights of the sum computed from the streams."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Hidden()
            self.gates = nn.Parameter(torch.rand(D, 2 + 4))

        def forward(self, streams: Tensor) -> Tensor:
            gates = (streams.mean(2) @ self.gates).sigmoid()
            post, mix = gates[..., :2], gates[..., 2:].unflatten(-1, (2, 2))
            branch = self.inner(streams.sum(2))
            return post.unsqueeze(-1) * branch.unsqueeze(-2) + mix @ streams

    class Streams(Stack):
        def forward(self, input_ids: Tensor) -> Tensor:
            streams = self.embed(input_ids).unsqueeze(2).repeat(1, 1, 2, 1)
            for layer in self.layers:
                streams = layer(streams)
            logits: Tensor = self.head(streams.mean(2))
            return logits

    assert list_branches(Streams(Layer(), Layer())) == [
        ("layers.0.inner", "feedforward", None),
        ("layers.1.inner", "feedforward", None),
    ]


def test_kernel_that_torch_does_not_see_is_bridged(stack: StackOf) -> None:
    class Kernel(nn.Module):
        """Fills memory behind torch's back, as a compiled extension does."""

        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.Linear(D, D), nn.Linear(D, D)

        def forward(self, x: Tensor) -> Tensor:
            values = self.before(x).numpy()
            result = torch.empty(x.shape)
            result.numpy()[:] = values
            y: Tensor = self.after(result)
            return y

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = Kernel()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = x + self.kernel(x)
            return y

    assert [path for path, *_ in list_branches(stack(Layer()))] == ["layers.0.kernel"]


def test_memory_written_in_parts_is_followed(stack: StackOf) -> None:
    class Loop(nn.Module):
        """One position after the other into one tensor."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(D, D)

        def forward(self, x: Tensor) -> Tensor:
            out = torch.zeros(x.shape)
            for position in range(x.shape[1]):
                out[:, position] = self.inner(x[:, position])
            return out

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loop = Loop()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.loop(x)
            return y + x

    assert [path for path, *_ in list_branches(stack(Layer()))] == ["layers.0.loop"]


class Picked(nn.Module):
    """Attention to the keys that a small scorer likes best, as in DeepSeek-V3.2."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.scorer = Mixing(), nn.Linear(D, 1)

    def forward(self, x: Tensor) -> Tensor:
        best = self.scorer(x).squeeze(-1).topk(4).indices.sort().values
        y: Tensor = self.attention(x[:, best[0]]).mean(1, keepdim=True).expand_as(x)
        return y


def test_projection_that_only_chooses_is_no_site(stack: StackOf) -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p, self.q = Picked(), Hidden()

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.p(x)
            y: Tensor = x + self.q(x)
            return y

    model = stack(Layer())
    paths = {site.path for site in find_sites(model)}
    assert "layers.0.p.scorer" not in paths
    assert {"layers.0.p.attention.c", "layers.0.q.b", "layers.0.p"} <= paths
    model(torch.arange(8)[None]).sum().backward()
    assert model.get_submodule("layers.0.p.scorer").weight.grad is None


def test_what_is_computed_in_vain_is_no_site(stack: StackOf) -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p, self.q, self.spare = Hidden(), Hidden(), Hidden()
            self.norm = nn.LayerNorm(D)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.p(x)
            x + self.spare(self.norm(x))
            y: Tensor = x + self.q(x)
            return y

    paths = {site.path for site in find_sites(stack(Layer(), Layer()))}
    assert {"layers.0.p", "layers.1.q", "layers.1.q.c"} <= paths
    assert not any("spare" in path or path.startswith("layers.1.norm") for path in paths)


class Grouped(nn.Linear):
    """A linear layer by its class that takes two groups of half the features each."""

    def forward(self, x: Tensor) -> Tensor:
        groups = x.unflatten(-1, (2, -1))  # type: ignore[no-untyped-call]
        weight = self.weight.view(2, -1, self.in_features)
        y: Tensor = torch.einsum("bsgi,goi->bsgo", groups, weight)
        return y.flatten(-2)


class Router(nn.Linear):
    """A linear layer by its class that returns its scores and what they come to."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        scores = super().forward(x)
        return scores, scores.softmax(-1)


def test_linear_layer_that_computes_something_else_is_no_site(stack: StackOf) -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p, self.q = Mixing(), Hidden()
            self.grouped, self.router = Grouped(D // 2, D), Router(D, D)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.p(self.grouped(x))
            y: Tensor = x + self.q(x) * self.router(x)[1]
            return y

    paths = {site.path for site in find_sites(stack(Layer()))}
    assert "layers.0.p.a" in paths
    assert not paths & {"layers.0.grouped", "layers.0.router"}


def test_layers_outside_a_list_have_no_index() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(20, D)
            self.first, self.second = Plain(), Plain()

        def forward(self, ids: Tensor) -> Tensor:
            y: Tensor = self.second(self.first(self.embed(ids)))
            return y

    branches = [site for site in find_sites(Named()) if site.kind == "branch"]
    assert [s.path for s in branches] == ["first.p", "first.q", "second.p", "second.q"]
    assert {s.block for s in branches} == {None}


def test_layers_in_a_sequence_have_an_index() -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(20, D)
            self.layers = nn.Sequential(Plain(), Plain())

        def forward(self, ids: Tensor) -> Tensor:
            y: Tensor = self.layers(self.embed(ids))
            return y

    branches = [site for site in find_sites(Sequence()) if site.kind == "branch"]
    assert [(s.path, s.block) for s in branches] == [
        ("layers.0.p", 0),
        ("layers.0.q", 0),
        ("layers.1.p", 1),
        ("layers.1.q", 1),
    ]


def test_model_of_numbers_is_looked_at_too() -> None:
    model = nn.Sequential(nn.Linear(D, D), Plain())
    assert Site(
        "projection", "0", "other", None, D, D, bias=True, row_axis=0, position_axis=1
    ) in find_sites(model)
    assert [s.path for s in find_sites(model) if s.kind == "branch"] == ["1.p", "1.q"]


class Drawn(nn.Module):
    """A layer of any of the usual layouts."""

    def __init__(self, norm: str, parallel: bool, swapped: bool, scale: float, both: bool) -> None:
        super().__init__()
        self.norm, self.parallel, self.swapped, self.scale = norm, parallel, swapped, scale
        self.p, self.q = Mixing(), Hidden()
        self.norms = nn.ModuleDict({name: nn.LayerNorm(D) for name in ("p", "q")})
        self.names = ("p", "q") if both else ("q",)

    def compute(self, name: str, x: Tensor) -> Tensor:
        if self.norm == "before":
            x = self.norms[name](x)
        y: Tensor = getattr(self, name)(x)
        if self.norm == "sandwich":
            y = self.norms[name](y)
        return y * self.scale if self.scale != 1 else y

    def forward(self, x: Tensor) -> Tensor:
        start = x
        for name in self.names:
            branch = self.compute(name, start if self.parallel else x)
            x = branch + x if self.swapped else x + branch
            if self.norm == "after" and not self.parallel:
                x = self.norms[name](x)
        return x


@given(
    st.lists(
        st.builds(
            Drawn,
            norm=st.sampled_from(["before", "after", "sandwich", "none"]),
            parallel=st.booleans(),
            swapped=st.booleans(),
            scale=st.sampled_from([1, 0.25]),
            both=st.booleans(),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_mixture_of_layouts_gives_every_branch_once(layers: list[Drawn]) -> None:
    expected = [
        (
            f"layers.{i}.norms.{name}" if layer.norm == "sandwich" else f"layers.{i}.{name}",
            "attention" if name == "p" else "feedforward",
            None,
        )
        for i, layer in enumerate(layers)
        for name in layer.names
    ]
    assert list_branches(Stack(*layers)) == expected
