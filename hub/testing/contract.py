"""The contract as a class of tests, for pytest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from hub.testing import acting, combining, keeping, learning, leaving, serving
from hub.testing.subject import Subject, build_kind

MODELS = ("llama", "gpt2", "bert", "bert/classification", "t5", "mixtral", "bloom")


class MethodContract:
    """Every promise that a method makes, as a test on several tiny models.

    Subclass it in a test file, say which method, and run pytest::

        from hub.testing import MethodContract

        class TestShift(MethodContract):
            method = "shift"
            options = {"role": "value"}

    method: the name of the method, which must be installed.
    options: what the adapters are created with.
    models: the kinds of model, see `hub.testing.SMALL`; with a task behind a slash where it is not
        the usual one.
    refuses: the kinds where the method can't act, with a word of the reason that it must give.
    inert: what can't act though it learns or is claimed, and why: a pattern for the beginning of a
        tensor's name or a site's path, and the reason.
    merges: True where merging must work, False where it must be refused; None asks for either.
    combines: True where two adapters must combine into one, False where that must be refused; None
        asks for either.
    shake: how far the values of an adapter are moved, at random, to stand for trained ones.
    """

    method: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    models: ClassVar[Sequence[str]] = MODELS
    refuses: ClassVar[Mapping[str, str]] = {}
    inert: ClassVar[Mapping[str, str]] = {}
    merges: ClassVar[bool | None] = None
    combines: ClassVar[bool | None] = None
    shake: ClassVar[float] = 0.1

    def build_model(self, kind: str) -> Any:
        """The model of a kind, in eval mode, with the same weights each time; it is copied, not
        changed. Override it to bring models of your own."""
        return build_kind(kind)

    def make_subject(self, kind: str) -> Subject:
        """What the promises are tested on."""
        return Subject(
            self.method,
            kind,
            self.options,
            self.build_model,
            self.shake,
            self.inert,
            self.merges,
            self.combines,
        )

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Run each promise on each kind of model."""
        kinds = [kind for kind in self.models if kind not in self.refuses]
        if "kind" in metafunc.fixturenames:
            metafunc.parametrize("kind", kinds)
        if "writer" in metafunc.fixturenames:
            metafunc.parametrize(
                "writer", [kind for kind in kinds if self.build_model(kind).can_generate()]
            )

    def test_training_changes_the_adapter_alone(self, kind: str) -> None:
        learning.train_the_adapter_alone(self.make_subject(kind))

    def test_a_loaded_adapter_learns_on(self, kind: str) -> None:
        learning.learn_on_after_loading(self.make_subject(kind))

    def test_a_seed_repeats_everything(self, kind: str) -> None:
        learning.repeat_from_a_seed(self.make_subject(kind))

    def test_checkpointing_gives_the_same_gradients(self, kind: str) -> None:
        learning.checkpoint_without_a_difference(self.make_subject(kind))

    def test_half_precision_is_close(self, kind: str) -> None:
        learning.work_in_half_precision(self.make_subject(kind))

    def test_every_site_acts(self, kind: str) -> None:
        acting.act_at_every_site(self.make_subject(kind))

    def test_detaching_leaves_no_trace(self, kind: str) -> None:
        leaving.leave_no_trace(self.make_subject(kind))

    def test_merging_changes_no_output_or_is_refused(self, kind: str) -> None:
        leaving.merge_or_refuse(self.make_subject(kind))

    def test_combining_goes_by_the_weights_or_is_refused(self, kind: str) -> None:
        combining.combine_or_refuse(self.make_subject(kind))

    def test_loading_gives_the_same_logits(self, kind: str) -> None:
        keeping.give_the_same_after_loading(self.make_subject(kind))

    def test_files_are_the_same_after_loading(self, kind: str) -> None:
        keeping.write_the_same_after_loading(self.make_subject(kind))

    def test_the_configuration_is_kept(self, kind: str) -> None:
        keeping.keep_its_configuration(self.make_subject(kind))

    def test_what_does_not_fit_is_refused(self, kind: str) -> None:
        keeping.refuse_what_does_not_fit(self.make_subject(kind))

    def test_outputs_keep_their_shapes(self, kind: str) -> None:
        serving.keep_every_shape(self.make_subject(kind))

    def test_padding_changes_no_row(self, kind: str) -> None:
        serving.ignore_padding(self.make_subject(kind))

    def test_rows_are_independent(self, kind: str) -> None:
        serving.keep_rows_apart(self.make_subject(kind))

    def test_generating_needs_no_cache(self, writer: str) -> None:
        serving.generate_with_and_without_cache(self.make_subject(writer))

    def test_a_stack_with_lora_works(self, kind: str) -> None:
        serving.stand_beside_lora(self.make_subject(kind))

    def test_a_deep_copy_stands_alone(self, kind: str) -> None:
        serving.copy_with_the_model(self.make_subject(kind))

    def test_where_it_can_not_act_it_says_why(self) -> None:
        for kind, reason in self.refuses.items():
            keeping.refuse_with_a_reason(self.make_subject(kind), reason)
