"""AdapterFusion against `adapters` 1.3.0 on frozen values, and against its equation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import hub
from hub.discovery import installed_methods
from hub.errors import AttachError, BaseMismatch, ConfigError
from hub.sites import find_sites
from hub.testing.learning import enable_checkpointing
from hub_fusion import Choice, FusionConfig
from tests.composition.reference import attend
from tests.references.frozen import ROLES, Frozen
from tests.snapshots import run, shake_adapter, take_snapshot
from tests.tiny import build_tiny, make_inputs

FROZEN = Frozen("fusion", "houlsby")
LLAMA = build_tiny("llama")
SMALL: dict[str, dict[str, Any]] = {
    **{method: {} for method in ("lora", "ia3", "bitfit", "full", "diff")},
    **{method: {"size": 4} for method in ("houlsby", "pfeiffer", "parallel")},
    "llama_adapter": {"tokens": 2, "layers": 2},
}
Values = Mapping[str, torch.Tensor]


def make(method: str = "houlsby", seed: int = 1, model: Any = LLAMA, **options: Any) -> hub.Adapter:
    adapter = hub.Adapter.create(method, model, **{**SMALL.get(method, {}), **options})
    return shake_adapter(adapter, seed, 0.2)


def fuse_parts(*parts: Any, model: Any = LLAMA, seed: int = 9, **options: Any) -> hub.Fuse:
    """A fuse as if it had been trained: V is near the identity, the rest is anything."""
    torch.manual_seed(seed)
    fuse = hub.Fuse.create(model, *parts, **options)
    for tensor in get_leader(fuse).tensors.values():
        tensor.data.add_(torch.randn(tensor.shape) * 0.3)
    return fuse


def get_leader(fuse: hub.Fuse) -> hub.Adapter:
    assert isinstance(fuse.by, hub.Adapter)
    return fuse.by


def run_with(composition: Any, model: Any = LLAMA, **options: Any) -> torch.Tensor:
    with hub.attach(model, composition, trainable=False, **options):
        return run(model)


# --- against the library -----------------------------------------------------------------------


def make_frozen(model: Any, case: str, kind: str) -> hub.Fuse:
    """The reference's fuse, with all of its values."""
    given = FROZEN.read(case)
    parts = [FROZEN.make_adapter(model, case, which, activation="silu") for which in "ab"]
    fuse = hub.Fuse.create(model, *parts, value=kind == "dynamic")
    stack = "decoder" if any(name.startswith("a/decoder") for name in given) else "encoder"
    left = set(get_leader(fuse).tensors)
    for site in find_sites(model):
        if site.kind != "branch":
            continue
        source = f"fusion/{stack}.{site.block}.{ROLES[site.role]}"
        for name in [name for name in left if name.startswith(f"{site.path}.branch_output.")]:
            key = f"{source}.{name.removeprefix(f'{site.path}.branch_output.')}"
            get_leader(fuse).tensors[name].data.copy_(given[key])
            left.remove(name)
    assert not left
    return fuse


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("case", sorted(FROZEN.cases))
def test_logits_equal_the_librarys(case: str, kind: str) -> None:
    model, expected = FROZEN.build(case), FROZEN.read(case)
    fuse = make_frozen(model, case, kind)
    for trainable in (True, False):
        with hub.attach(model, fuse, trainable=trainable):
            found = FROZEN.compute(model, case)
        torch.testing.assert_close(found, expected[f"logits/{kind}"], rtol=0, atol=1e-5)
    assert (expected[f"logits/{kind}"] - expected["logits/bare"]).abs().max() > 1


def measure_penalty(model: Any, fuse: hub.Fuse) -> hub.Training | None:
    with hub.attach(model, fuse, trainable=[fuse.by]) as attachment:
        part: hub.Training | None = installed_methods().call(
            "hub_train",
            "fusion",
            adapter=get_leader(fuse),
            modules=attachment.modules(get_leader(fuse)),
            steps=1,
        )
    return part


