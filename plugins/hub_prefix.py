"""Prefix tuning: n learned positions in front of what every attention looks at.

    K' = [P_K; K],  V' = [P_V; V]      P_K, P_V: (n, width) of their own for each attention
    P = W tanh(W_E E + b_E) + b        with `projection`

Li and Liang, 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", sections 4.2 and
4.3, https://arxiv.org/abs/2101.00190. E: (n, width), W_E: (h, width), W: (sum of widths, h). The
network steadies the training of long prefixes and is not needed afterwards.

What differs from the paper: an encoder-decoder base has the prefix in the decoder's attention to
itself alone, as in peft; the first values are random, and not the activations of real words.

Parameters: n (keys + values) summed over the attentions, 2 n d_model for each where all have their
own; while training with `projection` n width + h (width + 1) + (h + 1) times that sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import hub

ENCODER = "prompt_encoder."
SPREAD = 0.02


@dataclass(frozen=True)
class PrefixConfig:
    """What a prefix is made of.

    tokens: n, how many positions.
    projection: learn through a network.
    hidden_size: h, the network's hidden width.
    width, heads, layers: of the keys of one attention, and how many there are, where they are all
        alike; found, not chosen.
    decoder: whether they are those of an encoder-decoder model; found, not chosen.
    """

    tokens: int = 20
    projection: bool = False
    hidden_size: int = 512
    width: int | None = None
    heads: int | None = None
    layers: int | None = None
    decoder: bool = False

    def __post_init__(self) -> None:
        for where, value in (("tokens", self.tokens), ("hidden_size", self.hidden_size)):
            if value < 1:
                raise hub.ConfigError(f"prefix: {where} is {value}; it is a whole number from 1")


class PrefixEncoder(nn.Module):
    """E and the network behind it, whose last layer is one for each attention."""

    def __init__(self, n: int, width: int, h: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(n, width))
        self.hidden = nn.Linear(width, h)
        self.outputs = nn.ModuleList(nn.Linear(h, size) for size in widths)

    def forward(self, place: int) -> torch.Tensor:
        """P for the attention at this place, (n, its keys and values), in float32."""
        return project(torch.tanh(project(self.embedding, self.hidden)), self.outputs[place])


def project(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    """A linear layer in float32."""
    assert isinstance(layer, nn.Linear)
    return F.linear(x.float(), layer.weight.float(), layer.bias.float())


class Prefix(nn.Module):
    """P for all attentions, side by side in the model's order: (n, sum of keys and values)."""

    def __init__(self, config: PrefixConfig, sites: Sequence[hub.Site]) -> None:
        super().__init__()
        self.places = {site.path: place for place, site in enumerate(sites)}
        self.widths = [site.in_features + site.out_features for site in sites]
        self.prompt_encoder: PrefixEncoder | None = None
        n = config.tokens
        if config.projection:
            width = sites[0].in_features
            self.prompt_encoder = PrefixEncoder(n, width, config.hidden_size, self.widths)
        else:
            self.prompt_embeddings = nn.Parameter(torch.randn(n, sum(self.widths)) * SPREAD)

    def forward(self, place: int) -> torch.Tensor:
        """P for the attention at this place, (n, its keys and values)."""
        if self.prompt_encoder is not None:
            rows: torch.Tensor = self.prompt_encoder(place)
            return rows
        return torch.split(self.prompt_embeddings, self.widths, 1)[place]


class PrefixPart(nn.Module):
    """P for one attention."""

    folded: torch.Tensor | None

    def __init__(self, shared: Prefix, site: hub.Site) -> None:
        super().__init__()
        self.prefix = shared
        self.place = shared.places[site.path]
        self.register_buffer("folded", None, persistent=False)
        self.stamp = 0

    def extend(self) -> torch.Tensor:
        """(n, in_features + out_features), the keys and then the values."""
        encoder, rows = self.prefix.prompt_encoder, self.folded
        if rows is None or encoder is None or self.stamp != read_stamp(encoder, self.place):
            rows = self.prefix(self.place)
        return rows


