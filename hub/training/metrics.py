"""Metrics: what says how good an adapter is at its task.

accuracy: the share of rows answered right: the class with the highest score, or, for a language
    model, the choice with the highest likelihood, its end included.
exact_match: the share of rows where the text generated is the completion, spaces around apart.
rouge1, rouge2, rougeL: the mean F-measure of ROUGE between both, as `rouge-score` computes it
    without stemming (Lin, 2004, https://aclanthology.org/W04-1013).
perplexity: exp of the mean negative log-likelihood of a completion's token, the end included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hub.errors import DataError, PackageMissing

Kind = Literal["causal", "seq2seq", "classification"]
Need = Literal["classes", "choices", "likelihood", "generation"]


@dataclass(frozen=True)
class Metric:
    """A metric, by the name that a user types.

    higher: whether more is better.
    """

    name: str
    higher: bool = True

    def find_need(self, kind: Kind) -> Need | None:
        """What must be computed for it with this kind of model; None where it has no meaning."""
        if kind == "classification":
            return "classes" if self.name == "accuracy" else None
        if self.name == "accuracy":
            return "choices"
        return "likelihood" if self.name == "perplexity" else "generation"


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy"),
        Metric("exact_match"),
        Metric("perplexity", higher=False),
        Metric("rouge1"),
        Metric("rouge2"),
        Metric("rougeL"),
    )
}
DEFAULTS: dict[Kind, str] = {
    "causal": "perplexity",
    "seq2seq": "perplexity",
    "classification": "accuracy",
}


def choose_metrics(names: str | Sequence[str] | None, kind: Kind, choices: bool) -> list[Metric]:
    """The metrics that a user named, or the default one.

    Raises DataError on an unknown one or one that this kind of model can't be measured by,
    PackageMissing where a package for it is not installed.
    """
    if names is None:
        names = DEFAULTS[kind]
    fit = ", ".join(name for name, m in METRICS.items() if m.find_need(kind) is not None)
    chosen = []
    if choices and kind == "classification":
        raise DataError(
            "choices are completions of a language model, and a classifier chooses among its "
            "labels; leave them out"
        )
    for name in [names] if isinstance(names, str) else names:
        if name not in METRICS:
            raise DataError(f"no metric {name!r}; for this model choose from {fit}")
        metric = METRICS[name]
        need = metric.find_need(kind)
        if need is None:
            raise DataError(f"{name} does not measure a {kind} model; choose from {fit}")
        if need == "choices" and not choices:
            raise DataError(
                "accuracy of a language model needs choices, the completions to choose from; "
                f"without them choose from {fit.replace('accuracy, ', '')}"
            )
        if name.startswith("rouge"):
            import_rouge()
        chosen.append(metric)
    if not chosen:
        raise DataError(f"no metric was named; choose from {fit}")
    return chosen


def score_texts(name: str, predictions: Sequence[str], references: Sequence[str]) -> float:
    """accuracy, exact_match or a ROUGE of predictions against references, in [0, 1]."""
    pairs = list(zip(predictions, references, strict=True))
    if name == "accuracy":
        return sum(p == r for p, r in pairs) / len(pairs)
    if name == "exact_match":
        return sum(p.strip() == r.strip() for p, r in pairs) / len(pairs)
    scorer = import_rouge()([name])
    total: float = sum(scorer.score(r, p)[name].fmeasure for p, r in pairs)
    return total / len(pairs)


def score_perplexity(loss: float, tokens: int) -> float:
    """exp(loss / tokens); infinity where that is beyond a float."""
    try:
        return math.exp(loss / tokens)
    except OverflowError:
        return math.inf


def import_rouge() -> type:
    """rouge-score's scorer. Raises PackageMissing."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise PackageMissing("rouge-score", "train") from error
    scorer: type = RougeScorer
    return scorer