@pytest.mark.parametrize("case", sorted(FROZEN.cases))
def test_penalty_equals_the_librarys(case: str) -> None:
    model = FROZEN.build(case)
    part = measure_penalty(model, make_frozen(model, case, "dynamic"))
    assert part is not None and part.penalty is not None
    torch.testing.assert_close(part.penalty(), FROZEN.read(case)["penalty"])
    assert measure_penalty(model, make_frozen(model, case, "static")) is None


# --- against the equation ----------------------------------------------------------------------


def test_penalty_pulls_v_to_the_identity_alone() -> None:
    fuse = fuse_parts(make(), make(seed=2), penalty=0.5)
    part = measure_penalty(LLAMA, fuse)
    assert part is not None and part.penalty is not None
    part.penalty().backward()
    tensors = get_leader(fuse).tensors
    for name, tensor in tensors.items():
        if name.endswith("value.weight"):
            torch.testing.assert_close(tensor.grad, tensor.detach() - torch.eye(len(tensor)))
        else:
            assert tensor.grad is None
    total = sum((V - torch.eye(len(V))).square().sum() for n, V in tensors.items() if "value" in n)
    torch.testing.assert_close(part.penalty(), 0.5 * total)
    assert measure_penalty(LLAMA, fuse_parts(make(), penalty=0)) is None


def test_fuse_of_lora_is_the_equation_at_every_projection() -> None:
    """Computed apart on a model of its own, with the low-rank products written out."""
    one, two = make("lora", 1, r=2), make("lora", 2, r=3, targets="feedforward")
    fuse = fuse_parts(one, two, size=5)
    model = copy.deepcopy(LLAMA)
    for path in {name.rpartition(".lora_")[0] for name in one.tensors}:

        def act(_: Any, args: Any, y: torch.Tensor, path: str = path) -> torch.Tensor:
            parts = []
            for part in (one, two):
                A = part.tensors.get(f"{path}.lora_A.weight")
                B = part.tensors.get(f"{path}.lora_B.weight")
                scale = part.config.alpha / part.config.r
                parts.append(y if A is None else y + scale * args[0] @ A.T @ B.T)  # type: ignore[union-attr]
            return attend(get_leader(fuse).tensors, f"{path}.projection_output", y, parts)

        model.get_submodule(path).register_forward_hook(act)
    torch.testing.assert_close(run_with(fuse), run(model), rtol=1e-4, atol=1e-5)


def test_fuse_of_ia3_is_the_equation_on_what_goes_in_and_what_comes_out() -> None:
    parts = [make("ia3", seed) for seed in (1, 2, 3)]
    fuse = fuse_parts(*parts)
    model = copy.deepcopy(LLAMA)
    kinds = {name.split(" ")[0] for name in get_leader(fuse).config.sites}
    assert kinds == {"input", "output"}
    for name in get_leader(fuse).config.sites:
        place, kind, path = name.split(" ")
        scales = [part.tensors[f"{path}.ia3_l"].flatten() for part in parts]
        where = f"{path}.{kind}_{place}"

        def act(value: torch.Tensor, scales: Any = scales, where: str = where) -> torch.Tensor:
            return attend(
                get_leader(fuse).tensors, where, value, [value * scale for scale in scales]
            )

        module = model.get_submodule(path)
        if place == "input":
            module.register_forward_pre_hook(lambda _, args, act=act: (act(args[0]),))
        else:
            module.register_forward_hook(lambda _, args, y, act=act: act(y))
    torch.testing.assert_close(run_with(fuse), run(model), rtol=1e-4, atol=1e-5)


def bottleneck(adapter: hub.Adapter, path: str, y: torch.Tensor) -> torch.Tensor:
    down, up = (
        [adapter.tensors[f"{path}.{half}.{kind}"] for kind in ("weight", "bias")]
        for half in ("down", "up")
    )
    return y + torch.nn.functional.gelu(y @ down[0].T + down[1]) @ up[0].T + up[1]


