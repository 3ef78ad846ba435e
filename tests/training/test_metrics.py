"""Metrics have the values that their definitions give, worked out by hand or by their authors."""

from __future__ import annotations

import math
import sys

import pytest

from hub.errors import DataError, PackageMissing
from hub.training.metrics import METRICS, choose_metrics, score_perplexity, score_texts

# The example in rouge-score's own README.
TARGET = "The quick brown fox jumps over the lazy dog"
PREDICTION = "The quick brown dog jumps on the log."


def test_accuracy_is_the_share_of_equal_answers() -> None:
    assert score_texts("accuracy", ["a", "b", "c ", "d"], ["a", "x", "c", "d"]) == 0.5


def test_exact_match_leaves_spaces_around_out() -> None:
    assert score_texts("exact_match", [" a b ", "A", "", "d"], ["a b", "a", "", "d"]) == 0.75


def test_rouge_of_rouge_scores_own_example() -> None:
    # 6 of 8 predicted and of 9 target words shared; 2 of 7 and of 8 bigrams; longest common
    # subsequence "the quick brown jumps the", 5 words.
    assert score_texts("rouge1", [PREDICTION], [TARGET]) == pytest.approx(2 * 6 / (8 + 9))
    assert score_texts("rouge2", [PREDICTION], [TARGET]) == pytest.approx(2 * 2 / (7 + 8))
    assert score_texts("rougeL", [PREDICTION], [TARGET]) == pytest.approx(2 * 5 / (8 + 9))


def test_rouge_is_the_mean_over_rows() -> None:
    both = score_texts("rouge1", [PREDICTION, "nothing"], [TARGET, "else"])
    assert both == pytest.approx(6 / 17)


def test_perplexity_of_even_odds_is_their_number() -> None:
    assert score_perplexity(5 * math.log(99), 5) == pytest.approx(99)
    assert score_perplexity(1e6, 1) == math.inf


def test_perplexity_alone_is_better_lower() -> None:
    assert [name for name, metric in METRICS.items() if not metric.higher] == ["perplexity"]


def test_default_metric_depends_on_the_model() -> None:
    assert [m.name for m in choose_metrics(None, "classification", False)] == ["accuracy"]
    assert [m.name for m in choose_metrics(None, "causal", False)] == ["perplexity"]


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("f1", "causal", "no metric 'f1'; for this model choose from accuracy, exact_match"),
        ("rouge1", "classification", "rouge1 does not measure a classification model.*accuracy"),
        ("accuracy", "causal", "needs choices, .*choose from exact_match"),
        ([], "causal", "no metric was named"),
    ],
)
def test_metric_that_does_not_fit_is_refused(name: str, kind: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        choose_metrics(name, kind, choices=False)  # type: ignore[arg-type]


def test_rouge_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(PackageMissing, match="rouge-score is not installed"):
        choose_metrics("rougeL", "causal", False)


def test_choices_are_not_for_a_classifier() -> None:
    with pytest.raises(DataError, match="a classifier chooses among its labels; leave them out"):
        choose_metrics("accuracy", "classification", choices=True)
