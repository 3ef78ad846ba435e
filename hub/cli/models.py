"""Base models for commands: loaded by transformers, with every failure in one line.

A base is written as a folder, `org/repo`, or `org/repo@revision`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub.cli.output import notify, show_progress
from hub.cli.quantizing import find_quantization, make_quantization
from hub.errors import HubError
from hub.references import is_folder, locate_folder

if TYPE_CHECKING:
    from hub.adapter import Adapter
    from hub.training.metrics import Kind
    from hub_registry import BaseIdentity

KINDS: tuple[Kind, ...] = ("causal", "seq2seq", "classification")
# peft's words for what a model is for, and transformers' class for each of ours.
KINDS_BY_TASK: dict[str, Kind] = {
    "CAUSAL_LM": "causal",
    "SEQ_2_SEQ_LM": "seq2seq",
    "SEQ_CLS": "classification",
}
CLASSES: dict[Kind | None, str] = {
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "classification": "AutoModelForSequenceClassification",
    None: "AutoModel",
}

LONGEST = 300  # characters of what transformers says that are repeated


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Import what is heavy, and keep its logs and bars off the terminal meanwhile."""
    with show_progress("importing torch and transformers"):
        import torch  # noqa: F401
        from transformers.utils import logging as chatter
    verbosity, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    chatter.set_verbosity(logging.ERROR)
    chatter.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        chatter.set_verbosity(verbosity)
        if bars:
            chatter.enable_progress_bar()  # type: ignore[no-untyped-call]


def load_model(
    base: str, kind: Kind | None, num_labels: int | None = None, quantize: str | None = None
) -> Any:
    """A base model on the accelerator, where there is one. Raises HubError.

    quantize: one of `quantizing.QUANTIZATIONS`; the precision of the files when left out.
    What the files lack is drawn at random, and always the same: an adapter belongs to these very
    weights. For a head that is as it should be; the rest of the model is worth a note.
    """
    import torch
    import transformers

    from hub.adapter import lies_in
    from hub.heads import find_heads

    torch.manual_seed(0)
    changes: dict[str, Any] = {}
    if num_labels is not None:
        changes = {"num_labels": num_labels, "ignore_mismatched_sizes": True}
    if quantize is not None:
        heads = find_heads(outline(base, kind)) if kind == "classification" else ()
        changes["quantization_config"] = make_quantization(quantize, heads)
    with show_progress(f"loading {base}"), explain_loading(base, "model", kind):
        model, report = getattr(transformers, CLASSES[kind]).from_pretrained(
            **locate(base), **changes, output_loading_info=True
        )
        # One that is quantized while it is loaded is there already.
        if torch.accelerator.is_available() and not getattr(model, "hf_device_map", None):
            model = model.to(torch.accelerator.current_accelerator())
    heads = (*find_heads(model), "lm_head")
    if missing := sorted(name for name in report["missing_keys"] if not lies_in(name, heads)):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        notify(
            f"the base {base} has no weights for {missing[0]}{more}: they are random here, and "
            "others wherever else it is loaded; take a base that has them"
        )
    return model


def outline(base: str, kind: Kind) -> Any:
    """The model of a base without its weights. Raises HubError."""
    import torch
    import transformers

    config = load_config(base)
    with explain_loading(base, "model", kind), torch.device("meta"):
        return getattr(transformers, CLASSES[kind]).from_config(config, trust_remote_code=False)