def test_operators_in_a_fuse_and_a_fuse_in_operators_are_their_equations() -> None:
    """fuse(stack(a, b), average(a, c; 1, 3), fuse(b, c), none), c on top, computed apart."""
    a, b, c = (make(seed=seed) for seed in (1, 2, 3))
    inner = fuse_parts(b, c, seed=4)
    outer = fuse_parts(hub.Stack(a, b), hub.Average(a, c, weights=[1, 3]), inner, None)
    model = copy.deepcopy(LLAMA)
    for path in {name.rpartition(".branch_")[0] for name in get_leader(outer).tensors}:

        def act(_: Any, args: Any, output: Any, path: str = path) -> Any:
            y = output[0] if isinstance(output, tuple) else output
            by_a, by_b, by_c = (bottleneck(part, path, y) for part in (a, b, c))
            where = f"{path}.branch_output"
            parts = [
                bottleneck(b, path, by_a),
                0.25 * by_a + 0.75 * by_c,
                attend(get_leader(inner).tensors, where, y, [by_b, by_c]),
                y,
            ]
            found = bottleneck(c, path, attend(get_leader(outer).tensors, where, y, parts))
            return (found, *output[1:]) if isinstance(output, tuple) else found

        model.get_submodule(path).register_forward_hook(act)
    torch.testing.assert_close(run_with(hub.Stack(outer, c)), run(model), rtol=1e-4, atol=1e-5)


def test_fuse_of_a_fuse_acts_where_its_parts_do() -> None:
    part = make("ia3")
    inner = hub.Fuse.create(LLAMA, part)
    outer = hub.Fuse.create(LLAMA, inner, part)
    assert get_leader(outer).config.sites == get_leader(inner).config.sites
    torch.testing.assert_close(run_with(outer), run_with(part), rtol=1e-4, atol=1e-5)


def test_rows_with_a_fuse_equal_their_own_runs() -> None:
    a, b, c = make(), make("lora", 2), make(seed=3)
    one, two = fuse_parts(a, b), fuse_parts(a, c, seed=5)
    tree = hub.BatchSplit(one, two, a, hub.Stack(c, one))
    inputs = make_inputs(LLAMA, 5)
    with hub.attach(LLAMA, tree, rows=[3, 1, None, 0, 2], trainable=False):
        found = run(LLAMA, **inputs)
    for row, part in enumerate((hub.Stack(c, one), two, hub.Stack(None), one, a)):
        with hub.attach(LLAMA, part, trainable=False):
            torch.testing.assert_close(found[row], run(LLAMA, **inputs)[row], rtol=1e-4, atol=1e-5)


def test_parts_that_rows_choose_are_led_by_one_fusion() -> None:
    a, b, c = (make(seed=seed) for seed in (1, 2, 3))
    fuse = fuse_parts(a, c)
    inputs = make_inputs(LLAMA, 2)
    tree = hub.Fuse(hub.BatchSplit(a, b), c, by=fuse.by)
    with hub.attach(LLAMA, tree, rows=[1, 0], trainable=False):
        found = run(LLAMA, **inputs)
    for row, part in enumerate((b, a)):
        with hub.attach(LLAMA, hub.Fuse(part, c, by=fuse.by), trainable=False):
            torch.testing.assert_close(found[row], run(LLAMA, **inputs)[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        *[("lora", "mixtral"), ("ia3", "mixtral"), ("houlsby", "t5"), ("pfeiffer", "bert")],
        *[("parallel", "gpt2"), ("bitfit", "gpt2"), ("full", "llama"), ("diff", "gpt2")],
        ("llama_adapter", "llama"),
    ],
)
def test_new_fusion_of_one_part_is_that_part(method: str, kind: str) -> None:
    """One score is all of the softmax, and a new V the identity: wherever a method acts."""
    model = build_tiny(kind)
    part = make(method, model=model)
    expected = run_with(part, model)
    assert not torch.allclose(expected, run(model), atol=1e-5)
    fuse = hub.Fuse.create(model, part, part, size=2)
    torch.testing.assert_close(run_with(fuse, model), expected, rtol=1e-4, atol=1e-5)


def test_new_fusion_is_nearly_the_mean_of_its_parts() -> None:
    torch.manual_seed(0)
    parts = [make(seed=seed) for seed in (1, 2, 3)]
    mean = run_with(hub.Average(*parts))
    found = run_with(hub.Fuse.create(LLAMA, *parts))
    assert (found - mean).abs().max() < 0.02 * (mean - run(LLAMA)).abs().max()