class PrefixTuning(hub.Method[PrefixConfig]):
    """The method as the hub knows it."""

    name = "prefix"
    paper = "Li and Liang, 2021, Prefix-Tuning: Optimizing Continuous Prompts for Generation, https://arxiv.org/abs/2101.00190"
    config = PrefixConfig
    peft_type = "PREFIX_TUNING"
    prefix = "base_model."
    plain_names = frozenset({"prompt_embeddings"})

    def choose_sites(self, sites: Sequence[hub.Site], config: PrefixConfig) -> Sequence[hub.Site]:
        """Every attention.

        Raises ConfigError where there is none, or where `config`, which is of a file, means keys
        as an attention looks at them, and here they can only be given before they are turned.
        """
        chosen = [site for site in sites if site.kind == "attention"]
        if not chosen:
            raise hub.ConfigError(
                "prefix: this base has no attention whose keys and values can be reached; prompt "
                "puts its tokens in front of the input instead"
            )
        if config.width is not None and any(is_turned(site) for site in chosen):
            raise hub.ConfigError(
                f"prefix: this one holds keys as {chosen[0].path} looks at them, and this base can "
                "only be given keys that it turns first; train a prefix on it with hub"
            )
        return chosen

    def settle_config(self, config: PrefixConfig, sites: Sequence[hub.Site]) -> PrefixConfig:
        """Remember the sizes, where peft's file can say what the prefix is: all attentions have the
        same, and look at the keys that they are given. Raises ConfigError where others are asked
        for."""
        shapes = {(site.in_features, site.out_features, site.heads) for site in sites}
        keys, values, heads = shapes.pop()
        found = replace(config, decoder=sites[0].role == "decoder")
        if shapes or keys != values or any(is_turned(site) for site in sites):
            found = replace(found, width=None, heads=None, layers=None)
        else:
            found = replace(found, width=keys, heads=heads or None, layers=len(sites))
        for where in ("width", "heads", "layers", "decoder"):
            asked, there = getattr(config, where), getattr(found, where)
            if asked is not None and asked is not False and asked != there:
                raise hub.ConfigError(
                    f"prefix: {where} is {asked!r}, and in this base it is {there!r}; leave it "
                    "out, it is found"
                )
        return found

    def build_shared(self, sites: Sequence[hub.Site], config: PrefixConfig) -> Prefix:
        """All of P, or its network, whose names have no path."""
        return Prefix(config, sites)

    def build(
        self, site: hub.Site, config: PrefixConfig, shared: nn.Module | None = None
    ) -> nn.Module:
        """The part of one attention."""
        assert isinstance(shared, Prefix)
        return PrefixPart(shared, site)

    def bind(self, module: nn.Module, site: hub.Site, base: hub.Base) -> None:
        """Run the network once, where it does not learn."""
        assert isinstance(module, PrefixPart)
        encoder = module.prefix.prompt_encoder
        if encoder is not None and not encoder.embedding.requires_grad:
            with torch.no_grad():
                module.folded = encoder(module.place).to(encoder.embedding.dtype)
            module.stamp = read_stamp(encoder, module.place)

    def write_tensors(
        self, config: PrefixConfig, tensors: Mapping[str, torch.Tensor]
    ) -> Mapping[str, torch.Tensor]:
        """P, which is all that peft reads, and the network, to train on."""
        rows = fold(config, tensors)
        if config.decoder and config.layers:
            rows = deal(rows, config.layers)
        return {**tensors, "prompt_embeddings": rows}

    def neutral(self, config: PrefixConfig, name: str) -> float:
        """No keys that are looked at are without effect; these are none of them."""
        return 0.0

    def join_config(self, configs: Sequence[PrefixConfig]) -> PrefixConfig:
        """Without a network."""
        size = PrefixConfig.hidden_size
        return super().join_config(
            [replace(config, projection=False, hidden_size=size) for config in configs]
        )

    def combine(
        self,
        configs: Sequence[PrefixConfig],
        tensors: Sequence[Mapping[str, torch.Tensor]],
        rule: hub.Rule,
    ) -> tuple[PrefixConfig, Mapping[str, torch.Tensor]]:
        """P of every part, whether a network makes it or not."""
        parts = zip(configs, tensors, strict=True)
        return super().combine(configs, [{"prompt_embeddings": fold(*p)} for p in parts], rule)

    def write_config(self, config: PrefixConfig) -> dict[str, Any]:
        """The fields of peft's PrefixTuningConfig.

        Where they can't say what the prefix is they say no layers, so that peft refuses the tensor.
        """
        return {
            "num_virtual_tokens": config.tokens,
            "token_dim": config.width or 0,
            "num_attention_heads": config.heads or (None if config.width else 1),
            "num_layers": count_dealt(config.layers or 0) if config.decoder else config.layers or 0,
            "num_transformer_submodules": 2 if config.decoder else 1,
            "prefix_projection": config.projection,
            "encoder_hidden_size": config.hidden_size,
        }

    def read_config(self, fields: Mapping[str, Any]) -> PrefixConfig:
        """What peft's fields mean. Raises ConfigError on one that is unknown."""
        known = {name: value for name, value in fields.items() if name not in NO_EFFECT}
        options = {ours: known.pop(theirs, None) for ours, theirs in PEFT_NAMES.items()}
        options["decoder"] = known.pop("num_transformer_submodules", None) == 2
        if not options["layers"]:
            options["width"] = options["heads"] = options["layers"] = None
        hub.drop_neutral(known, frozenset())
        return self.make_config(**{k: v for k, v in options.items() if v is not None})


