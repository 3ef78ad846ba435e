"""The model card: README.md beside a published adapter or composition.

Its front matter is what the Hub searches and links by. Ours are the keys that follow from the
adapter; what a user added, a license say, stays. Our text stands between two marks and is written
anew by every push; text outside of them is the user's and stays. A README.md without the marks,
one that somebody else wrote, keeps its whole text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hub.errors import RemoteError

if TYPE_CHECKING:
    from huggingface_hub import RepoCard

README = "README.md"
BEGIN = "<!-- pefthub: written by `hub push`; what you write outside of these marks stays -->"
END = "<!-- /pefthub -->"
SITE = "https://huggingface.co"
# What the Hub's client takes for front matter.
BLOCK = re.compile(r"\s*---(\r\n|\r|\n)[\S\s]*?(\r\n|\r|\n)---[ \t]*(\r\n|\n|$)")
# The methods that peft reads (0.21), in its own words.
PEFT_TYPES = frozenset({
    "ADALORA", "ADAMSS", "ADAPTION_PROMPT", "BEFT", "BOFT", "C3A", "CARTRIDGE", "CPT", "DEFT",
    "DELORA", "FOURIERFT", "FROD", "GLORA", "GRALORA", "HIRA", "HRA", "IA3", "LILY",
    "LN_TUNING", "LOHA", "LOKR", "LORA", "MISS", "MULTITASK_PROMPT_TUNING", "OFT", "OSF",
    "PEANUT", "POLY", "PREFIX_TUNING", "PROMPT_TUNING", "PSOFT", "PVERA", "P_TUNING",
    "RANDLORA", "ROAD", "SHADOW", "SHIRA", "SUPERTUNING", "TINYLORA", "TRAINABLE_TOKENS",
    "UNILORA", "VBLORA", "VERA", "WAVEFT", "XLORA",
})  # fmt: skip
# For peft's word for a task: transformers' class, and the Hub's word.
TASKS = {
    "CAUSAL_LM": ("AutoModelForCausalLM", "text-generation"),
    "FEATURE_EXTRACTION": ("AutoModel", "feature-extraction"),
    "QUESTION_ANS": ("AutoModelForQuestionAnswering", "question-answering"),
    "SEQ_2_SEQ_LM": ("AutoModelForSeq2SeqLM", None),
    "SEQ_CLS": ("AutoModelForSequenceClassification", "text-classification"),
    "TOKEN_CLS": ("AutoModelForTokenClassification", "token-classification"),
}


@dataclass(frozen=True)
class PartRow:
    """A part of a composition as its card lists it.

    reference: the version that it was published from. kind: its method, or the composition that it
    is. values: how many numbers its tensors hold, None of a composition. folder: where its files
    are.
    """

    reference: str
    kind: str
    values: int | None
    folder: str


@dataclass(frozen=True)
class Card:
    """What a card says.

    address: what `hub.load` takes to load it from there; repo: its name on the Hub, None in a
        folder. base: the base model's repository on the Hub, None where it is on no Hub.
    values: how many numbers the adapter's tensors hold, or those of all parts.
    composition: the tree as it is printed, and `parts` its parts; None and none of an adapter,
        whose method a composition's outermost operator stands for.
    """

    title: str
    address: str
    repo: str | None
    reference: str | None
    digest: str
    method: str
    peft_type: str
    task_type: str | None
    base: str | None
    base_label: str
    task: str | None
    values: int
    metrics: Mapping[str, float]
    training: Mapping[str, Any]
    composition: str | None = None
    parts: Sequence[PartRow] = ()


def update_card(readme: bytes | None, card: Card) -> bytes:
    """README.md with what `card` says, and with all that a user wrote into `readme`.

    Raises RemoteError where the front matter that is there can't be read.
    """
    from huggingface_hub import RepoCard
    from yaml import YAMLError

    try:
        text = "" if readme is None else readme.decode("utf-8-sig")
        known = RepoCard(text if BLOCK.match(text) else f"---\n{{}}\n---\n{text}")
    except (ValueError, YAMLError) as error:
        raise RemoteError(
            f"the {README} that is there can't be read: {str(error).splitlines()[0]}; "
            "mend its front matter, the part between the two lines ---, or remove the file"
        ) from error
    before = read_fields(known)
    for key, value in describe_fields(card).items():
        if isinstance(value, list):
            known.data[key] = merge_lists(before.get(key), value)
        elif key != "pipeline_tag" or key not in before:
            known.data[key] = value
    written = place_body(known.text, describe_body(card))
    if readme is not None and written == known.text and read_fields(known) == before:
        return readme
    known.text = written
    return str(known).encode()


def read_fields(card: RepoCard) -> dict[str, Any]:
    return dict(cast("Any", card.data).to_dict())


def describe_fields(card: Card) -> dict[str, Any]:
    """The keys of the front matter that are ours, in order."""
    method = card.peft_type.lower() if card.peft_type in PEFT_TYPES else card.method
    fields = {
        "base_model": card.base,
        "base_model_relation": "adapter" if card.base else None,
        "library_name": "peft" if card.peft_type in PEFT_TYPES else "pefthub",
        "pipeline_tag": TASKS.get(card.task_type or "", (None, None))[1],
        "tags": ["pefthub", method],
    }
    return {key: value for key, value in fields.items() if value is not None}


def place_body(text: str, body: str) -> str:
    """Our text where it stood, or alone where there was none, or not at all in another's."""
    begin, end = text.find(BEGIN), text.find(END)
    if 0 <= begin < end:
        return text[:begin] + body + text[end + len(END) :]
    return f"{body}\n" if not text.strip() else text


