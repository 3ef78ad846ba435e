"""Prompt tuning: n learned tokens in front of the input.

    E' = [P; E],    P: (n, d_model) learned, E: (length, d_model) what the base embeds

Lester et al., 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", section 2,
https://arxiv.org/abs/2104.08691. P starts as embeddings of words that the base knows, or of a text
(section 3.2), or uniform in [-0.5, 0.5].

What differs from the paper: an encoder-decoder base gets P in front of the encoder's input, as in
the paper; any other in front of its own. The paper draws from the 5,000 most common words of T5,
whose vocabulary is in that order; here it is all of them unless `most_common` says otherwise.

Parameters: n d_model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

import hub

SPREAD = 0.5  # section 3.2
STARTS = ("vocabulary", "random")


@dataclass(frozen=True)
class PromptConfig:
    """What a prompt is made of.

    tokens: n, how many virtual tokens.
    start: their first values: "vocabulary", the embeddings of words drawn at random, or "random".
    text: start from this text's embeddings instead, repeated or cut to n.
    tokenizer: the folder or repository of the text's tokenizer; the base's own when left out.
    most_common: draw among this many first words only, in a vocabulary that has the common ones
        first.
    d_model: the width of the base's embeddings; found, not chosen.
    """

    tokens: int = 20
    start: str = "vocabulary"
    text: str | None = None
    tokenizer: str | None = None
    most_common: int | None = None
    d_model: int | None = None

    def __post_init__(self) -> None:
        for where, value in (("tokens", self.tokens), ("most_common", self.most_common)):
            if value is not None and value < 1:
                raise hub.ConfigError(f"prompt: {where} is {value}; it is a whole number from 1")
        if self.start not in STARTS:
            raise hub.ConfigError(
                f"prompt: start is {self.start!r}; choose from {', '.join(STARTS)}, or give a text"
            )
        if self.text is not None and not self.text.strip():
            raise hub.ConfigError("prompt: text is empty; give the words to start from")


class VirtualTokens(nn.Module):
    """P."""

    def __init__(self, n: int, d_model: int) -> None:
        super().__init__()
        self.prompt_embeddings = nn.Parameter(torch.empty(n, d_model).uniform_(-SPREAD, SPREAD))

    def extend(self) -> torch.Tensor:
        """P, (n, d_model)."""
        return self.prompt_embeddings


class Prompt(hub.Method[PromptConfig]):
    """The method as the hub knows it."""

    name = "prompt"
    paper = "Lester et al., 2021, The Power of Scale for Parameter-Efficient Prompt Tuning, https://arxiv.org/abs/2104.08691"
    config = PromptConfig
    peft_type = "PROMPT_TUNING"
    prefix = "base_model."
    plain_names = frozenset({"prompt_embeddings"})

    def choose_sites(self, sites: Sequence[hub.Site], config: PromptConfig) -> Sequence[hub.Site]:
        """The input embeddings."""
        chosen = [site for site in sites if site.kind == "embedding"]
        if not chosen:
            raise hub.ConfigError(
                "prompt: this base has no input embeddings to put tokens in front of"
            )
        return chosen

    def settle_config(self, config: PromptConfig, sites: Sequence[hub.Site]) -> PromptConfig:
        """Remember the width. Raises ConfigError where another is asked for."""
        d_model = sites[0].out_features
        if config.d_model not in (None, d_model):
            raise hub.ConfigError(
                f"prompt: d_model is {config.d_model}, and in this base it is {d_model}; leave it "
                "out, it is found"
            )
        return replace(config, d_model=d_model)

    def build_shared(self, sites: Sequence[hub.Site], config: PromptConfig) -> VirtualTokens:
        """The tokens, whose name is peft's and so has no path."""
        return VirtualTokens(config.tokens, sites[0].out_features)

    def build(
        self, site: hub.Site, config: PromptConfig, shared: nn.Module | None = None
    ) -> nn.Module:
        """What `build_shared` made."""
        assert shared is not None
        return shared

    def start(
        self, module: nn.Module, site: hub.Site, config: PromptConfig, base: hub.Base
    ) -> None:
        """Take the embeddings of words, drawn or those of the text.

        Raises ConfigError on an option that would do nothing.
        """
        assert isinstance(module, VirtualTokens)
        if config.tokenizer is not None and config.text is None:
            raise hub.ConfigError("prompt: tokenizer is that of a text; give text, or leave it out")
        if config.most_common is not None and (config.text or config.start == "random"):
            raise hub.ConfigError(
                "prompt: most_common is for words drawn at random; leave it out, or take "
                "start='vocabulary' and no text"
            )
        n = config.tokens
        if config.text is not None:
            ids = base.tokenize(config.text, config.tokenizer)
            ids = ids.repeat(math.ceil(n / len(ids)))[:n]
        elif config.start == "vocabulary":
            size = base.read_weight().shape[0]
            ids = torch.randint(min(config.most_common or size, size), (n,))
        else:
            return
        module.prompt_embeddings.copy_(base.embed(ids))

    def virtual_tokens(
        self, config: PromptConfig, tensors: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """P, (n, d_model)."""
        return tensors["prompt_embeddings"]

    def neutral(self, config: PromptConfig, name: str) -> float:
        """Nothing that tokens could be is without effect; this is none of them."""
        return 0.0

    def join_config(self, configs: Sequence[PromptConfig]) -> PromptConfig:
        """Without what the tokens started from."""
        return super().join_config([strip_start(config) for config in configs])

    def write_config(self, config: PromptConfig) -> dict[str, Any]:
        """The fields of peft's PromptTuningConfig, which takes no text without a tokenizer."""
        start = "SAMPLE_VOCAB" if config.start == "vocabulary" else "RANDOM"
        fields = {
            "num_virtual_tokens": config.tokens,
            "token_dim": config.d_model,
            "num_transformer_submodules": 1,
            "prompt_tuning_init": "TEXT" if config.text and config.tokenizer else start,
            "prompt_tuning_init_text": config.text,
            "tokenizer_name_or_path": config.tokenizer,
        }
        return fields | ({"most_common": config.most_common} if config.most_common else {})

    def read_config(self, fields: Mapping[str, Any]) -> PromptConfig:
        """What peft's fields mean. Raises ConfigError on one that is unknown."""
        known = {name: value for name, value in fields.items() if name not in NO_EFFECT}
        options = {ours: known.pop(theirs, None) for ours, theirs in PEFT_NAMES.items()}
        start = str(known.pop("prompt_tuning_init", None)).rpartition(".")[2]
        options["start"] = "random" if start == "RANDOM" else "vocabulary"
        hub.drop_neutral(known, frozenset())
        return self.make_config(**{k: v for k, v in options.items() if v is not None})


def strip_start(config: PromptConfig) -> PromptConfig:
    """The same without what the tokens started from."""
    return replace(config, start="random", text=None, tokenizer=None, most_common=None)


PEFT_NAMES = {
    "tokens": "num_virtual_tokens",
    "text": "prompt_tuning_init_text",
    "tokenizer": "tokenizer_name_or_path",
    "d_model": "token_dim",
    "most_common": "most_common",
}
# What peft says of the base and of how the tokens began.
NO_EFFECT = frozenset(
    {"num_attention_heads", "num_layers", "num_transformer_submodules", "tokenizer_kwargs"}
)


@hub.hookimpl
def hub_method() -> hub.Method[PromptConfig]:
    """Prompt tuning."""
    return Prompt()


@hub.hookimpl
def hub_load(
    config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> tuple[Mapping[str, Any], Mapping[str, torch.Tensor]]:
    """Leave out the second half of what peft keeps for an encoder-decoder model: it is not used."""
    n, kept = config.get("num_virtual_tokens"), tensors.get("prompt_embeddings")
    halves = config.get("num_transformer_submodules")
    if kept is not None and halves == 2 and isinstance(n, int) and len(kept) == 2 * n:
        tensors = {**tensors, "prompt_embeddings": kept[:n]}
    return config, tensors