def load_tokenizer(base: str) -> Any:
    """The tokenizer of a base. Raises HubError, also where the base has none: for some models
    transformers then makes one that knows its special tokens alone, and every text is unknown."""
    from transformers import AutoTokenizer

    with explain_loading(base, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(**locate(base))
    # T5's knows the space too.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)) + 1:
        raise HubError(
            f"the base {base} has no tokenizer (what it has knows {len(tokenizer)} tokens); put "
            "its tokenizer's files beside its weights, or give the repository that has them"
        )
    return tokenizer


def load_config(base: str) -> Any:
    """The configuration of a base. Raises HubError."""
    from transformers import AutoConfig

    with explain_loading(base, "configuration"):
        return AutoConfig.from_pretrained(**locate(base))


def locate(base: str) -> dict[str, Any]:
    """What `from_pretrained` takes for a base. Code out of its files is never run. Raises HubError.

    A folder is given by its whole path: that is what an adapter remembers of it.
    """
    if not base.strip():
        raise HubError("the base has no name; give the folder of a model, or org/repo")
    path = locate_folder(base)
    if path.exists() or is_folder(base):
        if not path.is_dir():
            what = "is a file" if path.exists() else "does not exist"
            raise HubError(f"the base {base} {what}; give the folder of a model, or org/repo")
        check_readable(path)
        return {"pretrained_model_name_or_path": str(path.absolute()), "trust_remote_code": False}
    repo, _, revision = base.partition("@")
    return {
        "pretrained_model_name_or_path": repo,
        "revision": revision or None,
        "trust_remote_code": False,
    }


def check_readable(folder: Path) -> None:
    """Raises HubError where a base's folder or a file in it can't be read."""
    closed = [] if os.access(folder, os.R_OK | os.X_OK) else [folder]
    closed = closed or [path for path in folder.iterdir() if not os.access(path, os.R_OK)]
    for path in closed:
        if path.exists():  # not a link that leads nowhere
            raise HubError(f"can't read {path}: permission denied; ask who owns it to let you")


@contextmanager
def explain_loading(base: str, what: str, kind: Kind | None = None) -> Iterator[None]:
    """Turn whatever transformers raises into one HubError."""
    try:
        yield
    except (HubError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        raise HubError(describe_loading(error, base, what, kind)) from error


def describe_loading(error: Exception, base: str, what: str, kind: Kind | None) -> str:
    """What transformers' error means, on one line, with the way out."""
    text = " ".join(str(error).split())
    if "Unrecognized configuration class" in text and kind is not None:
        return f"the base {base} has no model for --kind {kind}; choose another --kind"
    if "instantiate the backend tokenizer" in text:
        return (
            f"the base {base} has no tokenizer that can be read; put its tokenizer's files beside "
            "its weights, or give the repository that has them"
        )
    if type(error).__name__ == "SafetensorError":
        return (
            f"the weights of the base {base} are cut short or damaged ({text}); fetch or copy "
            "them anew"
        )
    if not is_folder(base) and (told := describe_hub_error(error, base)) is not None:
        return told
    return (
        f"can't load the {what} of the base {base}: {shorten(text) or type(error).__name__}; give "
        "the folder of a transformers model, or its repository on the Hub as org/repo or "
        "org/repo@revision"
    )


def describe_hub_error(error: BaseException, base: str) -> str | None:
    """The line for an error that came from the Hub's client; None where none did."""
    from huggingface_hub import constants, errors

    from hub.remotes.explanations import explain_error, is_transport_error

    repo, _, revision = base.partition("@")
    known = (
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.OfflineModeIsEnabled,
        errors.LocalEntryNotFoundError,
    )
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, known) or is_transport_error(cause):
            break
        cause = cause.__cause__ or cause.__context__
    else:
        return None
    if constants.is_offline_mode():
        return (
            f"HF_HUB_OFFLINE is set and the Hub's cache on this machine holds no base {base}; "
            "unset it to fetch the base, or give a folder"
        )
    told = explain_error(cause, "read", repo, revision or None, constants.ENDPOINT, lambda: ())
    return f"can't load the base {base}: {told}; or give the folder of a model"


def shorten(text: str) -> str:
    """The sentences of a text that fit into a line, without the last one's stop."""
    while len(text) > LONGEST and ". " in text:
        text = text.rpartition(". ")[0]
    return text.rstrip(".")


def choose_kind(config: Any) -> Kind:
    """What a base learns when nothing is said: what it was made for, and classification where
    that was to fill gaps in a text."""
    names = " ".join(getattr(config, "architectures", None) or ())
    if "ForSequenceClassification" in names:
        return "classification"
    if getattr(config, "is_encoder_decoder", False):
        return "seq2seq"
    if "ForMaskedLM" in names or "ForPreTraining" in names or names.endswith("Model"):
        return "causal" if names.endswith("LMHeadModel") else "classification"
    return "causal"


def count_labels(texts: Sequence[str], config: Any) -> int:
    """How many classes a head needs for these labels: as many as the base has where it knows them
    all by name, else as many as there are, or up to the highest number. Raises DataError."""
    from hub.errors import DataError

    known = set(map(str, config.id2label.values()))
    distinct = {text.strip() for text in texts}
    if distinct <= known:
        return len(known)
    if all(text.isascii() and text.isdigit() for text in distinct):
        return max(2, *(int(text) + 1 for text in distinct))
    if len(distinct) < 2:
        raise DataError(
            f"every row has the label {next(iter(distinct))!r}; a classifier needs two or more: "
            "check the template, or use --kind causal"
        )
    return len(distinct)


def load_base_of(
    parts: Sequence[Adapter], label: str, base: str | None, quantize: str | None = None
) -> tuple[Any, Any]:
    """The model and the tokenizer to measure adapters on: `base`, or where they were trained.

    parts: the adapters of a composition, or one alone; label: what errors call it. The base is
        that of the first which says one, and the model's head that of the one which brings it.
    quantize: one of `quantizing.QUANTIZATIONS` or "none"; as it was trained when left out. Raises
        HubError.
    """
    known = next((part for part in parts if name_base(part.base) is not None), parts[0])
    base = base or name_base(known.base)
    if base is None:
        raise HubError(f"{label} does not say which base it is for; give it with --base")
    config = load_config(base)
    leading = sorted(parts, key=lambda part: (not part.heads, part.task_type is None))[0]
    kind = KINDS_BY_TASK.get(leading.task_type or "") or choose_kind(config)
    if quantize is None:
        quantize = find_quantization(known, config)
    quantize = None if quantize == "none" else quantize
    return load_model(base, kind, count_classes(leading, kind), quantize), load_tokenizer(base)


def count_classes(adapter: Adapter, kind: Kind | None) -> int | None:
    """How many classes a classifier's trained head has; None where there is none."""
    heads = [
        tensor
        for name, tensor in adapter.tensors.items()
        if name.startswith(tuple(f"{path}." for path in adapter.heads)) and tensor.dim() == 2
    ]
    return len(heads[-1]) if heads and kind == "classification" else None


def name_base(identity: BaseIdentity | None) -> str | None:
    """A base as `--base` takes it; None where it is not known."""
    if identity is None or not identity.repo:
        return None
    at = f"@{identity.revision}" if identity.revision else ""
    return identity.repo + at
