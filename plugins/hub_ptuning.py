"""P-tuning: n learned tokens in front of the input, made by a small network.

    P = MLP(E)             an MLP with two hidden layers of h and ReLU
    P = MLP(BiLSTM(E))     with one hidden layer of 2 h

E: (n, d_model) learned, P: (n, d_model). Liu et al., 2021, "GPT Understands, Too", section 2.2,
https://arxiv.org/abs/2103.10385. The network lets the tokens depend on each other, or share what
they learn; once trained it is not needed, and only P serves.

What differs from the paper: all tokens stand in front of the input, where the paper places them
within a template; peft does the same, and its networks are these.

Parameters: n d_model, and while training 2 d_model h + h^2 + 2 h + d_model for the MLP, or those of
the LSTM and 4 h^2 + 2 h d_model + 2 h + d_model.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

import hub

ENCODERS = ("mlp", "lstm")
ENCODER = "prompt_encoder."


@dataclass(frozen=True)
class PTuningConfig:
    """What the tokens and their network are made of.

    tokens: n, how many virtual tokens.
    encoder: the network, "mlp" or "lstm"; None for none, the tokens learn themselves: what a file
        of peft's means, which has no network any more.
    hidden_size: h; d_model when left out.
    layers: the LSTM's layers.
    dropout: the share of what goes from one layer of the LSTM to the next zeroed while training.
    d_model: the width of the base's embeddings; found, not chosen.
    """

    tokens: int = 20
    encoder: str | None = "mlp"
    hidden_size: int | None = None
    layers: int = 2
    dropout: float = 0.0
    d_model: int | None = None

    def __post_init__(self) -> None:
        numbers = {"tokens": self.tokens, "hidden_size": self.hidden_size, "layers": self.layers}
        for where, value in numbers.items():
            if value is not None and value < 1:
                raise hub.ConfigError(f"ptuning: {where} is {value}; it is a whole number from 1")
        if self.encoder is not None and self.encoder not in ENCODERS:
            raise hub.ConfigError(
                f"ptuning: encoder is {self.encoder!r}; choose from {', '.join(ENCODERS)}"
            )
        if not 0 <= self.dropout < 1:
            raise hub.ConfigError(f"ptuning: dropout is {self.dropout!r}; it must be in [0, 1)")


class PromptEncoder(nn.Module):
    """E and the network behind it."""

    def __init__(self, config: PTuningConfig, d_model: int) -> None:
        super().__init__()
        h = config.hidden_size or d_model
        self.embedding = nn.Parameter(torch.randn(config.tokens, d_model))
        self.layers, self.dropout = config.layers, config.dropout
        self.lstm: nn.LSTM | None = None
        if config.encoder == "lstm":
            self.lstm = nn.LSTM(d_model, h, config.layers, bidirectional=True, batch_first=True)
            widths = [2 * h, 2 * h, d_model]
        else:
            widths = [d_model, h, h, d_model]
        linears = [nn.Linear(*pair) for pair in itertools.pairwise(widths)]
        self.mlp = nn.Sequential(*(part for linear in linears for part in (linear, nn.ReLU())))
        del self.mlp[-1]

    def forward(self) -> torch.Tensor:
        """P, (n, d_model)."""
        rows = self.embedding[None]
        if self.lstm is not None:
            # The module's own call reads a list of weights that it took when it was made.
            weights: list[torch.Tensor] = list(self.lstm.parameters())
            zeros = rows.new_zeros(2 * self.layers, 1, self.lstm.hidden_size)
            how = (True, self.layers, self.dropout, self.training, True, True)
            rows, _, _ = torch.lstm(rows, (zeros, zeros), weights, *how)
        return self.mlp(rows)[0]  # type: ignore[no-any-return]


class VirtualTokens(nn.Module):
    """P: itself where there is no network."""

    def __init__(self, config: PTuningConfig, d_model: int) -> None:
        super().__init__()
        self.kept: hub.Kept[torch.Tensor] | None = None
        self.prompt_encoder: PromptEncoder | None = None
        if config.encoder is None:
            self.prompt_embeddings = nn.Parameter(torch.randn(config.tokens, d_model))
        else:
            self.prompt_encoder = PromptEncoder(config, d_model)

    def extend(self) -> torch.Tensor:
        """P, (n, d_model)."""
        encoder = self.prompt_encoder
        if encoder is None:
            return self.prompt_embeddings
        if self.kept is None or encoder.embedding.requires_grad:
            rows: torch.Tensor = encoder()
            return rows
        return self.kept.read(lambda: fold(encoder))


class PTuning(hub.Method[PTuningConfig]):
    """The method as the hub knows it."""

    name = "ptuning"
    paper = "Liu et al., 2021, GPT Understands, Too, https://arxiv.org/abs/2103.10385"
    config = PTuningConfig
    peft_type = "P_TUNING"
    prefix = "base_model."
    plain_names = frozenset({"prompt_embeddings"})

    def choose_sites(self, sites: Sequence[hub.Site], config: PTuningConfig) -> Sequence[hub.Site]:
        """The input embeddings."""
        chosen = [site for site in sites if site.kind == "embedding"]
        if not chosen:
            raise hub.ConfigError(
                "ptuning: this base has no input embeddings to put tokens in front of"
            )
        return chosen

    def settle_config(self, config: PTuningConfig, sites: Sequence[hub.Site]) -> PTuningConfig:
        """Remember the widths. Raises ConfigError where another is asked for."""
        d_model = sites[0].out_features
        if config.d_model not in (None, d_model):
            raise hub.ConfigError(
                f"ptuning: d_model is {config.d_model}, and in this base it is {d_model}; leave it "
                "out, it is found"
            )
        return replace(config, d_model=d_model, hidden_size=config.hidden_size or d_model)

    def build_shared(self, sites: Sequence[hub.Site], config: PTuningConfig) -> VirtualTokens:
        """The tokens and their network, whose names have no path."""
        return VirtualTokens(config, sites[0].out_features)

    def build(
        self, site: hub.Site, config: PTuningConfig, shared: nn.Module | None = None
    ) -> nn.Module:
        """What `build_shared` made."""
        assert shared is not None
        return shared

    def bind(self, module: nn.Module, site: hub.Site, base: hub.Base) -> None:
        """Run the network once, where it does not learn."""
        assert isinstance(module, VirtualTokens)
        encoder = module.prompt_encoder
        if encoder is not None and not encoder.embedding.requires_grad:
            module.kept = hub.Kept([encoder])
            module.kept.keep(lambda: fold(encoder))

    def virtual_tokens(
        self, config: PTuningConfig, tensors: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """P, (n, d_model)."""
        if config.encoder is None:
            return tensors["prompt_embeddings"]
        own = {k.removeprefix(ENCODER): v for k, v in tensors.items() if k.startswith(ENCODER)}
        with torch.device("meta"):
            encoder = PromptEncoder(config, own["embedding"].shape[1])
        encoder.load_state_dict(own, assign=True)
        return fold(encoder)

    def write_tensors(
        self, config: PTuningConfig, tensors: Mapping[str, torch.Tensor]
    ) -> Mapping[str, torch.Tensor]:
        """P, which is all that peft reads, and the network, to train on."""
        return {**tensors, "prompt_embeddings": self.virtual_tokens(config, tensors)}

    def neutral(self, config: PTuningConfig, name: str) -> float:
        """Nothing that tokens could be is without effect; this is none of them."""
        return 0.0

    def join_config(self, configs: Sequence[PTuningConfig]) -> PTuningConfig:
        """Without a network."""
        plain = PTuningConfig(encoder=None)
        return super().join_config(
            [replace(plain, tokens=config.tokens, d_model=config.d_model) for config in configs]
        )

    def combine(
        self,
        configs: Sequence[PTuningConfig],
        tensors: Sequence[Mapping[str, torch.Tensor]],
        rule: hub.Rule,
    ) -> tuple[PTuningConfig, Mapping[str, torch.Tensor]]:
        """P of every part, whatever network made it."""
        parts = zip(configs, tensors, strict=True)
        rows = [{"prompt_embeddings": self.virtual_tokens(*part)} for part in parts]
        return super().combine(configs, rows, rule)

    def write_config(self, config: PTuningConfig) -> dict[str, Any]:
        """The fields of peft's PromptEncoderConfig, which knows no adapter without a network."""
        return {
            "num_virtual_tokens": config.tokens,
            "token_dim": config.d_model,
            "num_transformer_submodules": 1,
            "encoder_reparameterization_type": (config.encoder or "mlp").upper(),
            "encoder_hidden_size": config.hidden_size,
            "encoder_num_layers": config.layers,
            "encoder_dropout": config.dropout,
        }

    def read_config(self, fields: Mapping[str, Any]) -> PTuningConfig:
        """What peft's fields mean. Raises ConfigError on one that is unknown."""
        known = {name: value for name, value in fields.items() if name not in NO_EFFECT}
        options = {ours: known.pop(theirs, None) for ours, theirs in PEFT_NAMES.items()}
        options = {name: value for name, value in options.items() if value is not None}
        encoder = known.pop("encoder_reparameterization_type", None)
        options["encoder"] = encoder if encoder is None else str(encoder).lower()
        hub.drop_neutral(known, frozenset())
        return self.make_config(**options)