def test_scores_are_dropped_in_training_alone() -> None:
    fuse = fuse_parts(make(), make(seed=2), dropout=0.5)
    expected = run_with(hub.Fuse(*fuse.parts, by=shift(get_leader(fuse), dropout=0.0)))
    model = copy.deepcopy(LLAMA)
    with hub.attach(model, fuse):
        torch.testing.assert_close(run(model), expected)
        model.train()
        assert not torch.allclose(model(**make_inputs(model)).logits, expected, atol=1e-4)


def shift(adapter: hub.Adapter, **changes: Any) -> hub.Adapter:
    """The same tensors with another configuration."""
    config = FusionConfig(**{**vars(adapter.config), **changes})
    return hub.Adapter("fusion", config, adapter.tensors, base=adapter.base)


# --- training ----------------------------------------------------------------------------------


def test_gradients_reach_the_fusion_alone() -> None:
    model = copy.deepcopy(LLAMA).train()
    fuse = fuse_parts(make(), make("lora", 2))
    before = take_snapshot(model)
    with hub.attach(model, fuse, trainable=[fuse.by]) as attachment:
        learning = {id(parameter) for parameter in attachment.parameters()}
        assert learning == {id(tensor) for tensor in get_leader(fuse).tensors.values()}
        model(**make_inputs(model)).logits.square().mean().backward()
    for name, tensor in get_leader(fuse).tensors.items():
        assert tensor.grad is not None
        if not name.endswith("key.bias"):  # softmax takes away what all scores have in common
            assert tensor.grad.abs().max() > 0, name
    for part in fuse.parts:
        assert isinstance(part, hub.Adapter)
        assert all(tensor.grad is None for tensor in part.tensors.values())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert take_snapshot(model) == before


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(reentrant: bool) -> None:
    found = []
    for checkpointed in (False, True):
        model = copy.deepcopy(LLAMA).train()
        if checkpointed:
            enable_checkpointing(model, reentrant)
        fuse = fuse_parts(make(), make("ia3", 2))
        with hub.attach(model, fuse, trainable=True):
            model(**make_inputs(model)).logits.square().mean().backward()
        parts = [get_leader(fuse), *fuse.parts]
        found.append([t.grad for part in parts for t in part.tensors.values()])  # type: ignore[union-attr]
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_half_precision_is_close_and_learns_in_float32() -> None:
    fuse = fuse_parts(make(), make("ia3", 2))
    expected = run_with(fuse)
    model = copy.deepcopy(LLAMA).to(torch.bfloat16)
    served = run_with(fuse, model)
    assert served.dtype == torch.bfloat16
    assert (served.float() - expected).abs().max() < 0.05 * expected.abs().max()
    with hub.attach(model, fuse) as attachment:
        assert {parameter.dtype for parameter in attachment.parameters()} == {torch.float32}
        model(**make_inputs(model)).logits.square().mean().backward()
    assert all(tensor.grad is not None for tensor in get_leader(fuse).tensors.values())


# --- as an adapter -----------------------------------------------------------------------------


def test_fusion_is_saved_and_loaded_like_any(tmp_path: Path) -> None:
    fuse = fuse_parts(make(), make("ia3", 2), size=3, penalty=0.1)
    expected = run_with(fuse)
    folders = [part.save(tmp_path / str(n)) for n, part in enumerate(fuse.parts)]  # type: ignore[union-attr]
    loaded = hub.load(get_leader(fuse).save(tmp_path / "by"))
    assert isinstance(loaded, hub.Adapter)
    assert (loaded.method, loaded.fresh) == ("fusion", False)
    assert loaded.config == get_leader(fuse).config
    for again in (hub.Fuse(*fuse.parts, by=loaded), hub.Fuse(*folders, by=tmp_path / "by")):
        with hub.attach(LLAMA, again, trainable=False):
            assert torch.equal(run(LLAMA), expected)


