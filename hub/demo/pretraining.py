"""The demo's own base: a small llama and its tokenizer, trained on the standard library and kept.

It is kept under a name that follows from all that it was made from, so another recipe or another
Python has a base of its own; and it appears there whole, or not at all.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]

from hub.demo.corpus import Library
from hub.demo.muon import Muon
from hub.errors import FileError

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PAD, END = "<pad>", "</s>"
CONTEXT = 512  # tokens


@dataclass(frozen=True)
class Recipe:
    """What the base is and how it is trained.

    vocabulary: tokens. width: d_model; inner: the feed-forward's. rows of `length` tokens make a
    batch. rate: the highest; warmup: the share of the steps until it is reached.
    """

    vocabulary: int = 2048
    width: int = 128
    inner: int = 384
    layers: int = 4
    heads: int = 4
    rows: int = 8
    length: int = 128
    steps: int = 1000
    rate: float = 5e-3
    warmup: float = 0.05
    seed: int = 0


RECIPE = Recipe()


def keep_base(home: Path, library: Library, recipe: Recipe, echo: Callable[[str], None]) -> Path:
    """The folder of the base, trained now if it is not there yet. Raises FileError."""
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    for path, source in sorted(library.seen.items()):
        digest.update(f"{path}\0{source}\0".encode())
    folder = home / "demo" / f"base-{digest.hexdigest()[:12]}"
    if folder.is_dir():
        echo(f"the base is here already: {folder}")
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".building-", dir=folder.parent) as scratch:
            model, tokenizer = train_base(library, recipe, echo)
            building = Path(scratch, "base")
            model.save_pretrained(building)
            tokenizer.save_pretrained(building)
            # Another demo may have been faster: the base is the same.
            if not folder.is_dir():
                building.rename(folder)
    except OSError as error:
        raise FileError(
            f"the base can't be kept in {folder}: {error.strerror or error}; set HUB_HOME to a "
            "folder that can be written"
        ) from error
    echo(f"kept in {folder}")
    return folder


def train_base(
    library: Library, recipe: Recipe, echo: Callable[[str], None]
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A tokenizer and a model that read the modules that may be seen."""
    texts = [source for _, source in sorted(library.seen.items())]
    tokenizer = train_tokenizer(texts, recipe.vocabulary)
    ids = encode_texts(tokenizer, texts)
    echo(
        f"a tokenizer of {len(tokenizer):,} tokens (byte-level BPE); the text is {len(ids):,} of "
        f"them, the base reads {recipe.steps * recipe.rows * recipe.length:,}"
    )
    torch.manual_seed(recipe.seed)
    model = make_model(recipe, tokenizer)
    count = sum(p.numel() for p in model.parameters())
    echo(f"training a llama of {count:,} parameters, {recipe.steps} steps")
    for loss in learn_text(model, ids, recipe):
        last = loss
    held_out = encode_texts(tokenizer, [s for _, s in sorted(library.held_out.items())])
    echo(
        f"perplexity: {math.exp(last):.1f} on what it read last, "
        f"{measure_perplexity(model, held_out, recipe.length):.1f} on the modules held out"
    )
    model.eval()  # type: ignore[no-untyped-call]
    return model, tokenizer


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, model_max_length=CONTEXT
    )


def encode_texts(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> torch.Tensor:
    """All texts one after the other, each with its end: (tokens,)."""
    ids: list[int] = []
    for row in tokenizer(list(texts), verbose=False).input_ids:
        ids += [*row, tokenizer.eos_token_id]
    return torch.tensor(ids)


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.width,
            intermediate_size=recipe.inner,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def learn_text(model: LlamaForCausalLM, ids: torch.Tensor, recipe: Recipe) -> Iterator[float]:
    """Train on rows of the text in random order; a running mean of the loss after each step."""
    rows = ids[: len(ids) // recipe.length * recipe.length].view(-1, recipe.length)
    matrices = [p for n, p in model.named_parameters() if ".layers." in n and p.dim() == 2]
    inside = set(map(id, matrices))
    others = [p for p in model.parameters() if id(p) not in inside]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=recipe.rate),
        torch.optim.AdamW(others, lr=recipe.rate, betas=(0.9, 0.95), weight_decay=0.1),
    ]
    generator = torch.Generator().manual_seed(recipe.seed)
    order: list[int] = []
    mean = math.nan
    for step in tqdm(range(recipe.steps), "base", unit="step", disable=None, file=sys.stderr):
        if len(order) < recipe.rows:
            order += torch.randperm(len(rows), generator=generator).tolist()
        batch, order = rows[order[: recipe.rows]], order[recipe.rows :]
        loss: Any = model(input_ids=batch, labels=batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * follow_schedule(step, recipe)
            optimizer.step()
            optimizer.zero_grad()
        mean = loss.item() if step == 0 else 0.98 * mean + 0.02 * loss.item()
        yield mean


def follow_schedule(step: int, recipe: Recipe) -> float:
    """The share of the highest rate at a step: up in a line, down in half a cosine."""
    warm = max(1, round(recipe.warmup * recipe.steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 + 0.5 * math.cos(math.pi * (step - warm) / (recipe.steps - warm))


@torch.no_grad()
def measure_perplexity(model: LlamaForCausalLM, ids: torch.Tensor, length: int) -> float:
    """exp of the mean loss over rows of `length` tokens."""
    rows = ids[: len(ids) // length * length].view(-1, length)
    model.eval()  # type: ignore[no-untyped-call]
    parts = [rows[start : start + 32] for start in range(0, len(rows), 32)]
    losses = [model(input_ids=part, labels=part).loss * len(part) for part in parts]
    return math.exp(float(sum(losses)) / len(rows))
