"""Adapters on stacked experts, which no module of their own computes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

import hub
from hub.attachment.attaching import Attachment
from hub.attachment.effects import Switch
from hub.attachment.experts import ExpertsEffect, hang_experts
from hub.attachment.frames import Ruler
from hub.attachment.places import Place
from hub.sites import Site, find_sites
from hub.sites.experts import is_experts
from tests.snapshots import run, shake_adapter, take_snapshot
from tests.tiny import make_inputs

BODY: dict[str, Any] = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, vocab_size=99, max_position_embeddings=64, pad_token_id=0,
    bos_token_id=1, eos_token_id=2,
)  # fmt: skip
FEW = dict(moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2)
ROUTED = dict(
    moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1,
    first_k_dense_replace=1, n_shared_experts=1,
)  # fmt: skip
LATENT = dict(
    q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
    num_key_value_heads=4,
)  # fmt: skip
# Every way in which use_experts_implementation lays experts out, and some of each common family.
KINDS: dict[str, dict[str, Any]] = {
    "mixtral": dict(num_local_experts=4),
    "qwen3_moe": dict(FEW, head_dim=8, decoder_sparse_step=1),
    "deepseek_v3": dict(ROUTED, **LATENT),
    "glm4_moe": dict(ROUTED, head_dim=8),
    "granitemoe": dict(num_local_experts=4, num_experts_per_tok=2),
    "gpt_oss": dict(num_local_experts=4, num_experts_per_tok=2, head_dim=8),
    "nemotron_h": dict(
        ROUTED, num_hidden_layers=2, layers_block_type=["attention", "moe"], head_dim=8,
        mamba_num_heads=4, mamba_head_dim=8, ssm_state_size=8, n_groups=1,
        moe_shared_expert_intermediate_size=16, moe_latent_size=None,
    ),
    "aria_text": dict(moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
}  # fmt: skip


def build(kind: str, **changes: Any) -> Any:
    set_seed(0)
    config = AutoConfig.for_model(kind, **{**BODY, **KINDS[kind], **changes})
    classes: Any = AutoModelForCausalLM
    model = classes.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name:
                parameter.normal_(std=0.1)
    return model


class Nothing(nn.Module):
    rows = 0

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.rows += len(x)
        return y


def make_places(model: nn.Module, sites: Sequence[Site]) -> list[Place]:
    """A place at each site where nothing is made of what comes by."""
    places = [Place(model, site, Switch(), Ruler(None)) for site in sites]
    for place in places:
        place.acting.chains = (), (Nothing(),)
    return places


@pytest.mark.parametrize("kind", KINDS)
def test_an_effect_that_does_nothing_leaves_the_eager_outputs(kind: str) -> None:
    model = build(kind)
    model.set_experts_implementation("eager")
    expected = run(model, **make_inputs(model))
    sites = [site for site in find_sites(model) if site.expert is not None]
    assert {site.owner for site in sites} == {
        path for path, module in model.named_modules() if is_experts(module)
    }
    for site in sites:
        weight = getattr(model.get_submodule(site.owner), site.path.split(".")[-2])[site.expert]
        shape = tuple(weight.T.shape if site.transposed else weight.shape)
        assert shape == (site.out_features, site.in_features)
    places = make_places(model, sites)
    handles = list(hang_experts(model, places, Switch()))
    inputs = make_inputs(model)
    torch.testing.assert_close(run(model, **inputs), expected, rtol=1e-5, atol=1e-5)
    # Every token goes to k experts, in and out, in every layer of experts.
    k = (
        sum(module.rows for (module,) in (place.acting.chains[1] for place in places))
        / inputs["input_ids"].numel()
    )
    assert k == 2 * 2 * len(handles)
    for handle in handles:
        handle.remove()
    assert torch.equal(run(model, **inputs), expected)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_lora_acts_whatever_computes_the_experts(implementation: str) -> None:
    model = build("mixtral")
    model.set_experts_implementation("eager")
    adapter = shake_adapter(hub.Adapter.create("lora", model, r=2, targets=["down_proj"]))
    with hub.attach(model, adapter):
        expected = run(model)
        model.set_experts_implementation(implementation)
        torch.testing.assert_close(run(model), expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(run(build("mixtral")), expected)


@pytest.mark.parametrize(
    ("kind", "dora"),
    [("mixtral", False), ("gpt_oss", True), ("aria_text", False), ("nemotron_h", True)],
)
def test_experts_merge_and_come_back_bit_for_bit(kind: str, dora: bool) -> None:
    model = build(kind)
    before = take_snapshot(model)
    adapter = hub.Adapter.create("lora", model, r=2, targets=r".*experts\.\w+", dora=dora)
    assert any(".down_proj.3." in name for name in adapter.tensors)
    with hub.attach(model, shake_adapter(adapter)) as attachment:
        expected = run(model)
        attachment.merge()
        torch.testing.assert_close(run(model), expected, rtol=1e-4, atol=1e-4)
        attachment.unmerge()
        assert torch.equal(run(model), expected)
        with attachment.disabled():
            assert take_snapshot(model).outputs == before.outputs
    assert take_snapshot(model) == before


def test_experts_that_tokens_reach_learn() -> None:
    model = build("mixtral").train()
    adapter = shake_adapter(hub.Adapter.create("lora", model, r=2), scale=0.1)
    with hub.attach(model, adapter, trainable=True):
        inputs = make_inputs(model, rows=4, length=12)
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
    experts = {name: tensor for name, tensor in adapter.tensors.items() if ".experts." in name}
    assert len(experts) == 2 * 2 * 4 * 2
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in experts.values())


def test_gradients_are_those_of_the_merged_weights() -> None:
    """d loss / d B = s (d loss / d W) A^T, where the experts' own function gives the right side."""
    model = build("mixtral")
    adapter = shake_adapter(hub.Adapter.create("lora", model, r=2, targets=["gate_up_proj"]))
    inputs = make_inputs(model)
    with hub.attach(model, adapter, trainable=True) as attachment:
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        attachment.merge()
        weight = model.get_submodule("model.layers.1.mlp.experts").gate_up_proj
        weight.requires_grad_(True)
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        for expert in range(4):
            name = f"model.layers.1.mlp.experts.gate_up_proj.{expert}"
            A, B = (adapter.tensors[f"{name}.lora_{factor}.weight"] for factor in "AB")
            torch.testing.assert_close(B.grad, weight.grad[expert] @ A.T, rtol=1e-3, atol=1e-5)