def test_fusion_is_a_version_and_its_fuse_a_composition(tmp_path: Path) -> None:
    registry, other = hub.Registry(), hub.Registry(home=tmp_path / "other")
    fuse = fuse_parts(make(), make("lora", 2))
    expected = run_with(fuse)
    for name, part in zip(("a", "b", "by"), (*fuse.parts, fuse.by), strict=True):
        assert isinstance(part, hub.Adapter)
        registry.add(part, name=name)
    assert registry.get("by").method == "fusion"
    assert str(fuse) == "fuse(a@1, b@1; by@1)"
    version = registry.add(fuse, name="fused")
    assert version.parents == ("a@1", "b@1", "by@1")
    hub.push("by@1", tmp_path / "alone")
    assert hub.pull(tmp_path / "alone", registry=other).digest == registry.get("by").digest
    hub.push("fused@1", tmp_path / "shared")
    assert hub.pull(tmp_path / "shared", registry=other).digest == version.digest
    for composition in ("fused", other.load("fused"), hub.parse_composition("fuse(a, b; by)")):
        with hub.attach(LLAMA, composition):  # type: ignore[arg-type]
            assert torch.equal(run(LLAMA), expected)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 2 * (32 * 32 + 32) + 32 * 32),
        ({"value": False}, 2 * (32 * 32 + 32)),
        ({"size": 4}, 2 * (4 * 32 + 4) + 32 * 32),
        ({"size": 4, "value": False}, 2 * (4 * 32 + 4)),
    ],
)
def test_size_and_value_say_how_much_learns(options: dict[str, Any], count: int) -> None:
    fuse = hub.Fuse.create(LLAMA, make(), make(seed=2), **options)
    with hub.attach(LLAMA, fuse, trainable=[fuse.by]) as attachment:
        summary = attachment.summary()
    branches = 4
    assert summary.trainable == branches * count
    shown = {line.name: (line.total, line.trainable) for line in summary.adapters}
    assert shown["fusion"] == (branches * count, branches * count)
    assert summary.base == sum(parameter.numel() for parameter in LLAMA.parameters())


def test_size_larger_than_the_vectors_and_other_widths_act_too() -> None:
    fuse = fuse_parts(make("lora", 1), make("lora", 2), size=50)
    assert not torch.allclose(run_with(fuse), run_with(hub.Average(*fuse.parts)), atol=1e-3)


def test_detaching_leaves_no_trace() -> None:
    model = copy.deepcopy(LLAMA)
    before, bare = take_snapshot(model), run(model)
    fuse = fuse_parts(make("ia3"), make("lora", 2))
    assert take_snapshot(model) == before
    for trainable in (True, False):
        with hub.attach(model, fuse, trainable=trainable) as attachment:
            fused = run(model)
            with attachment.disabled():
                assert torch.equal(run(model), bare)
            assert torch.equal(run(model), fused)
        assert take_snapshot(model) == before
        assert torch.equal(run(model), bare)


def test_generation_with_a_cache_gives_the_same_tokens() -> None:
    model = copy.deepcopy(LLAMA)
    inputs = make_inputs(model)
    options: dict[str, Any] = dict(max_new_tokens=5, do_sample=False, pad_token_id=0)
    with hub.attach(model, fuse_parts(make(), make("lora", 2))):
        cached, plain = (model.generate(**inputs, use_cache=c, **options) for c in (True, False))
    assert torch.equal(cached, plain)


# --- heads -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier() -> Any:
    return build_tiny("bert", "classification", num_labels=3)


def test_fuse_answers_with_its_own_head(classifier: Any) -> None:
    parts = [make(seed=seed, model=classifier) for seed in (1, 2)]
    fuse = fuse_parts(*parts, model=classifier)
    assert get_leader(fuse).heads == parts[0].heads == ("classifier",)
    expected = run_with(fuse, classifier)
    for part in parts:
        for name, tensor in part.tensors.items():
            if name.startswith("classifier."):
                tensor.data.fill_(7)
    assert torch.equal(run_with(fuse, classifier), expected)
    get_leader(fuse).tensors["classifier.bias"].data.add_(1)
    torch.testing.assert_close(run_with(fuse, classifier), expected + 1)
    with hub.attach(classifier, fuse, trainable=[fuse.by]) as attachment:
        learning = {id(parameter) for parameter in attachment.parameters()}
    assert id(get_leader(fuse).tensors["classifier.weight"]) in learning