PEFT_NAMES = {
    "tokens": "num_virtual_tokens",
    "projection": "prefix_projection",
    "hidden_size": "encoder_hidden_size",
    "width": "token_dim",
    "heads": "num_attention_heads",
    "layers": "num_layers",
}
NO_EFFECT = frozenset({"init_weights"})  # how the prefix began


def fold(config: PrefixConfig, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """P, (n, sum of keys and values): where a network makes it, in float32."""
    if not config.projection:
        return tensors["prompt_embeddings"]
    own = {k.removeprefix(ENCODER): v for k, v in tensors.items() if k.startswith(ENCODER)}
    count = sum(name.startswith("outputs.") and name.endswith(".bias") for name in own)
    widths = [len(own[f"outputs.{place}.bias"]) for place in range(count)]
    with torch.device("meta"):
        n, width = own["embedding"].shape
        encoder = PrefixEncoder(n, width, config.hidden_size, widths)
    encoder.load_state_dict(own, assign=True)
    with torch.no_grad():
        return torch.cat([encoder(place) for place in range(count)], 1)


def read_stamp(encoder: PrefixEncoder, place: int) -> int:
    """A number that is another after any change of what makes the part at this place; none while
    that learns."""
    last, embedding = encoder.outputs[place], encoder.embedding
    assert isinstance(last, nn.Linear)
    if embedding.requires_grad:
        return -1
    hidden = encoder.hidden
    made_of = (embedding, hidden.weight, hidden.bias, last.weight, last.bias)
    return sum(tensor._version for tensor in made_of)


def is_turned(site: hub.Site) -> bool:
    """Whether what is given for keys is changed before it is looked at, by where it stands."""
    return site.inserted and site.turned


# In an encoder-decoder model peft gives the decoder's layer i the part 2 i mod m of the m in its
# tensor. With an odd m each part has one layer; with an even m half of the parts have two, and the
# others none.


def count_dealt(layers: int) -> int:
    """How many parts peft's tensor needs so that each of the decoder's layers has its own."""
    return layers + (layers + 1) % 2 if layers else 0


def deal(rows: torch.Tensor, layers: int) -> torch.Tensor:
    """Layer by layer -> as peft reads them. An additional layer, of zeros, makes them odd."""
    parts = list(rows.chunk(layers, 1))
    parts += [torch.zeros_like(parts[0])] * (count_dealt(layers) - layers)
    back = {2 * layer % len(parts): part for layer, part in enumerate(parts)}
    return torch.cat([back[place] for place in range(len(parts))], 1)


def collect(rows: torch.Tensor, count: int) -> list[torch.Tensor]:
    """As peft reads them -> layer by layer, without an additional layer of zeros."""
    dealt = rows.chunk(count, 1)
    parts = [dealt[2 * layer % count] for layer in range(count)]
    if count % 2 and count > 1 and not parts[-1].any() and parts[0].any():
        del parts[-1]
    return parts


@hub.hookimpl
def hub_method() -> hub.Method[PrefixConfig]:
    """Prefix tuning."""
    return PrefixTuning()


@hub.hookimpl
def hub_load(
    config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> tuple[Mapping[str, Any], Mapping[str, torch.Tensor]]:
    """Take the network where it is there, else P: peft's files have no network any more."""
    kept, fields = dict(tensors), dict(config)
    count, rows = config.get("num_layers"), kept.pop("prompt_embeddings", None)
    outputs = {name.split(".")[2] for name in kept if name.startswith(f"{ENCODER}outputs.")}
    if outputs:
        fields["num_layers"] = min(count or 0, len(outputs))
        return fields, kept
    fields["prefix_projection"] = False
    if rows is not None:
        kept["prompt_embeddings"] = rows
        if config.get("num_transformer_submodules") == 2 and count:
            parts = collect(rows, count)
            kept["prompt_embeddings"] = torch.cat(parts, 1)
            fields["num_layers"] = len(parts)
    return fields, kept