PEFT_NAMES = {
    "tokens": "num_virtual_tokens",
    "hidden_size": "encoder_hidden_size",
    "layers": "encoder_num_layers",
    "dropout": "encoder_dropout",
    "d_model": "token_dim",
}
# What peft says of the base.
NO_EFFECT = frozenset({"num_attention_heads", "num_layers", "num_transformer_submodules"})


def fold(encoder: PromptEncoder) -> torch.Tensor:
    """P, (n, d_model), made in float32, without a gradient and without dropout."""
    with torch.no_grad():
        rows: torch.Tensor = copy.deepcopy(encoder).float().eval()()
    return rows.to(encoder.embedding.dtype)


@hub.hookimpl
def hub_method() -> hub.Method[PTuningConfig]:
    """P-tuning."""
    return PTuning()


@hub.hookimpl
def hub_load(
    config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> tuple[Mapping[str, Any], Mapping[str, torch.Tensor]]:
    """Take the network where it is there, else P, and of P what peft uses.

    For an encoder-decoder model peft keeps a second half that it does not use.
    """
    kept = dict(tensors)
    if any(name.startswith(ENCODER) for name in kept):
        kept.pop("prompt_embeddings", None)
        return config, kept
    n, rows = config.get("num_virtual_tokens"), kept.get("prompt_embeddings")
    halves = config.get("num_transformer_submodules")
    if rows is not None and halves == 2 and isinstance(n, int) and len(rows) == 2 * n:
        kept["prompt_embeddings"] = rows[:n]
    return {**config, "encoder_reparameterization_type": None}, kept
