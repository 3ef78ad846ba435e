"""LoRA: a low-rank update beside a frozen projection; and DoRA, which also learns its magnitude.

    h = W x + s B A x,    A: (r, in_features), B: (out_features, r), s = alpha / r

Hu et al., 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1, equation 3,
https://arxiv.org/abs/2106.09685. B starts at zero, so a new adapter changes nothing.

What differs from the paper: A starts Kaiming-uniform as in the authors' released code, not
Gaussian; `rslora` takes s = alpha / sqrt(r) (Kalajdzievski, 2023, equation 3,
https://arxiv.org/abs/2312.03732); a rank or an alpha of their own for some modules, as in peft.
On an embedding A x is the column of A that the token names; A starts at zero there and B Gaussian.

With `dora`, Liu et al., 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", equation 5,
https://arxiv.org/abs/2402.09353:

    h = m (W + s B A) x / ||W + s B A||,    m: (out_features,), a norm for each output

m starts as ||W||, and the norm is taken as a constant by the gradient (section 4.3).

Parameters: r (in_features + out_features) for each projection; DoRA out_features more.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import hub

# Starts that leave the base's weights as they are; peft's others change them, and an adapter
# trained so is wrong on the base that everyone has.
HARMLESS_STARTS = (True, False, "gaussian", "orthogonal", "eva")
CONVERTIBLE_STARTS = ("pissa", "olora", "corda")


@dataclass(frozen=True)
class LoRAConfig:
    """What a LoRA adapter is made of.

    r: the rank, 1 or more.
    alpha: the numerator of the scaling; r when left out.
    dropout: the share of a projection's inputs zeroed while training, 0 to 1.
    targets: where it acts: "attention", "feedforward", "all" (every projection but embeddings and
        the head), a
        regular expression that a module's whole path matches, or names that its path ends with.
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


