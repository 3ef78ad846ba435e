"""What a LoRA adapter is made of, and the patterns by which ranks and alphas differ."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import hub


@dataclass(frozen=True)
class LoRAConfig:
    """What a LoRA adapter is made of.

    r: the rank, 1 or more.
    alpha: the numerator of the scaling; r when left out.
    dropout: the share of a projection's inputs zeroed while training, 0 to 1.
    targets: where it acts: "attention", "feedforward", "all" (every projection but embeddings and
        the head), a regular expression that a module's whole path matches, or names that its path
        ends with.
    rslora: divide alpha by the square root of the rank.
    dora: learn the magnitude of each output too.
    rank_pattern, alpha_pattern: other ranks and alphas, by a pattern for the end of a path.
    exclude: paths to leave out, as a regular expression or as names.
    layers, layers_pattern: only these layers' modules, counted in the module list of that name.
    fan_in_fan_out: the layers keep their weight as (in, out), like GPT-2's; found, not chosen.
    parameters: the names of stacked parameters of experts where it acts; where it is left out,
        those that targets names.
    base_digests: what the base's own weights were where the adapter's file brought them along.
    """

    r: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all"
    rslora: bool = False
    dora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    exclude: str | tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()
    fan_in_fan_out: bool = False
    parameters: tuple[str, ...] | None = None
    base_digests: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for where, r in (("r", self.r), *self.rank_pattern.items()):
            if not isinstance(r, int) or isinstance(r, bool) or r < 1:
                raise hub.ConfigError(f"lora: {where} is {r!r}; a rank is a whole number from 1")
        for where, alpha in (("alpha", self.alpha), *self.alpha_pattern.items()):
            number = isinstance(alpha, int | float) and math.isfinite(alpha)
            if alpha is not None and not number:
                raise hub.ConfigError(f"lora: {where} is {alpha!r}; it must be a finite number")
        if not 0 <= self.dropout < 1:
            raise hub.ConfigError(f"lora: dropout is {self.dropout!r}; it must be in [0, 1)")
        for key in (*self.rank_pattern, *self.alpha_pattern):
            compile_pattern(key)

    def rank(self, path: str) -> int:
        """The rank at the module of this path."""
        return int(self.rank_pattern.get(find_pattern(self.rank_pattern, path), self.r))

    def scaling(self, path: str) -> float:
        """s in the equation, at the module of this path."""
        r = self.rank(path)
        alpha = self.alpha_pattern.get(find_pattern(self.alpha_pattern, path), self.alpha)
        return (r if alpha is None else alpha) / (math.sqrt(r) if self.rslora else r)


def find_place(site: hub.Site) -> str:
    """The path that ranks go by: experts of one parameter have one."""
    return site.path if site.expert is None else site.path.rpartition(".")[0]


def find_pattern(patterns: Collection[str], path: str) -> str:
    """The first key that matches the end of the path; the path itself where none does."""
    if not patterns:
        return path
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", path)), path)


def compile_pattern(text: str) -> re.Pattern[str]:
    """Raises ConfigError on what is no regular expression."""
    try:
        return re.compile(text)
    except re.error as error:
        raise hub.ConfigError(f"lora: {text!r} is no regular expression: {error}") from error