def describe_body(card: Card) -> str:
    """Our text, marks included."""
    base = f"[{card.base}]({SITE}/{card.base})" if card.base else plain(card.base_label)
    what = "An adapter" if card.composition is None else "A composition of adapters"
    reads_peft = card.peft_type in PEFT_TYPES
    rows = {
        "version": card.reference,
        "task": card.task,
        "method": card.method if card.composition is None else None,
        "composition": card.composition,
        "parameters": f"{card.values:,}",
        "content digest": card.digest,
    }
    parts = [
        BEGIN,
        f"# {plain(card.title)}",
        f"{what} for {base}, published with [pefthub](https://pypi.org/project/pefthub/).",
        format_table(("", ""), [(k, v) for k, v in rows.items() if v is not None]),
        "## Use it",
        describe_use(card),
    ]
    if reads_peft and card.repo:
        parts += [
            "Or with [peft](https://huggingface.co/docs/peft):",
            format_code(
                "from peft import PeftModel",
                "",
                f'model = PeftModel.from_pretrained(model, "{card.repo}")',
            ),
        ]
    if card.parts:
        listed = [
            (row.reference, row.kind, "" if row.values is None else f"{row.values:,}", row.folder)
            for row in card.parts
        ]
        head = ("part", "what it is", "parameters", "folder")
        parts += ["## Parts", format_table(head, listed)]
    if card.metrics:
        measured = [(name, f"{value:.6g}") for name, value in sorted(card.metrics.items())]
        parts += ["## Metrics", format_table(("metric", "value"), measured)]
    training = [(k, v) for k, v in sorted(card.training.items()) if is_shown(v)]
    if training:
        parts += ["## Training", format_table(("", ""), training)]
    return "\n\n".join([*parts, END])


def describe_use(card: Card) -> str:
    """The lines that load the base and attach the adapter."""
    model_class = TASKS.get(card.task_type or "", ("AutoModel", None))[0]
    lines = ["import hub"]
    if card.base:
        lines += [
            f"from transformers import {model_class}",
            "",
            f'model = {model_class}.from_pretrained("{card.base}")',
        ]
    else:
        lines += ["", "model = ...  # the base model"]
    return format_code(*lines, f"hub.attach(model, hub.load({json.dumps(card.address)}))")


def format_code(*lines: str) -> str:
    return "\n".join(("```python", *lines, "```"))


def format_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *(list(map(plain, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(value: Any) -> str:
    """A value as text that Markdown takes as it is and that ends no table, tag or mark of ours."""
    text = " ".join(str(value).split())
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", text).replace("<", "&lt;")


def is_shown(value: Any) -> bool:
    """Whether a value of the training's settings is short enough to stand in a table."""
    return isinstance(value, str | int | float) and len(str(value)) <= 200


def merge_lists(known: Any, ours: list[str]) -> list[Any]:
    """What a user listed, then what is ours and missing."""
    listed = known if isinstance(known, list) else [] if known is None else [known]
    return [*listed, *(item for item in ours if item not in listed)]


def name_hub_repo(name: str | None) -> str | None:
    """The name of a base model where it can be one of a repository on the Hub, else None."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if name is None or Path(name).exists() else name
