"""How LoRA learns: gradients against peft's and the equation's, and what is kept for them."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch.func import functional_call, grad, vmap

import hub
from hub_lora import LoRAConfig, LoRALayer
from hub_lora.learning import Update
from tests.snapshots import shake_adapter
from tests.tiny import build_tiny, make_inputs

HALF = torch.bfloat16


def build_layer(dropout: float = 0.0) -> LoRALayer:
    torch.manual_seed(0)
    site = hub.Site("projection", "query", "query", 0, 7, 5)
    layer = LoRALayer(site, LoRAConfig(r=3, alpha=5, dropout=dropout))
    torch.nn.init.normal_(layer.lora_B.weight)
    return layer


def build_both(kind: str, dtype: torch.dtype) -> tuple[Any, Any, hub.Adapter]:
    """peft's model, ours and our adapter, with the same values."""
    targets = {"gpt2": ["c_attn", "c_fc", "c_proj"], "llama": ["q_proj", "v_proj", "down_proj"]}
    config = peft.LoraConfig(
        r=4, lora_alpha=12, target_modules=targets[kind], fan_in_fan_out=kind == "gpt2"
    )
    model: Any = peft.get_peft_model(build_tiny(kind).to(dtype), config)
    base = build_tiny(kind).to(dtype)
    adapter = hub.Adapter.create("lora", base, r=4, alpha=12, targets=targets[kind])
    shake_adapter(adapter, scale=0.1)
    with torch.no_grad():
        for name, parameter in list_learning(model).items():
            parameter.copy_(adapter.tensors[name])
    return model, base, adapter