def test_parts_may_be_of_other_tasks(classifier: Any) -> None:
    """Of two classes, or a language model's, where the fuse tells three apart."""
    two = build_tiny("bert", "classification", num_labels=2)
    two.bert.load_state_dict(classifier.bert.state_dict())
    parts = [make(seed=1, model=two), make(seed=2, model=classifier)]
    fuse = fuse_parts(*parts, model=classifier)
    with hub.attach(classifier, fuse, trainable=True) as attachment:
        assert run(classifier).shape == (2, 3)
        assert not any(name.startswith("head/") for name in list_modules(attachment, parts[0]))
    with pytest.raises(AttachError, match=r"classifier\.weight \(2, 32\) instead of \(3, 32\)"):
        hub.attach(classifier, parts[0])


def list_modules(attachment: hub.Attachment, adapter: hub.Adapter) -> list[str]:
    (container,) = [
        child
        for name, child in attachment._container.named_children()
        if getattr(child, "adapter", None) is adapter
    ]
    return [name for name, _ in container.named_children()]


def test_part_that_also_answers_alone_has_its_head(classifier: Any) -> None:
    a, b = (make(seed=seed, model=classifier) for seed in (1, 2))
    fuse = fuse_parts(a, b, model=classifier)
    inputs = make_inputs(classifier, 2)
    with hub.attach(classifier, hub.BatchSplit(a, fuse), rows=[1, 0], trainable=False):
        found = run(classifier, **inputs)
    for row, part in enumerate((fuse, a)):
        with hub.attach(classifier, part, trainable=False):
            torch.testing.assert_close(found[row], run(classifier, **inputs)[row])
    with hub.attach(classifier, fuse, trainable=False) as attachment:
        with pytest.raises(AttachError, match="houlsby is here as a part of a fuse, without its"):
            attachment.add(a)
        assert len(attachment.resident) == 1
        torch.testing.assert_close(run(classifier, **inputs)[0], found[0])


def test_heads_without_one_to_answer_and_two_that_would_are_refused(classifier: Any) -> None:
    parts = [make(seed=seed, model=classifier) for seed in (1, 2)]
    leader = get_leader(hub.Fuse.create(classifier, *parts))
    tensors = {n: t for n, t in leader.tensors.items() if not n.startswith("classifier.")}
    headless = hub.Adapter("fusion", leader.config, tensors, base=leader.base)
    with pytest.raises(AttachError, match="what fuses them has none to answer with"):
        hub.attach(classifier, hub.Fuse(*parts, by=headless))
    with pytest.raises(AttachError, match="fusion and lora each bring a trained head"):
        fuse = hub.Fuse(*parts, by=leader)
        hub.attach(classifier, hub.Stack(fuse, make("lora", model=classifier)))


# --- refusals ----------------------------------------------------------------------------------


def lead(*parts: Any, **options: Any) -> hub.Adapter:
    return get_leader(hub.Fuse.create(LLAMA, *parts, **options))


ALONE = r"fusion chooses among what others give and does nothing alone; .*'fuse\(a, b; fusion\)'"
TREES: dict[str, tuple[Callable[[], Any], str]] = {
    "alone": (lambda: lead(make()), ALONE),
    "in a stack": (lambda: hub.Stack(make(), lead(make())), ALONE),
    "a part": (lambda: hub.Fuse(make(), lead(make()), by=lead(make())), ALONE),
    "led by another method": (
        lambda: hub.Fuse(make(), make(), by=make("lora")),
        r"lora is lora and leads no fuse; make .* hub\.Fuse\.create\(model, a, b\), or hub train ",
    ),
    "led by a prompt": (
        lambda: hub.Fuse(make(), by=make("prompt", tokens=2)),
        "prompt is prompt and leads no fuse",
    ),
    "parts elsewhere": (
        lambda: hub.Fuse(make("lora"), make(), by=lead(make())),
        r"no meaning at model\.layers\.0\.self_attn\.q_proj: its parts change output there, and "
        r"fusion was made for some that change nothing; make one for these: hub\.Fuse\.create",
    ),
    "parts at fewer sites": (
        lambda: hub.Fuse(make(layers=[0]), None, by=lead(make())),
        r"layers\.1\.self_attn: its parts change nothing there, .* for some that change output",
    ),
    "parts on the other side": (
        lambda: hub.Fuse(make("lora", targets=".*(k|v|down)_proj"), by=lead(make("ia3"))),
        r"down_proj: its parts change output there, .* for some that change input",
    ),
    "no part": (lambda: hub.Fuse(None, by=lead(make())), "its parts change nothing there"),
    "a prompt": (
        lambda: hub.Fuse(make(), make("prompt", tokens=2), by=lead(make())),
        "virtual tokens are no output that attention could choose; stack what puts them in front",
    ),
    "a prefix": (
        lambda: hub.Fuse(make(), make("prefix", tokens=2), by=lead(make())),
        "virtual tokens are no output",
    ),
}


