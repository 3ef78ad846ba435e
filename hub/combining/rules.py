"""How adapters are combined: the options that a user gave, checked, and what they mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch.nn import functional as F

from hub.combining.arithmetic import (
    Majority,
    add_weighted,
    keep_largest,
    keep_some,
    merge_by_sign,
)
from hub.combining.factors import (
    Factors,
    compress_factors,
    compress_matrix,
    put_side_by_side,
)
from hub.errors import ConfigError
from hub.weights import DESCRIBED, is_weight

TOGETHER = "attach them together as hub.Stack(...), or hub compose 'stack(a, b)'"


class Rule:
    """How the parts become one; what `Method.combine` is given.

    how: one of `MIXES`, by which any tensors can be mixed, or of `FACTORED`, for changes of a
        weight that are kept as two factors.
    weights: one for each part, of any sign; None for the mean of the parts.
    density: the share of a tensor's values that is kept.
    majority_sign_method: what elects a sign, see `merge_by_sign`.
    svd_rank: the rank of what is compressed; None for that of the largest part at its place.
    seed: what the chances of DARE are drawn from, in the order in which tensors are mixed.
    """

    MIXES = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
    FACTORED = ("cat", "svd", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd")

    def __init__(
        self,
        how: str,
        parts: int,
        weights: Sequence[float] | None = None,
        *,
        density: float | None = None,
        majority_sign_method: str | None = None,
        svd_rank: int | None = None,
        seed: int | None = None,
    ) -> None:
        """Raises ConfigError on an option that can't be, or would do nothing."""
        hows = (*self.MIXES, *self.FACTORED)
        if how not in hows:
            raise ConfigError(f"how is {how!r}; choose from {', '.join(hows)}")
        self.how = how
        self._draws, self._elects = how.startswith("dare"), "ties" in how
        self._compresses = how.endswith("svd")
        prunes = how.startswith(("dare", "magnitude"))
        self.weights = self._check_weights(weights, parts)

        self.density: float = self._take(
            "density", density, prunes or self._elects, None if prunes else 1.0
        )
        if not is_number(self.density) or not 0 < self.density <= 1:
            raise ConfigError(
                f"density is {self.density!r}; how={how!r} takes the share of the values to keep, "
                "above 0 to 1"
            )
        self.majority_sign_method: Majority = self._take(
            "majority_sign_method", majority_sign_method, self._elects, "total"
        )
        if self.majority_sign_method not in get_args(Majority):
            raise ConfigError(
                f"majority_sign_method is {majority_sign_method!r}; choose from "
                f"{', '.join(get_args(Majority))}"
            )
        self.svd_rank: int | None = self._take("svd_rank", svd_rank, self._compresses, None)
        if self.svd_rank is not None and not is_whole(self.svd_rank, 1):
            raise ConfigError(f"svd_rank is {svd_rank!r}; it is a whole number from 1")
        self.seed: int = self._take("seed", seed, self._draws, 0)
        if not is_whole(self.seed, 0):
            raise ConfigError(f"seed is {seed!r}; it is a whole number from 0 to {LARGEST}")
        self._generator = torch.Generator().manual_seed(self.seed)

    @property
    def factored(self) -> bool:
        """Whether it has a meaning for changes alone that are kept as two factors."""
        return self.how in self.FACTORED

    @property
    def sums(self) -> bool:
        """Whether what comes out is the weighted sum of the parts and nothing else."""
        return self.density == 1 and (not self._elects or len(self.weights) == 1)

    def describe(self) -> dict[str, Any]:
        """The options that have an effect, by name, as JSON keeps them."""
        said: dict[str, Any] = {"how": self.how, "weights": list(self.weights)}
        if self._elects or self.how.startswith(("dare", "magnitude")):
            said["density"] = self.density
        if self._elects:
            said["majority_sign_method"] = self.majority_sign_method
        if self.svd_rank is not None:
            said["svd_rank"] = self.svd_rank
        if self._draws:
            said["seed"] = self.seed
        return said

    def mix(self, ds: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
        """One tensor of several, each a difference from what changes nothing.

        ds: in float32, of one shape. weights: of these; a part that has no such tensor is left
        out, and counts as no difference.
        """
        thinned = [self._thin(d) for d in ds]
        if self._elects:
            return merge_by_sign(thinned, weights, self.majority_sign_method)
        return add_weighted(thinned, weights)

    def mix_factors(self, pairs: Sequence[Factors], weights: Sequence[float]) -> Factors:
        """One change of a weight, D = B A, of several.

        pairs: B, (out, r), and A, (r, in), of each, in float32; r may differ. What comes out is by

            linear, cat                     the weighted sum; its r is the sum of theirs
            dare_linear, magnitude_prune    the weighted sum of what the thinned factors make
            ties, dare_ties                 the factors, mixed as tensors are, by the square roots
                                            of the weights, shorter ones with zeros at the end
            svd                             the nearest to the weighted sum of rank `svd_rank`
            ..._svd                         the same of what mixing every D gives, nearly
        """
        if self._compresses:
            rank = self.svd_rank or max(len(A) for _, A in pairs)
            if self.how == "svd":
                return compress_factors(*put_side_by_side(pairs, weights), rank)
            return compress_matrix(self.mix([B @ A for B, A in pairs], weights), rank)
        if self.density < 1:
            pairs = [(self._thin(B), self._thin(A)) for B, A in pairs]
        if not self._elects:
            return put_side_by_side(pairs, weights)
        r = max(len(A) for _, A in pairs)
        Bs = [F.pad(B, (0, r - B.shape[1])) for B, _ in pairs]
        As = [F.pad(A, (0, 0, 0, r - len(A))) for _, A in pairs]
        roots = [math.sqrt(abs(weight)) for weight in weights]
        signed = [math.copysign(root, weight) for root, weight in zip(roots, weights, strict=True)]
        elect = self.majority_sign_method
        return merge_by_sign(Bs, roots, elect), merge_by_sign(As, signed, elect)

    def _thin(self, d: torch.Tensor) -> torch.Tensor:
        if self._draws:
            return keep_some(d, self.density, self._generator)
        return keep_largest(d, self.density)

    def _take(self, name: str, value: Any, used: bool, default: Any) -> Any:
        """An option, or what it is when left out. Raises ConfigError on one without effect."""
        if value is not None and not used:
            raise ConfigError(f"{name} does nothing with how={self.how!r}; leave it out")
        return default if value is None else value

    def _check_weights(self, weights: Sequence[float] | None, parts: int) -> tuple[float, ...]:
        if weights is None:
            # TIES takes a mean itself.
            return (1.0 if self._elects else 1 / parts,) * parts
        if not isinstance(weights, Sequence) or len(weights) != parts:
            raise ConfigError(f"weights is {weights!r}; give a list of {parts}, one for each part")
        for weight in weights:
            if not is_weight(weight):
                raise ConfigError(f"weights has {weight!r}; weights are {DESCRIBED}")
        return tuple(map(float, weights))


LARGEST = 2**63 - 1  # the largest seed that torch takes on every machine


def is_number(value: Any) -> bool:
    """Whether a value is a number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: Any, least: int) -> bool:
    """Whether a value is a whole number from `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= LARGEST
