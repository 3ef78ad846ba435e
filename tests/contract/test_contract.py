"""The contract itself: a method that keeps every promise passes, one that breaks one is caught."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hub.discovery import installed_methods
from hub.testing import (
    BrokenPromise,
    MethodContract,
    Subject,
    acting,
    combining,
    keeping,
    learning,
    leaving,
    serving,
)
from tests.contract import faulty

pytest_plugins = ["pytester"]

Promise = Callable[[Subject], None]
PROMISES: list[Promise] = [
    learning.train_the_adapter_alone,
    learning.learn_on_after_loading,
    learning.repeat_from_a_seed,
    learning.checkpoint_without_a_difference,
    learning.work_in_half_precision,
    acting.act_at_every_site,
    leaving.leave_no_trace,
    leaving.merge_or_refuse,
    combining.combine_or_refuse,
    keeping.give_the_same_after_loading,
    keeping.write_the_same_after_loading,
    keeping.keep_its_configuration,
    keeping.refuse_what_does_not_fit,
    serving.keep_every_shape,
    serving.ignore_padding,
    serving.keep_rows_apart,
    serving.generate_with_and_without_cache,
    serving.stand_beside_lora,
    serving.copy_with_the_model,
]


@pytest.fixture(scope="module", autouse=True)
def _installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The faulty methods as an installed distribution."""
    folder = tmp_path_factory.mktemp("faulty")
    info = folder / "faulty-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
    entries = [f"{m.name} = {faulty.__name__}:plugin_{m.name}" for m in faulty.METHODS]
    (info / "entry_points.txt").write_text("\n".join(["[hub]", *entries]))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        installed_methods.cache_clear()
        yield
    installed_methods.cache_clear()


@pytest.mark.parametrize("kind", ["llama", "bert/classification"])
@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
def test_a_method_that_keeps_its_promises_passes(promise: Promise, kind: str) -> None:
    if promise is not serving.generate_with_and_without_cache or kind == "llama":
        promise(Subject("healthy", kind, {"scale": 2.0}))


@pytest.mark.parametrize(
    ("method", "promise", "text"),
    [
        ("idle", acting.act_at_every_site, r"the gradient of model\.layers\.1\.\S+shift is 0"),
        ("editing", leaving.leave_no_trace, r"left the base model changed: its tensors at model"),
        ("restless", learning.repeat_from_a_seed, "two forward passes in eval mode: they differ"),
        ("forgetful", keeping.give_the_same_after_loading, "the logits after loading: they differ"),
        ("rounding", keeping.give_the_same_after_loading, "the logits after loading: they differ"),
        ("mixing", serving.keep_rows_apart, "row 0 of a batch, .* they differ"),
        ("averaging", serving.ignore_padding, "row 1 of 4 tokens, padded on the right, .* differ"),
        ("counting", serving.generate_with_and_without_cache, "the tokens with a cache, .* differ"),
        ("changing", learning.checkpoint_without_a_difference, "use_reentrant=False.* differ"),
        ("merging", leaving.merge_or_refuse, "the logits merged, and attached: they differ"),
        ("skewed", combining.combine_or_refuse, "one adapter at weight 0, .* they differ"),
        ("hasty", combining.combine_or_refuse, "the mean of two, the other way round: they differ"),
        ("greedy", combining.combine_or_refuse, "shift of a part, after combining: they differ"),
        ("careless", keeping.keep_its_configuration, "the configuration reads back as"),
        ("stuck", learning.train_the_adapter_alone, "shift is where it started after 3 steps"),
        ("widening", serving.keep_every_shape, "its outputs are .* the bare model's"),
        ("deaf", serving.stand_beside_lora, "lora then deaf gives what deaf gives alone"),
        ("empty", acting.act_at_every_site, "nothing of a new adapter learns"),
    ],
)
def test_a_broken_promise_is_named(method: str, promise: Promise, text: str) -> None:
    role = "head" if method == "widening" else "value"
    with pytest.raises(BrokenPromise, match=text) as caught:
        promise(Subject(method, "llama", {"role": role, "scale": 2.0}))
    assert str(caught.value).startswith(f"{method} on llama: ")


def test_a_result_in_another_precision_is_caught() -> None:
    with pytest.raises((BrokenPromise, RuntimeError), match=r"torch.float64|dtype"):
        learning.work_in_half_precision(Subject("uncast", "llama"))


def test_a_refusal_that_was_promised_must_come_with_its_reason() -> None:
    subject = Subject("healthy", "gpt2")
    keeping.refuse_with_a_reason(subject, "no projection of role value")
    with pytest.raises(BrokenPromise, match="the error does not name 'no attention'"):
        keeping.refuse_with_a_reason(subject, "no attention")
    with pytest.raises(BrokenPromise, match="an adapter was accepted; it must raise ConfigError"):
        keeping.refuse_with_a_reason(Subject("healthy", "llama"), "no projection")


def test_merging_is_held_to_what_the_author_says() -> None:
    with pytest.raises(BrokenPromise, match="merging was refused: adapter healthy at"):
        leaving.merge_or_refuse(Subject("healthy", "llama", merges=True))
    with pytest.raises(BrokenPromise, match="it was merged; it should have refused"):
        leaving.merge_or_refuse(Subject("lora", "llama", merges=False))


def test_combining_is_held_to_what_the_author_says() -> None:
    with pytest.raises(BrokenPromise, match="combining was refused: can't combine healthy"):
        combining.combine_or_refuse(Subject("healthy", "llama", combines=True))
    combining.combine_or_refuse(Subject("healthy", "llama", combines=False))
    with pytest.raises(BrokenPromise, match="it was combined; it should have refused"):
        combining.combine_or_refuse(Subject("lora", "llama", combines=False))


def test_what_the_author_calls_inert_may_be_still() -> None:
    inert = {r"model\.layers\.\d\.self_attn\.v_proj": "an example"}
    acting.act_at_every_site(Subject("idle", "llama", inert=inert))


def test_every_promise_is_in_the_class_and_tested_here() -> None:
    source = inspect.getsource(MethodContract)
    promises = set(
        re.findall(r"(?:learning|acting|leaving|combining|keeping|serving)\.(\w+)\(", source)
    )
    assert promises == {promise.__name__ for promise in PROMISES} | {"refuse_with_a_reason"}


def test_an_authors_class_runs_in_pytest(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from hub.testing import MethodContract

        class TestHealthy(MethodContract):
            method = "healthy"
            models = ["llama", "gpt2"]
            refuses = {"gpt2": "no projection of role value"}

        class TestIdle(MethodContract):
            method = "idle"
            models = ["llama"]
        """
    )
    chosen = "every_site or stack or can_not_act"
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-k", chosen)
    result.assert_outcomes(passed=5, failed=1, deselected=34)
    result.stdout.fnmatch_lines(["*BrokenPromise: idle on llama: the gradient of*"])


def test_nothing_of_it_imports_pytest() -> None:
    for path in Path(inspect.getfile(MethodContract)).parent.glob("*.py"):
        assert "import pytest" not in path.read_text()