class Update(torch.autograd.Function):
    """y + s B A x, and h = A x with a row for each rank, (r, vectors), which is kept for B.

    x: (..., in_features), y: (..., out_features), A: (r, in_features), B: (out_features, r).

    All products are laid out so that what is long is innermost. torch's own gradients would put the
    few ranks there, which takes a processor's library up to four times as long
    (benchmarks/training.py). x is kept for the way back in its own precision, in which every
    projection of it shares one tensor, and not in A's; y is not kept.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: torch.Tensor, y: torch.Tensor, A: torch.Tensor, B: torch.Tensor, s: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum, (vectors, out_features) in y's precision, and h. Sum and product are one where
        they can be, which spares a tensor of y's size."""
        h = torch.mm(A, x.reshape(-1, x.shape[-1]).to(A.dtype).t())
        rows = y.reshape(-1, y.shape[-1])
        if y.dtype == h.dtype:
            changed = torch.addmm(rows, h.t(), B.t(), alpha=s)
        elif h.dtype == B.dtype == torch.promote_types(y.dtype, B.dtype):
            changed = rows.to(B.dtype).addmm_(h.t(), B.t(), alpha=s).to(y.dtype)
        else:  # autocast chose that of h, or y's is the wider one
            changed = rows + torch.mm((h * s).t(), B.t()).to(y.dtype)
        return changed, h

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        """Keep what the gradients that are asked for are made of."""
        x, y, A, B, ctx.s = inputs
        by_x, _, by_A, by_B, _ = ctx.needs_input_grad
        ctx.set_materialize_grads(False)
        ctx.x_shape, ctx.y_shape, ctx.x_dtype, ctx.dtype = x.shape, y.shape, x.dtype, A.dtype
        ctx.save_for_backward(
            x if by_A else None,
            A if by_x else None,
            B if by_x or by_A else None,
            output[1] if by_B else None,
        )

    @staticmethod
    def backward(
        ctx: Any, dy: torch.Tensor | None, of_h: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        """The gradients of those that are asked for one. h has one only where gradients of
        gradients are taken."""
        x, A, B, h = ctx.saved_tensors
        by_x, _, by_A, by_B, _ = ctx.needs_input_grad
        dx = dA = dB = None
        dh = None if of_h is None else of_h.to(ctx.dtype)
        rows = None if dy is None else dy.to(ctx.dtype)
        if rows is not None and (by_x or by_A):
            change = torch.mm(B.t(), rows.t()).mul_(ctx.s)
            dh = change if dh is None else dh + change
        if by_x and dh is not None:
            # In the shape of x at once: to a view autograd can't add what else comes to x in place.
            shaped = dh.t().view(*ctx.x_shape[:-1], len(A))
            dx = torch.matmul(shaped, A).to(ctx.x_dtype)
        if by_A and dh is not None:
            dA = torch.mm(dh, x.reshape(-1, x.shape[-1]).to(ctx.dtype))
        if by_B and rows is not None:
            dB = torch.mm(h.to(ctx.dtype), rows).mul_(ctx.s).t()
        return dx, None if dy is None else dy.view(ctx.y_shape), dA, dB, None


# torch asks for it at every call, and finding it anew takes as long as one of the products.
Update.forward.__signature__ = inspect.signature(Update.forward)  # type: ignore[attr-defined]


class LoRALayer(nn.Module):
    """The two factors beside one projection."""

    def __init__(self, site: hub.Site, config: LoRAConfig) -> None:
        super().__init__()
        r = config.rank(find_place(site))
        self.base_digest = config.base_digests.get(site.path)
        self.scaling = config.scaling(find_place(site))
        self.dropout = config.dropout
        self.lora_A = nn.Linear(site.in_features, r, bias=False)
        self.lora_B = nn.Linear(r, site.out_features, bias=False)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x: (..., in_features), y: (..., out_features) -> (..., out_features)."""
        # Read from torch's own tables: looking up self.lora_A.weight and self.lora_B.weight costs
        # as much as one of the products while decoding (benchmarks/overhead.py).
        modules: dict[str, Any] = self._modules
        A = modules["lora_A"]._parameters["weight"]
        B = modules["lora_B"]._parameters["weight"]
        if self.dropout and self.training:
            x = F.dropout(x.to(A.dtype), self.dropout)
        if torch.compiler.is_compiling():  # which lays products out, and joins the sum to them
            return y + (F.linear(F.linear(x.to(A.dtype), A), B) * self.scaling).to(y.dtype)
        if torch.is_grad_enabled():
            rows: torch.Tensor = Update.apply(x, y, A, B, self.scaling)[0]  # type: ignore[no-untyped-call]
            return rows.view(y.shape)
        # The same products as with gradients, or checkpointing, which runs without them first,
        # would round otherwise; while decoding, the fewest calls.
        if x.dim() > 1 and x.shape[-2] > 1:
            return Update.forward(x, y, A, B, self.scaling)[0].view(y.shape)
        if x.dtype != A.dtype:
            x = x.to(A.dtype)
        h = F.linear(x, A)
        # The sum takes the place of the change.
        change = F.linear(h, B)
        if change.dtype != y.dtype:
            change = change.to(y.dtype)
        return torch.add(y, change, alpha=self.scaling, out=change)

    def multiply(self) -> torch.Tensor:
        """s B A, (out_features, in_features), in float32."""
        return self.scaling * (self.lora_B.weight.float() @ self.lora_A.weight.float())


class LoRARows(nn.Module):
    """LoRA at one projection for rows that have different ones, or stacks of them, or none.

    A stack is one pair of factors, those of its layers side by side; shorter pairs are filled up
    with zeros. What serves is gathered once; what learns is read at each call.
    """

    def __init__(self, chains: Sequence[Sequence[LoRALayer]], rows: Sequence[int]) -> None:
        super().__init__()
        # In tuples, or torch would take the layers for children.
        self.chains = tuple(tuple(chain) for chain in chains)
        self.rows = tuple(rows)
        layers = [layer for chain in chains for layer in chain]
        self.like = (layers[0],)
        self.learns = any(p.requires_grad for layer in layers for p in layer.parameters())
        self.r = max(count_ranks(chain) for chain in chains)

    def gather(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A, (chains, r, in_features), and s B transposed, (chains, r, out_features), of each."""
        like, pairs = self.like[0], []
        for chain in self.chains:
            A = torch.cat([like.lora_A.weight[:0], *(layer.lora_A.weight for layer in chain)])
            scaled = (layer.lora_B.weight.T * layer.scaling for layer in chain)
            B = torch.cat([like.lora_B.weight.T[:0], *scaled])
            pairs.append([F.pad(factor, (0, 0, 0, self.r - len(A))) for factor in (A, B)])
        first, second = (torch.stack(factors) for factors in zip(*pairs, strict=True))
        return first, second


class LoRAFew(LoRARows):
    """The same for few different ones: all rows times all factors, of which a mask keeps each
    row's own. A long row goes with a copy of its own factors, which is less to compute then."""

    def __init__(self, chains: Sequence[Sequence[LoRALayer]], rows: Sequence[int]) -> None:
        super().__init__(chains, rows)
        self.kept = None if self.learns else keep(self.gather)
        device = self.like[0].lora_A.weight.device
        self.owner = torch.tensor(self.rows, device=device)
        own = self.owner.unsqueeze(1) == torch.arange(len(chains), device=device)
        own = own.repeat_interleave(self.r, dim=1).unsqueeze(1)  # (rows, 1, chains * r)
        self.own = own.to(self.like[0].lora_A.weight.dtype)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x: (rows, n, in_features), y: (rows, n, out_features) -> (rows, n, out_features)."""
        A, B = self.kept or self.gather()
        if x.dtype != A.dtype:
            x = x.to(A.dtype)
        if x.shape[1] * A.shape[0] * A.shape[1] > FEW:
            return add_product(y, torch.bmm(x, A[self.owner].transpose(1, 2)), B[self.owner])
        h = F.linear(x, A.flatten(0, 1)) * self.own
        B = B.flatten(0, 1)
        if y.dtype != B.dtype:
            return y + (h @ B).to(y.dtype)
        flat = torch.addmm(y.reshape(-1, y.shape[-1]), h.flatten(0, 1), B)
        return flat.view(y.shape)


class LoRAMany(LoRARows):
    """The same for many different ones: each row times a copy of its own factors.

    before: the same for the rows before, whose copies are taken over where rows stay as they were.
    """

    def __init__(
        self,
        chains: Sequence[Sequence[LoRALayer]],
        rows: Sequence[int],
        before: LoRAMany | None = None,
    ) -> None:
        super().__init__(chains, rows)
        self.kept = None if self.learns else keep(lambda: self.copy(before))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x: (rows, n, in_features), y: (rows, n, out_features) -> (rows, n, out_features)."""
        if self.kept is None and not self.learns:  # another took the copies over
            self.kept = keep(lambda: self.copy(None))
        A, B = self.kept or [factor[list(self.rows)] for factor in self.gather()]
        if x.dtype != A.dtype:
            x = x.to(A.dtype)
        return add_product(y, torch.bmm(x, A.transpose(1, 2)), B)

    def copy(self, before: LoRAMany | None) -> tuple[torch.Tensor, torch.Tensor]:
        """A, (rows, r, in_features), and s B transposed, (rows, r, out_features), of each row; in
        the copies of `before` where they are as large."""
        like = self.like[0].lora_A.weight
        sizes = [
            (len(self.rows), self.r, width)
            for width in (like.shape[1], len(self.like[0].lora_B.weight))
        ]
        known: list[Any] = [None] * len(self.rows)
        copies = None if before is None else before.kept
        if before is not None and copies is not None:
            if [c.shape for c in copies] == sizes and copies[0].dtype == like.dtype:
                known = [before.chains[number] for number in before.rows]
                before.kept = None
            else:
                copies = None
        A, B = copies or [like.new_empty(size) for size in sizes]
        for row, number in enumerate(self.rows):
            chain, start = self.chains[number], 0
            if chain == known[row]:
                continue
            for layer in chain:
                end = start + count_ranks([layer])
                A[row, start:end].copy_(layer.lora_A.weight)
                torch.mul(layer.lora_B.weight.T, layer.scaling, out=B[row, start:end])
                start = end
            A[row, start:].zero_()
            B[row, start:].zero_()
        return A, B


# Up to so many values for each row between all factors, all rows times all of them is the least to
# compute (benchmarks/mixed.py); beyond, each row with its own.
FEW = 64


def count_ranks(chain: Sequence[LoRALayer]) -> int:
    """r of a stack."""
    return sum(len(layer.lora_A.weight) for layer in chain)


def add_product(y: torch.Tensor, h: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """y + h B, row by row: (rows, n, out_features)."""
    return torch.baddbmm(y, h, B) if y.dtype == B.dtype else y + torch.bmm(h, B).to(y.dtype)


@torch.inference_mode(mode=False)
@torch.no_grad()
def keep(make: Callable[[], tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    """What `make` gives, to be used with gradients and without."""
    return make()


class LoRAEmbedding(nn.Module):
    """The two factors beside one embedding, by peft's names.

    Some bases multiply what they look up; what is added is multiplied likewise. A token that the
    base pads with has no gradient, as in the base.
    """

    def __init__(self, site: hub.Site, config: LoRAConfig) -> None:
        super().__init__()
        r = config.rank(site.path)
        self.base_digest = config.base_digests.get(site.path)
        self.scaling = config.scaling(site.path)
        self.lora_embedding_A = nn.Parameter(torch.zeros(r, site.in_features))
        self.lora_embedding_B = nn.Parameter(torch.randn(site.out_features, r))
        self.base: hub.Base | None = None

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x: (...) token ids, y: (..., width) -> (..., width)."""
        module: Any = None if self.base is None else self.base.module
        padding = None if module is None else module.padding_idx
        rows = F.embedding(x, self.lora_embedding_A.T, padding) @ self.lora_embedding_B.T
        change = rows * self.scaling
        scale = getattr(module, "embed_scale", None)
        if scale is not None:
            change = change * scale
        return y + change.to(y.dtype)

    def multiply(self) -> torch.Tensor:
        """s B A, (width, vocabulary), in float32."""
        return self.scaling * (self.lora_embedding_B.float() @ self.lora_embedding_A.float())


class DoRALayer(LoRALayer):
    """The factors beside one projection, and the magnitude of each of its outputs."""

    def __init__(self, site: hub.Site, config: LoRAConfig) -> None:
        super().__init__(site, config)
        self.lora_magnitude_vector = nn.Parameter(torch.ones(site.out_features))
        self.stamp = 0
        self.base: hub.Base | None = None

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x: (..., in_features), y: (..., out_features) -> (..., out_features)."""
        assert self.base is not None
        gain = find_gain(self)
        if self.dropout and self.training:
            # The base's own part keeps the whole input; what the gain adds to it does not.
            x = F.dropout(x.to(gain.dtype), self.dropout)
            weight = self.base.read_weight().to(gain.dtype)
            change = F.linear(F.linear(x, self.lora_A.weight), self.lora_B.weight) * self.scaling
            return (y + (gain - 1) * F.linear(x, weight) + gain * change).to(y.dtype)
        bias = self.base.read_bias()
        if bias is None:
            return (gain * super().forward(x, y)).to(y.dtype)
        return (gain * super().forward(x, y - bias) + bias).to(y.dtype)


class DoRAEmbedding(LoRAEmbedding):
    """The factors beside one embedding, and the magnitude of each of its outputs."""

    def __init__(self, site: hub.Site, config: LoRAConfig) -> None:
        super().__init__(site, config)
        self.lora_magnitude_vector = nn.Parameter(torch.ones(site.out_features))
        self.stamp = 0

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x: (...) token ids, y: (..., width) -> (..., width)."""
        return (find_gain(self) * super().forward(x, y)).to(y.dtype)


Layer = LoRALayer | LoRAEmbedding
WithMagnitude = DoRALayer | DoRAEmbedding


def find_gain(layer: WithMagnitude) -> torch.Tensor:
    """m / ||W + s B A||, (out_features,): what was kept when a layer that only serves was attached
    and has not changed since, else what it is now."""
    kept = layer._buffers.get("gain")
    # A compiled graph can't ask for versions, and would break off here.
    if kept is not None and (torch.compiler.is_compiling() or layer.stamp == read_stamp(layer)):
        return kept
    return measure_gain(layer, read_rows(layer))


def read_stamp(layer: WithMagnitude) -> int:
    """A number that is another after any change of the parameters; none while they learn."""
    parameters = list(layer.parameters())
    return -1 if any(p.requires_grad for p in parameters) else sum(p._version for p in parameters)


def measure_gain(layer: WithMagnitude, weight: torch.Tensor) -> torch.Tensor:
    """The same over a weight of (out_features, in_features). The gradient is m's alone."""
    with torch.no_grad():
        norm = (weight.float() + layer.multiply()).norm(dim=1)
        norm.clamp_(min=torch.finfo(norm.dtype).tiny)  # an output whose weights are all zero
    gain: torch.Tensor = layer.lora_magnitude_vector / norm
    return gain


def read_rows(layer: WithMagnitude) -> torch.Tensor:
    """The base's weight, (out_features, in_features), of an embedding too."""
    assert layer.base is not None
    weight = layer.base.read_weight()
    return weight.T if isinstance(layer, LoRAEmbedding) else weight


class LoRA(hub.Method[LoRAConfig]):
    """The method as the hub knows it."""

    name = "lora"
    paper = "Hu et al., 2021, LoRA: Low-Rank Adaptation, https://arxiv.org/abs/2106.09685"
    config = LoRAConfig
    peft_type = "LORA"

    def choose_sites(self, sites: Sequence[hub.Site], config: LoRAConfig) -> Sequence[hub.Site]:
        """The projections that `targets` names and nothing excludes; experts by `parameters`, where
        it is given."""
        named = config.parameters
        chosen: list[hub.Site] = []
        if config.targets or not named:
            chosen += hub.choose_targets(
                "lora",
                sites if named is None else [site for site in sites if site.expert is None],
                config.targets,
                exclude=config.exclude,
                layers=config.layers,
                layers_pattern=config.layers_pattern,
            )
        if named:
            experts = [site for site in sites if site.expert is not None]
            if not experts:
                raise hub.ConfigError(
                    f"lora: parameters names {named[0]!r}, and this base has no stacked experts; "
                    "name projections with targets"
                )
            chosen += hub.choose_targets("lora", experts, named)
        places = {find_place(site) for site in chosen if site.expert is not None}
        left = {site for site in sites if site.part and find_place(site) in places} - set(chosen)
        if left:
            raise hub.ConfigError(
                f"lora: targets leaves out {next(iter(left)).path}, and the experts of a parameter "
                "go together; name the parameter"
            )
        return chosen

    def build(self, site: hub.Site, config: LoRAConfig) -> nn.Module:
        """The layer for one projection: a new one changes nothing."""
        if site.role == "embedding":
            return (DoRAEmbedding if config.dora else LoRAEmbedding)(site, config)
        return (DoRALayer if config.dora else LoRALayer)(site, config)

    def start(self, module: nn.Module, site: hub.Site, config: LoRAConfig, base: hub.Base) -> None:
        """DoRA's m is ||W|| at first."""
        if isinstance(module, WithMagnitude):
            module.base = base
            module.lora_magnitude_vector.copy_(read_rows(module).float().norm(dim=1))

    def bind(self, module: nn.Module, site: hub.Site, base: hub.Base) -> None:
        """Give a layer the base where it computes with it.

        Raises ConfigError where the adapter's file holds other weights of the base than it has.
        """
        assert isinstance(module, Layer)
        known = module.base_digest
        if known is not None and known != digest(base.read_weight()):
            raise hub.ConfigError(
                f"lora: the adapter's file holds weights of {site.path} that are not this base's: "
                "its vocabulary was resized or trained; attach it to the base that it was saved "
                "with"
            )
        if isinstance(module, LoRAEmbedding | DoRALayer):
            module.base = base
        if isinstance(module, WithMagnitude) and not module.lora_magnitude_vector.requires_grad:
            module.register_buffer("gain", find_gain(module), persistent=False)
            module.stamp = read_stamp(module)

    def settle_config(self, config: LoRAConfig, sites: Sequence[hub.Site]) -> LoRAConfig:
        """Name the modules by their whole paths, which mean the same to us, peft and a server.

        Raises ConfigError on a pattern for ranks or alphas that matches none of them.
        """
        for key in (*config.rank_pattern, *config.alpha_pattern):
            if not any(find_pattern([key], find_place(site)) == key for site in sites):
                raise hub.ConfigError(
                    f"lora: the pattern {key!r} matches none of the {len(sites)} modules chosen, "
                    f"such as {sites[0].path}"
                )
        layers = [site for site in sites if site.expert is None and site.role != "embedding"]
        return replace(
            config,
            alpha=config.r if config.alpha is None else config.alpha,
            targets=tuple(site.path for site in sites if site.expert is None),
            parameters=tuple(dict.fromkeys(find_place(s) for s in sites if s.expert is not None)),
            exclude=(),
            layers=None,
            layers_pattern=(),
            fan_in_fan_out=bool(layers) and all(site.transposed for site in layers),
        )

    def weight_delta(self, module: nn.Module, weight: torch.Tensor) -> torch.Tensor:
        """s B A, (out_features, in_features); with magnitudes what they make of W too."""
        assert isinstance(module, Layer)
        change = module.multiply()
        if not isinstance(module, WithMagnitude):
            return change
        rows = weight if module.base is None else read_rows(module)
        gain = measure_gain(module, rows.to(change.device))[:, None]
        return (gain - 1) * weight.to(change.device) + gain * change

    def bias_delta(self, module: nn.Module, bias: torch.Tensor) -> torch.Tensor | None:
        """Magnitudes act on all but the base's own bias, so on what others added to it."""
        if not isinstance(module, DoRALayer) or module.base is None:
            return None
        own = module.base.read_bias()
        if own is None or torch.equal(own.float(), bias):
            return None
        return (measure_gain(module, read_rows(module)) - 1) * (bias - own)

    def combine(
        self,
        configs: Sequence[LoRAConfig],
        tensors: Sequence[Mapping[str, torch.Tensor]],
        rule: hub.Rule,
    ) -> tuple[LoRAConfig, Mapping[str, torch.Tensor]]:
        """Each module's s B A by the rule. In the result s is 1, and magnitudes are averaged.

        Raises ConfigError on magnitudes that have no mean.
        """
        parts = list(zip(configs, tensors, rule.weights, strict=True))
        combined, ranks = average_magnitudes(configs, tensors, rule), {}
        places = {place for config in configs for place in config.parameters or ()}
        for name in sorted(set().union(*(list_factors(config, part) for config, part, _ in parts))):
            path, _, factor = name.rpartition(".lora_")
            other = f"{path}.lora_{factor.replace('A', 'B')}"
            place = path.rpartition(".")[0]
            place = place if place in places else path
            pairs, weights = [], []
            for config, part, weight in parts:
                if name in part:
                    pairs.append((part[other], part[name]))
                    weights.append(weight * config.scaling(place))
            combined[other], combined[name] = rule.mix_factors(pairs, weights)
            ranks[place] = combined[name].shape[0]
        return join_configs(configs, ranks, places), combined

    def write_tensors(
        self, config: LoRAConfig, tensors: Mapping[str, torch.Tensor]
    ) -> Mapping[str, torch.Tensor]:
        """peft keeps the factors of a parameter's experts in one tensor each."""
        return stack_experts(config, tensors)

    def write_config(self, config: LoRAConfig) -> dict[str, Any]:
        """The fields of peft's LoraConfig."""
        as_list = list(config.targets) if isinstance(config.targets, tuple) else config.targets
        return {
            "r": config.r,
            "lora_alpha": config.r if config.alpha is None else config.alpha,
            "lora_dropout": config.dropout,
            "target_modules": "all-linear" if as_list == "all" else as_list,
            "target_parameters": listed(config.parameters),
            "exclude_modules": listed(config.exclude),
            "layers_to_transform": listed(config.layers),
            "layers_pattern": listed(config.layers_pattern),
            "use_rslora": config.rslora,
            "use_dora": config.dora,
            "rank_pattern": dict(config.rank_pattern),
            "alpha_pattern": dict(config.alpha_pattern),
            "fan_in_fan_out": config.fan_in_fan_out,
            "bias": "none",
            "init_lora_weights": True,
            **({"base_digests": dict(config.base_digests)} if config.base_digests else {}),
        }

    def read_config(self, fields: Mapping[str, Any]) -> LoRAConfig:
        """What peft's fields mean; ConfigError on a variant of LoRA that is not this one."""
        known = dict(fields)
        options = {
            ours: known.pop(theirs)
            for ours, theirs in PEFT_NAMES.items()
            if known.get(theirs) is not None
        }
        options.setdefault("alpha", PEFT_ALPHA)
        if options.get("targets") == "all-linear":
            options["targets"] = "all"
        # peft's names of modules mean no experts, even where these are named so.
        options.setdefault("parameters", ())
        if options["parameters"]:
            options.setdefault("targets", ())
        for name in ("targets", "exclude", "layers", "layers_pattern"):
            value = options.get(name)
            if isinstance(value, int) or (name == "layers_pattern" and isinstance(value, str)):
                options[name] = (value,)
        if known.get("bias") == "none":
            del known["bias"]
        start = known.get("init_lora_weights")
        if start in HARMLESS_STARTS:
            del known["init_lora_weights"]
        elif str(start).startswith(CONVERTIBLE_STARTS):
            raise hub.ConfigError(
                f"lora: init_lora_weights is {start!r}, which changed the base's own weights; save "
                "the adapter anew with peft's path_initial_model_for_weight_conversion, which "
                "makes a plain one of it"
            )
        # These two only count beside a field that is itself refused when it is set.
        known.pop("megatron_core", None)
        known.pop("qalora_group_size", None)
        hub.drop_neutral(known, frozenset())
        return self.make_config(**options)


BROUGHT = ".base_layer.weight"  # peft saves the base's embeddings beside an adapter of them
PEFT_ALPHA = 8  # what peft takes where a file does not say it
PEFT_NAMES = {
    "r": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "targets": "target_modules",
    "exclude": "exclude_modules",
    "layers": "layers_to_transform",
    "layers_pattern": "layers_pattern",
    "rslora": "use_rslora",
    "dora": "use_dora",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
    "fan_in_fan_out": "fan_in_fan_out",
    "parameters": "target_parameters",
    "base_digests": "base_digests",
}


def find_place(site: hub.Site) -> str:
    """The path that ranks go by: experts of one parameter have one."""
    return site.path if site.expert is None else site.path.rpartition(".")[0]


def stack_experts(
    config: LoRAConfig, tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The tensors by peft's names: the experts of a parameter in one, A by expert and then rank,
    B by rank and then expert; the parameters of one module nested, the last outermost."""
    kept = dict(tensors)
    for place in config.parameters or ():
        module, _, name = place.rpartition(".")
        names = order_parameters(
            path for path in config.parameters or () if path.rpartition(".")[0] == module
        )
        start = module + ".base_layer" * (len(names) - 1 - names.index(name))
        for factor in ("lora_A.weight", "lora_B.weight"):
            found: list[torch.Tensor] = []
            while f"{place}.{len(found)}.{factor}" in kept:
                found.append(kept.pop(f"{place}.{len(found)}.{factor}"))
            if found:
                joined = torch.cat(found) if "A" in factor else torch.stack(found, -1).flatten(1)
                kept[f"{start}.{factor}"] = joined
    return kept


def unstack_experts(
    config: LoRAConfig, tensors: Mapping[str, torch.Tensor]
) -> tuple[list[str], dict[str, torch.Tensor]]:
    """The way back: the whole paths of the parameters, and the tensors by ours.

    Raises ConfigError on a tensor that no parameter explains.
    """
    places: dict[str, None] = {}
    kept: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        found = re.fullmatch(r"(.*?)((?:\.base_layer)*)\.lora_([AB])\.weight", key)
        module = found[1] if found else ""
        names = order_parameters(
            path
            for path in config.parameters or ()
            if ends_with(module, path.rpartition(".")[0]) and not is_target(module, config)
        )
        if found is None or not names:
            kept[key] = tensor
            continue
        depth = found[2].count(".base_layer")
        if depth >= len(names):
            raise hub.ConfigError(
                f"lora: {key!r} belongs to a parameter that target_parameters does not name; it "
                f"names {', '.join(config.parameters or ())}"
            )
        place = f"{module}.{names[len(names) - 1 - depth]}"
        places[place] = None
        r = config.rank(place)
        if tensor.dim() != 2 or tensor.shape[0 if found[3] == "A" else 1] % r:
            raise hub.ConfigError(
                f"lora: {key!r} is {tuple(tensor.shape)}, which is no stack of experts of rank {r}"
            )
        if found[3] == "A":
            parts = tensor.view(-1, r, tensor.shape[1]).unbind(0)
        else:
            parts = tensor.view(len(tensor), r, -1).unbind(-1)
        for expert, part in enumerate(parts):
            kept[f"{place}.{expert}.lora_{found[3]}.weight"] = part.contiguous()
    written = list(config.parameters or ())
    # Whole paths stay in the order of the file, so that it is written again as it is.
    ordered = sorted(places, key=lambda path: written.index(path) if path in written else -1)
    return ordered, kept


FACTORS = (".lora_A.weight", ".lora_embedding_A")  # what the names of A end with
MAGNITUDE = ".lora_magnitude_vector"


def list_factors(config: LoRAConfig, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The names of A of every module. Raises ConfigError where one lacks what it should have."""
    names = [name for name in tensors if name.endswith(FACTORS)]
    named = config.targets if isinstance(config.targets, tuple) else ()
    first, second = FACTORS
    left = [n for n in named if n + first not in tensors and n + second not in tensors]
    # A name without a layer's number is no path, and may mean nothing.
    missing = [name for name in left if any(part.isdigit() for part in name.split("."))]
    if (3 if config.dora else 2) * len(names) != len(tensors):
        whole = Counter(name.rpartition(".lora_")[0] for name in tensors)
        missing += [path for path, count in whole.items() if count != (3 if config.dora else 2)]
    if missing:
        raise hub.ConfigError(
            f"lora: one of them has too few or too many tensors for {min(missing)}; fetch the "
            "adapter anew"
        )
    return names


def average_magnitudes(
    configs: Sequence[LoRAConfig], tensors: Sequence[Mapping[str, torch.Tensor]], rule: hub.Rule
) -> dict[str, torch.Tensor]:
    """The weighted mean of each m.

    m is a length: what it is where nothing changes, ||W||, only the base knows, so there is no
    other way to combine several. Raises ConfigError on a rule that is none, and where a part lacks
    one.
    """
    if not any(config.dora for config in configs):
        return {}
    names = [{name for name in part if name.endswith(MAGNITUDE)} for part in tensors]
    for own in names:
        for name in sorted(own ^ names[0]):
            raise hub.ConfigError(
                f"lora: {name.removesuffix(MAGNITUDE)} has a magnitude in one and none in another, "
                "and what it would be there only the base knows; combine adapters with dora at the "
                "same modules"
            )
    if not (rule.sums and math.isclose(sum(rule.weights), 1, abs_tol=1e-6)):
        raise hub.ConfigError(
            "lora: magnitudes (dora) are lengths and no differences, so they can only be averaged; "
            f"take linear, cat or svd, with weights that sum to 1, not {sum(rule.weights):g}"
        )
    parts = list(zip(tensors, rule.weights, strict=True))
    return {
        name: torch.stack([part[name] * weight for part, weight in parts]).sum(0)
        for name in sorted(names[0])
    }


def join_configs(
    configs: Sequence[LoRAConfig], ranks: Mapping[str, int], places: Collection[str]
) -> LoRAConfig:
    """Of what was combined of adapters with these, by the ranks at its modules, where s is 1.
    `places` are those of stacked experts."""
    r = max(ranks.values())
    others = {
        "^(?:" + "|".join(re.escape(path) for path in ranks if ranks[path] == rank) + ")": rank
        for rank in sorted({*ranks.values()} - {r})
    }
    digests: dict[str, str] = {}
    for config in configs:
        for path, known in config.base_digests.items():
            if digests.setdefault(path, known) != known:
                raise hub.ConfigError(
                    f"lora: their files hold different weights of the base's {path}; combine "
                    "adapters of one base"
                )
    return replace(
        configs[0],
        r=r,
        alpha=r,
        rslora=False,
        rank_pattern=others,
        alpha_pattern=dict(others),
        targets=tuple(path for path in ranks if path not in places),
        parameters=tuple(path for path in ranks if path in places),
        exclude=(),
        layers=None,
        layers_pattern=(),
        fan_in_fan_out=all(config.fan_in_fan_out for config in configs),
        base_digests=digests,
    )


def is_target(path: str, config: LoRAConfig) -> bool:
    """Whether `targets`, names or a pattern, mean the module of this path."""
    if isinstance(config.targets, str):
        return compile_pattern(config.targets).fullmatch(path) is not None
    return any(ends_with(path, name) for name in config.targets)


def order_parameters(paths: Iterable[str]) -> list[str]:
    """The names of one module's parameters in the order in which it has them."""
    names = {path.rpartition(".")[2] for path in paths}
    return sorted(names, key=lambda name: (name == "down_proj", name))


def ends_with(path: str, name: str) -> bool:
    """Whether a path is `name` or ends with it; every path ends with no name."""
    return not name or path == name or path.endswith(f".{name}")


def digest(weight: torch.Tensor) -> str:
    """sha256 of a weight and its shape; the same for the same weight in another precision."""
    values = weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16)
    return hashlib.sha256(str(tuple(weight.shape)).encode() + values.numpy().tobytes()).hexdigest()


def compile_pattern(text: str) -> re.Pattern[str]:
    """Raises ConfigError on what is no regular expression."""
    try:
        return re.compile(text)
    except re.error as error:
        raise hub.ConfigError(f"lora: {text!r} is no regular expression: {error}") from error


def find_pattern(patterns: Collection[str], path: str) -> str:
    """The first key that matches the end of the path; the path itself where none does."""
    if not patterns:
        return path
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", path)), path)


def listed(value: str | tuple[Any, ...] | None) -> str | list[Any] | None:
    """As JSON keeps it; null for nothing."""
    if not value:
        return None
    return value if isinstance(value, str) else list(value)


@hub.hookimpl
def hub_load(
    config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> tuple[Mapping[str, Any], Mapping[str, torch.Tensor]] | None:
    """Take stacked experts apart, and the base's own weights out, by their digests."""
    if config.get("target_parameters"):
        places, tensors = unstack_experts(LoRA().read_config(config), tensors)
        config = {**config, "target_parameters": places}
    brought = {key: tensor for key, tensor in tensors.items() if key.endswith(BROUGHT)}
    if brought:
        digests = {key.removesuffix(BROUGHT): digest(tensor) for key, tensor in brought.items()}
        config = {**config, "base_digests": {**(config.get("base_digests") or {}), **digests}}
        tensors = {key: tensor for key, tensor in tensors.items() if key not in brought}
    return config, tensors


@hub.hookimpl
def hub_method() -> hub.Method[LoRAConfig]:
    """LoRA."""
    return LoRA()


@hub.hookimpl
def hub_compose(
    site: hub.Site,
    chains: Sequence[Sequence[nn.Module]],
    rows: Sequence[int] | None,
    before: nn.Module | None,
) -> nn.Module | None:
    """Rows with different adapters are one product of batches. Magnitudes, embeddings and a dropout
    that learns go the slow way."""
    own = [[layer for layer in chain if type(layer) is LoRALayer] for chain in chains]
    if rows is None or own != [list(chain) for chain in chains]:
        return None
    if any(layer.dropout and layer.lora_A.weight.requires_grad for chain in own for layer in chain):
        return None
    if len(own) * max(map(count_ranks, own)) <= FEW:
        return LoRAFew(own, rows)
    return LoRAMany(own, rows, before if isinstance(before, LoRAMany) else None)