@pytest.mark.parametrize("name", TREES)
def test_what_has_no_meaning_is_refused_and_leaves_no_trace(name: str) -> None:
    make_tree, said = TREES[name]
    tree, before = make_tree(), take_snapshot(LLAMA)
    with pytest.raises(AttachError, match=said) as caught:
        hub.attach(LLAMA, tree)
    assert "\n" not in str(caught.value)
    assert take_snapshot(LLAMA) == before


@pytest.mark.parametrize(
    ("parts", "options", "said"),
    [
        (lambda: [], {}, "fuse needs at least one part"),
        (lambda: [None], {}, "a fuse chooses among what its parts do, and none of these does any"),
        (lambda: [make(), make("prompt", tokens=2)], {}, "prompt puts virtual tokens in front"),
        (lambda: [hub.Stack(make("prefix", tokens=2))], {}, "stack it with the fuse instead"),
        (lambda: [make()], {"size": 0}, "fusion: size is 0; it is a whole number from 1"),
        (lambda: [make()], {"dropout": 1}, r"fusion: dropout is 1; it must be in \[0, 1\)"),
        (lambda: [make()], {"penalty": -1}, "fusion: penalty is -1; it is a number from 0"),
        (lambda: [make()], {"heads": 2}, "fusion has no option 'heads'"),
    ],
)
def test_what_can_not_be_fused_is_not_created(parts: Any, options: Any, said: str) -> None:
    with pytest.raises((AttachError, ConfigError), match=said):
        hub.Fuse.create(LLAMA, *parts(), **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, r"a fusion is made for its parts; make it with hub\.Fuse\.create\(model, a, b\)"),
        ({"sites": ["mlp"]}, "sites names 'mlp'; each is 'output branch PATH' or the like"),
        ({"sites": ["output branch nowhere"]}, "fusion: this base has no branch nowhere"),
        ({"sites": ["inside branch model"]}, "sites names 'inside branch model'"),
    ],
)
def test_fusion_without_its_places_is_not_created(options: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        hub.Adapter.create("fusion", LLAMA, **options)


def test_fusion_of_another_base_is_refused() -> None:
    other = build_tiny("llama", seed=5)
    leader = get_leader(hub.Fuse.create(other, make(model=other)))
    with pytest.raises(BaseMismatch, match="adapter fusion was made for"):
        hub.attach(LLAMA, hub.Fuse(make(), by=leader))


def test_composition_leads_no_fuse() -> None:
    registry = hub.Registry()
    registry.add(make(), name="a")
    registry.add(hub.Stack("a"), name="stack")
    with pytest.raises(AttachError, match=r"led by one adapter, and not by stack\(a@1"):
        hub.attach(LLAMA, hub.Fuse("a", by="stack"))


def test_merging_is_refused() -> None:
    with (
        hub.attach(copy.deepcopy(LLAMA), fuse_parts(make("lora"), make("lora", 2))) as attachment,
        pytest.raises(AttachError, match="fus"),
    ):
        attachment.merge()


def test_choice_takes_vectors_of_any_shape_and_precision() -> None:
    torch.manual_seed(0)
    choice = Choice(6, FusionConfig(size=2))
    y, parts = torch.randn(3, 2, 6), [torch.randn(3, 2, 6) for _ in range(3)]
    expected = choice(y, parts)
    flat = choice(y.flatten(0, 1), [part.flatten(0, 1) for part in parts])
    torch.testing.assert_close(flat.view_as(expected), expected)
    half = choice(y.bfloat16(), [part.bfloat16() for part in parts])
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.05)
