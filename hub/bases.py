"""The base as a method sees it at one site: the weights to start from, or to compute with."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hub.errors import AttachError, ConfigError
from hub.quantization import dequantize_weight, is_quantized
from hub.references import is_folder, locate_folder


class Base:
    """What a method may ask of the base model at one site.

    It is a plain object, so that a module which keeps it does not take the base's parameters for
    its own.

    model: the base model. module: the one that the site belongs to. part: at a stacked expert, the
        name of its parameter in that module and its place there.
    """

    def __init__(self, model: nn.Module, path: str, part: tuple[str, int] | None = None) -> None:
        self.model = model
        self.path = path
        self.part = part

    @property
    def module(self) -> nn.Module:
        """The module at the site."""
        return self.model.get_submodule(self.path)

    def read_weight(self, path: str | None = None) -> torch.Tensor:
        """The weight of the site's projection, or of the one at `path`: (out_features,
        in_features), an embedding's (vocabulary, d_model); floating, without a gradient.

        A quantized weight is dequantized at every call, which takes the memory of one layer.
        Raises AttachError where the module has none.
        """
        if path is None and self.part is not None:
            name, expert = self.part
            weight: torch.Tensor = getattr(self.module, name)[expert].detach()
            return weight.T if self.module.is_transposed else weight
        return read_weight(self.model, self.path if path is None else path)

    def read_bias(self) -> torch.Tensor | None:
        """The bias of the site's projection, (out_features,), without a gradient; None where it has
        none."""
        if self.part is not None:
            name, expert = self.part
            biases = getattr(self.module, f"{name}_bias", None)
            return None if biases is None else biases[expert].detach()
        bias = getattr(self.module, "bias", None)
        return bias.detach() if isinstance(bias, torch.Tensor) else None

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """What the site's embedding gives for token ids, (n,): (n, width), scaled where it scales
        what it looks up."""
        given = self.module(ids[None].to(self.read_weight().device))
        vectors: torch.Tensor = given[0] if isinstance(given, tuple) else given
        return vectors[0]

    def tokenize(self, text: str, tokenizer: str | None = None) -> torch.Tensor:
        """The ids of a text without special tokens, by the base's own tokenizer, or another.

        tokenizer: a folder or a repository on the Hub; where the base was loaded from when left
            out. Raises ConfigError where there is none, or it makes no token of the text.
        """
        from transformers import AutoTokenizer

        place = tokenizer or getattr(getattr(self.model, "config", None), "_name_or_path", "")
        if not place:
            raise ConfigError(
                "this base does not say where it was loaded from, so its tokenizer can't be found; "
                "give tokenizer, a folder or a repository"
            )
        if is_folder(place) and not locate_folder(place).is_dir():
            raise ConfigError(
                f"the tokenizer's folder {place} does not exist; give a folder or a repository"
            )
        try:
            loaded = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ConfigError(
                f"can't load the tokenizer of {place}: {reason}; give tokenizer, a folder or a "
                "repository that has one"
            ) from error
        ids = loaded(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise ConfigError(
                f"the tokenizer of {place} makes no token of {text!r}; give another text"
            )
        return torch.tensor(ids)


def read_weight(model: nn.Module, path: str) -> torch.Tensor:
    """See `Base.read_weight`."""
    module = model.get_submodule(path)
    weight: Any = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor):
        raise AttachError(f"{path} is a {type(module).__name__}, which has no weight to read")
    if is_quantized(module):
        return dequantize_weight(module)
    if not weight.is_floating_point():
        raise AttachError(
            f"{path}: its weight is quantized in a way that can't be read; load the base "
            "unquantized, or with bitsandbytes or torchao"
        )
    return weight.detach().T if type(module).__name__ == "Conv1D" else weight.detach()
