"""The whole demo, with sizes at which nothing is learned."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

import hub
from hub.demo import Outcome, run_demo
from hub.demo.corpus import PACKAGES as PACKAGES_READ
from hub.demo.corpus import Library, read_library
from hub.demo.pretraining import Recipe, train_tokenizer
from hub.demo.report import format_trials
from hub.demo.tasks import ENGLISH_PLAN, PACKAGES_PLAN, make_english_task
from hub.demo.trials import Trial, recover, run_trials

RECIPE = Recipe(vocabulary=300, width=32, inner=48, layers=2, rows=2, length=32, steps=3)
PACKAGES = replace(PACKAGES_PLAN, rows=16, measured=16, epochs=1)
ENGLISH = replace(ENGLISH_PLAN, rows=16, measured=8, epochs=1, size=200)


def cut_library() -> Library:
    """The modules of the task's packages alone."""
    whole = read_library()
    seen = {p: s for p, s in whole.seen.items() if p.startswith(PACKAGES_READ)}
    return Library(seen, whole.held_out)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path, str]:
    """One run, its home, and what it printed."""
    home = tmp_path_factory.mktemp("demo") / "home"
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUB_REGISTRY", f"sqlite:///{home.parent / 'team.db'}")
        outcome = run_demo(
            home=home,
            recipe=RECIPE,
            packages=PACKAGES,
            english=ENGLISH,
            library=cut_library(),
            echo=said.append,
        )
    return outcome, home, "\n".join(said)


def test_every_learner_is_measured_on_both_tasks(demo: tuple[Outcome, Path, str]) -> None:
    outcome, _, _ = demo
    assert list(outcome.trials) == ["packages", "english"]
    for trials in outcome.trials.values():
        assert [trial.learner for trial in trials] == ["base", "full", "lora", "houlsby"]
        assert trials[1].share == 1
        for trial in trials[2:]:
            assert trial.adapter is not None
            assert 0 < trial.share < 0.2
            assert 0 < trial.size < trials[1].size
            assert trial.seconds > 0


def test_the_versions_are_in_the_home_and_have_their_numbers(
    demo: tuple[Outcome, Path, str],
) -> None:
    _, home, _ = demo
    registry = hub.Registry(home, f"sqlite:///{home / 'registry.db'}")
    assert {version.reference for version in registry.list()} == {
        f"demo-{task}@{number}" for task in ("packages", "english") for number in (1, 2)
    }
    for task, metric, best in (("packages", "accuracy", max), ("english", "perplexity", min)):
        values = [version.metrics[metric] for version in registry.list(f"demo-{task}")]
        chosen = registry.get(f"demo-{task}@production")
        assert chosen.metrics[metric] == best(values)
        assert chosen.task == task
    assert registry.publications("demo-english")


def test_what_was_pulled_computes_the_same(demo: tuple[Outcome, Path, str]) -> None:
    outcome, _, said = demo
    assert outcome.difference == 0
    assert "$ hub push demo-english@production demo/english" in said
    assert "$ hub pull demo/english" in said


def test_a_prompt_is_answered_with_each_and_with_both(demo: tuple[Outcome, Path, str]) -> None:
    outcome, _, said = demo
    assert list(outcome.answers) == ["base", "LoRA", "Houlsby", "both, LoRA below Houlsby"]
    assert all(outcome.answers.values())
    assert len(set(outcome.answers.values())) > 1
    assert all(who in said for who in outcome.answers)


def test_a_team_registry_is_left_alone(demo: tuple[Outcome, Path, str]) -> None:
    _, home, said = demo
    assert not (home.parent / "team.db").exists()
    assert f"HUB_HOME={home} hub list" in said


def test_what_is_printed_fits_a_hundred_columns(demo: tuple[Outcome, Path, str]) -> None:
    _, home, said = demo
    lines = [line for line in said.splitlines() if str(home) not in line and "http" not in line]
    assert max(map(len, lines)) <= 100


def test_another_base_of_another_architecture_will_do(tmp_path: Path) -> None:
    texts = list(read_library().seen.values())[:20]
    tokenizer = train_tokenizer(texts, 300)
    config = AutoConfig.for_model(
        "gpt2", vocab_size=300, n_embd=32, n_layer=2, n_head=2, n_positions=256,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    trials, _ = run_trials(make_english_task(ENGLISH), str(tmp_path), tokenizer, 0, lambda _: None)
    assert [trial.learner for trial in trials] == ["base", "full", "lora", "houlsby"]
    assert all(math.isfinite(trial.value) for trial in trials)


def test_recovery_is_the_share_of_full_fine_tunings_gain() -> None:
    task = make_english_task(ENGLISH)
    trials = [Trial(name, value, 1, 10, 1.0, 1) for name, value in VALUES.items()]
    assert recover(task, trials, trials[2]) == pytest.approx(0.75)
    worse = [trials[0], replace(trials[1], value=90.0), trials[2]]
    assert math.isnan(recover(task, worse, trials[2]))
    assert any("75%" in line for line in format_trials(task, trials))


VALUES = {"base": 80.0, "full": 40.0, "lora": 50.0}