def test_a_copy_of_an_attached_mixture_carries_its_own_adapters() -> None:
    model = build("mixtral")
    adapter = shake_adapter(hub.Adapter.create("lora", model, r=2))
    with hub.attach(model, adapter):
        expected = run(model)
        other = copy.deepcopy(model)
    assert torch.equal(run(other), expected)
    carried = hub.Attachment.of(other)
    assert carried is not None
    carried.detach()
    assert torch.equal(run(other), run(model))
    hooks = [h for m in other.modules() for h in m._forward_hooks.values()]
    assert not any(isinstance(hook, ExpertsEffect) for hook in hooks)


def test_experts_of_another_device_give_nothing() -> None:
    """Under expert parallelism a router names them by a number beyond the last."""
    model = build("mixtral")
    experts = model.get_submodule("model.layers.0.mlp.experts")
    x, shares = torch.randn(5, 32), torch.rand(5, 2)
    near = torch.tensor([[0, 4], [4, 4], [2, 4], [1, 4], [3, 4]])
    sites = [site for site in find_sites(model) if site.owner == "model.layers.0.mlp.experts"]
    model.set_experts_implementation("eager")
    expected = experts(x, near, shares)
    list(hang_experts(model, make_places(model, sites), Switch()))
    torch.testing.assert_close(experts(x, near, shares), expected)


def test_compiled_mixture_sees_adapters_come_and_go() -> None:
    model = build("mixtral", num_hidden_layers=1, num_local_experts=2)
    adapter = shake_adapter(hub.Adapter.create("lora", model, r=2))
    inputs = make_inputs(model)
    bare = run(model)
    with hub.attach(model, adapter):
        adapted = run(model)
    compiled: Any = torch.compile(model, backend="eager")
    torch.testing.assert_close(run(compiled, **inputs), bare)
    with hub.attach(compiled, adapter):
        torch.testing.assert_close(run(compiled, **inputs), adapted)
    torch.testing.assert_close(run(compiled, **inputs), bare)
    torch.compiler.reset()


@pytest.mark.parametrize("how", ["copied", "pickled"])
def test_an_attached_model_is_copied_and_pickled(how: str) -> None:
    model = build("mixtral")
    with hub.attach(model, shake_adapter(hub.Adapter.create("lora", model)), trainable=False):
        other = copy.deepcopy(model) if how == "copied" else pickle.loads(pickle.dumps(model))
        expected = run(model)
    bare = run(model)
    assert torch.equal(run(other), expected)
    attachment = Attachment.of(other)
    assert attachment is not None
    attachment.detach()
    assert torch.equal(run(other), bare)


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_half_precision_stays(kind: str) -> None:
    model = build(kind).to(torch.bfloat16)
    adapter = hub.Adapter.create("lora", model, r=2)
    expected = run(model)
    with hub.attach(model, adapter, trainable=True):
        inputs = make_inputs(model)
        output = model(**inputs, labels=inputs["input_ids"])
        output.loss.backward()
    assert output.logits.dtype == torch.bfloat16
    torch.testing.assert_close(output.logits.detach(), expected, rtol=0.05, atol=0.02)


def test_biases_of_experts_learn_and_merge() -> None:
    model = build("gpt_oss")
    before = take_snapshot(model)
    adapter = shake_adapter(hub.Adapter.create("bitfit", model))
    assert any(".experts.down_proj.0." in name for name in adapter.tensors)
    with hub.attach(model, adapter) as attachment:
        expected = run(model)
        attachment.merge()
        torch.testing.assert_close(run(model), expected, rtol=1e-4, atol=1e-4)
    assert take_snapshot(model) == before


def test_experts_of_a_parameter_go_together() -> None:
    with pytest.raises(hub.ConfigError, match="the experts of a parameter go together; name the"):
        hub.Adapter.create("lora", build("mixtral"), targets=r".*gate_up_proj\.[01]")