def list_learning(model: Any) -> dict[str, Any]:
    """peft's parameters that learn, by our names."""
    return {
        name.removeprefix("base_model.model.").replace(".default", ""): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def count_kept(model: Any) -> int:
    """The bytes that autograd keeps for the backward: each storage once, no parameters."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    inputs = make_inputs(model)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**inputs, labels=inputs["input_ids"], use_cache=False).loss
    assert loss.requires_grad
    return sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in own)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_gradients_equal_pefts(kind: str) -> None:
    model, base, adapter = build_both(kind, torch.float32)
    inputs = make_inputs(base)
    model.eval()(**inputs, labels=inputs["input_ids"]).loss.backward()
    with hub.attach(base, adapter, trainable=True):
        base(**inputs, labels=inputs["input_ids"]).loss.backward()
    for name, parameter in list_learning(model).items():
        assert parameter.grad.any()
        torch.testing.assert_close(
            adapter.tensors[name].grad, parameter.grad, rtol=1e-4, atol=1e-6, msg=name
        )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_gradients_over_a_base_in_half_precision_are_as_near_as_pefts(kind: str) -> None:
    """To those over the same base in float32; rounding differs, its size does not."""
    model, base, adapter = build_both(kind, HALF)
    inputs = make_inputs(base)
    model.eval()(**inputs, labels=inputs["input_ids"]).loss.backward()
    theirs = {name: parameter.grad for name, parameter in list_learning(model).items()}

    def learn(base: Any) -> dict[str, torch.Tensor]:
        with hub.attach(base, adapter, trainable=True) as attachment:
            base(**inputs, labels=inputs["input_ids"]).loss.backward()
            assert all(p.dtype == torch.float32 for p in attachment.parameters())
        return {name: tensor.grad for name, tensor in adapter.tensors.items()}

    ours = learn(base)
    for tensor in adapter.tensors.values():
        tensor.grad = None
    exact = learn(base.float())

    def measure(found: dict[str, Any]) -> float:
        return sum(float((found[name] - exact[name]).square().sum()) for name in exact) ** 0.5

    assert measure(ours) <= 1.1 * measure(theirs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 1.0), (HALF, 0.85)])
def test_no_more_is_kept_for_the_backward_than_pefts(dtype: torch.dtype, share: float) -> None:
    model, base, adapter = build_both("llama", dtype)
    with hub.attach(base, adapter, trainable=True):
        assert count_kept(base) <= share * count_kept(model)


def test_what_does_not_learn_keeps_no_input() -> None:
    layer = build_layer()
    x, y = torch.randn(9, 7, requires_grad=True), torch.randn(9, 5)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer.requires_grad_(False)(x, y).sum().backward()
    assert {t.untyped_storage().data_ptr() for t in kept} == {
        parameter.data_ptr() for parameter in layer.parameters()
    }
    assert x.grad is not None
    A, B = layer.lora_A.weight, layer.lora_B.weight
    torch.testing.assert_close(x.grad, (5 / 3 * B @ A).sum(0).expand(9, 7))


def test_gradients_and_theirs_are_the_equations() -> None:
    layer = build_layer().double()
    A, B = layer.lora_A.weight, layer.lora_B.weight
    x = torch.randn(2, 3, 7, dtype=torch.double, requires_grad=True)
    y = torch.randn(2, 3, 5, dtype=torch.double, requires_grad=True)

    def run(x: torch.Tensor, y: torch.Tensor, *factors: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = Update.apply(x, y, *factors, layer.scaling)[0]
        return rows.view(y.shape)

    assert torch.equal(layer(x, y), run(x, y, A, B))
    torch.testing.assert_close(run(x, y, A, B), y + 5 / 3 * x @ A.T @ B.T)
    assert torch.autograd.gradcheck(run, (x, y, A, B))
    assert torch.autograd.gradgradcheck(run, (x, y, A, B))


@pytest.mark.parametrize("x_dtype", [torch.float32, HALF])
@pytest.mark.parametrize("y_dtype", [torch.float32, HALF])
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("autocast", [False, True])
def test_any_precisions_meet(
    x_dtype: torch.dtype, y_dtype: torch.dtype, dtype: torch.dtype, autocast: bool
) -> None:
    """As autocast and quantized layers, which choose their output's own, bring them together."""
    layer = build_layer().to(dtype)
    x = torch.randn(2, 3, 7).to(x_dtype).requires_grad_()
    y = torch.randn(2, 3, 5).to(y_dtype).requires_grad_()
    exact = build_layer()
    exact.load_state_dict(layer.state_dict())
    wide = [value.detach().float().requires_grad_() for value in (x, y)]
    with torch.autocast("cpu", HALF, enabled=autocast):
        output = layer(x, y)
    expected = exact(*wide)
    assert output.dtype == y_dtype
    output.float().square().sum().backward()
    expected.square().sum().backward()
    pairs = [
        (output, expected),
        *((value.grad, other.grad) for value, other in zip((x, y), wide, strict=True)),
        *((a.grad, b.grad) for a, b in zip(layer.parameters(), exact.parameters(), strict=True)),
    ]
    for found, meant in pairs:
        assert found is not None and meant is not None
        assert bool((found.float() - meant).norm() < 0.02 * meant.norm())
    if {x_dtype, y_dtype, dtype} == {torch.float32} and not autocast:
        torch.testing.assert_close(output, expected)


def test_the_output_can_be_changed_in_place_and_the_input_of_the_hook_stays() -> None:
    layer = build_layer()
    y = torch.randn(3, 5)
    before = y.clone()
    output = layer(torch.randn(3, 7), y)
    output.mul_(2)
    output[0] = 0
    output.sum().backward()
    assert torch.equal(y, before)
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_each_rows_own_gradient_by_vmap() -> None:
    layer = build_layer()
    values = {name: parameter.detach() for name, parameter in layer.named_parameters()}
    x, y = torch.randn(4, 3, 7), torch.randn(4, 3, 5)

    def loss(values: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = functional_call(layer, values, (x, y)).square().sum()
        return found

    together = vmap(grad(loss), (None, 0, 0))(values, x, y)
    for row in range(4):
        layer.zero_grad()
        layer(x[row], y[row]).square().sum().backward()
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(together[name][row], parameter.grad)


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_step_is_one_graph_and_gives_the_same_gradients() -> None:
    model = build_tiny("llama")
    adapter = shake_adapter(hub.Adapter.create("lora", model), scale=0.1)
    inputs = make_inputs(model)
    with hub.attach(model, adapter, trainable=True) as attachment:
        found = []
        for run in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
            run(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
            found.append([parameter.grad for parameter in attachment.parameters()])
            for parameter in attachment.parameters():
                parameter.grad = None
    torch.compiler.reset()
    torch.testing.assert_close(found[0], found[1])
