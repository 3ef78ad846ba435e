"""An adapter: a method's configuration and its trained tensors, without any model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hub.bases import Base
from hub.building import build_modules
from hub.discovery import installed_methods
from hub.errors import ConfigError, FileError, MethodError
from hub.files import Manifest, format_files, parse_adapter, read_contents, write_files
from hub.heads import copy_head, find_heads
from hub.identity import identify_base
from hub.sites import find_sites, unwrap_model
from hub_registry.identity import BaseIdentity

if TYPE_CHECKING:
    from hub.readings import Word

# The fields of adapter_config.json that are there for every method; the others are its own.
# What peft writes about itself, the run or the class does not change what an adapter computes.
COMMON = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "revision",
        "task_type",
    }
)
# What peft takes a classifier's head to be named where nobody says it.
PEFT_HEADS = frozenset({"classifier", "score"})


class Adapter:
    """A method's configuration and its tensors.

    method: the name of the method.
    config: its configuration, a frozen dataclass of the method's own.
    tensors: by name, ``{path of the site}.{tensor}``; nn.Parameter, and trained in place while
        attached. A trained head's are among them.
    heads: the paths of the trained heads that the adapter carries.
    base: the identity of the base that it was made for; None when its files did not say.
    task, metrics, lineage: what it is for, how good it is, what it came from.
    reference: where it was loaded from, "sst2@3"; None until it has a name.
    digest: the content digest of that version, where it was loaded from a registry or added to one.
    folder: the folder that it was loaded from, "./german", without the rest of its path, which is
        of this machine; None for what was loaded from elsewhere.
    fresh: made new, not loaded; fresh adapters learn when attached, loaded ones do not.

    Two adapters are equal only when they are the same object.
    """

    def __init__(
        self,
        method: str,
        config: Any,
        tensors: Mapping[str, torch.Tensor],
        *,
        heads: tuple[str, ...] = (),
        base: BaseIdentity | None = None,
        task_type: str | None = None,
        task: str | None = None,
        metrics: Mapping[str, float] | None = None,
        lineage: Mapping[str, Any] | None = None,
        reference: str | None = None,
        fresh: bool = False,
    ) -> None:
        self.method = method
        self.config = config
        self.tensors = {name: as_parameter(tensor) for name, tensor in tensors.items()}
        self.heads = heads
        self.base = base
        self.task_type = task_type
        self.task = task
        self.metrics = dict(metrics or {})
        self.lineage = dict(lineage or {})
        self.reference = reference
        self.digest: str | None = None
        self.folder: str | None = None
        self.fresh = fresh

    @classmethod
    def create(cls, method: str, model: nn.Module, *, head: bool = True, **options: Any) -> Adapter:
        """A new, untrained adapter for `model`, which is read and left as it is.

        head: whether a model with a task's head (a sequence classifier, say) gives the adapter a
            copy of that head to train. One without can be stacked on one that has it.
        options: the method's own, see `hub methods NAME`.

        Raises MethodError on an unknown method, ConfigError on an option that does not fit the
        method or the model, AttachError where the model's sites can't be found.
        """
        owner = installed_methods().get(method)
        model = unwrap_model(model)
        heads = find_heads(model) if head else ()
        sites = [site for site in find_sites(model) if not lies_in(site.path, heads)]
        config = owner.make_config(**options)
        chosen = owner.choose_sites(sites, config)
        config = owner.settle_config(config, chosen)
        modules = build_modules(owner, chosen, config)
        with torch.no_grad():
            for site, module in modules.sites.items():
                owner.start(module, site, config, Base(model, site.owner, site.part))
        tensors = modules.tensors()
        for path in heads:
            copied = copy_head(model, path).float().cpu()
            tensors |= {f"{path}.{name}": tensor for name, tensor in copied.state_dict().items()}
        return cls(
            method,
            config,
            tensors,
            heads=heads,
            base=identify_base(model),
            task_type=name_task_type(model),
            fresh=True,
        )

    @classmethod
    def read(cls, folder: str | Path, *, reference: str | None = None) -> Adapter:
        """The adapter in a folder. Raises FileError, MethodError, ConfigError."""
        adapter = cls.parse(read_contents(folder), Path(folder), reference=reference)
        adapter.folder = name_folder(Path(folder))
        return adapter

    @classmethod
    def parse(
        cls, contents: Mapping[str, bytes], where: Path, *, reference: str | None = None
    ) -> Adapter:
        """The adapter in these files, by name. `where` is what errors call the place they are in.

        Raises FileError, MethodError, ConfigError.
        """
        files = parse_adapter(contents, where)
        peft_type = files.config.get("peft_type")
        if not isinstance(peft_type, str):
            raise FileError(f"{where}: adapter_config.json does not say its peft_type")
        methods = installed_methods()
        try:
            if files.manifest is not None:
                method = methods.get(files.manifest.method)
            else:
                method = methods.get_by_peft_type(peft_type)
        except MethodError as error:
            raise MethodError(f"{where}: {error}") from error
        tensors = {}
        for key, tensor in files.tensors.items():
            if not key.startswith(method.prefix) and key not in method.plain_names:
                raise FileError(
                    f"{where}: the tensor {key!r} is named unlike an adapter's, which begin with "
                    f"{method.prefix!r}; was the file written by something else?"
                )
            tensors[key.removeprefix(method.prefix)] = tensor
        fields = {k: v for k, v in files.config.items() if k not in COMMON}
        try:
            taken = methods.call("hub_load", method.name, config=fields, tensors=tensors)
            fields, tensors = taken if taken is not None else (fields, tensors)
            config = method.read_config(fields)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        manifest = files.manifest or Manifest(method.name)
        return cls(
            method.name,
            config,
            tensors,
            heads=find_saved_heads(where, files.config.get("modules_to_save") or [], tensors),
            base=manifest.base,
            task_type=files.config.get("task_type"),
            task=manifest.task,
            metrics=manifest.metrics,
            lineage=manifest.lineage,
            reference=reference or manifest.version,
        )

    def save(self, folder: str | Path) -> Path:
        """Write the adapter's three files into a folder. Raises FileError; see `hub.files`."""
        return write_files(folder, self.format())

    def format(self) -> dict[str, bytes]:
        """The bytes of the adapter's three files, by name. Raises FileError."""
        method = installed_methods().get(self.method)
        tensors = {
            name if name in method.plain_names else method.prefix + name: tensor
            for name, tensor in method.write_tensors(self.config, self.tensors).items()
        }
        return format_files(self.describe_config(), tensors, self.describe())

    def describe_config(self) -> dict[str, Any]:
        """What ``adapter_config.json`` says."""
        method = installed_methods().get(self.method)
        return {
            "peft_type": method.peft_type or method.name.upper(),
            "task_type": self.task_type,
            "base_model_name_or_path": self.base.repo if self.base else None,
            "revision": self.base.revision if self.base else None,
            **({"modules_to_save": list(self.heads)} if self.heads else {}),
            "inference_mode": True,
            **method.write_config(self.config),
        }

    def describe(self) -> Manifest:
        """What ``hub.json`` says, the digests apart."""
        return Manifest(
            self.method, self.base, self.task, self.metrics, self.lineage, version=self.reference
        )

    def read_words(self, model: nn.Module, tokenizer: Any, count: int = 5) -> list[list[Word]]:
        """The words of a base that each virtual token is nearest to; see `hub.readings`.

        Raises ConfigError where there are no virtual tokens, AttachError where they don't fit,
        BaseMismatch where the adapter was made for another base.
        """
        from hub.readings import read_words, verify_table

        model = unwrap_model(model)
        embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
        words = read_words(self, embeddings.weight, tokenizer, count)
        backbone: nn.Module = getattr(model, "base_model", model)
        for path, module in backbone.named_modules():
            if module is embeddings:
                verify_table(self, f"{path}.weight", embeddings.weight, type(model).__name__)
        return words

    @property
    def label(self) -> str:
        """What to call it: its reference, or the method's name."""
        return self.reference or self.method

    def __repr__(self) -> str:
        count = sum(tensor.numel() for tensor in self.tensors.values())
        base = self.base.label if self.base is not None else "an unknown base"
        return f"<Adapter {self.label}: {self.method}, {count:,} values, for {base}>"


def find_saved_heads(
    where: Path, names: Sequence[str], tensors: Mapping[str, torch.Tensor]
) -> tuple[str, ...]:
    """The paths of the trained heads among `tensors`. Raises FileError where none is there.

    peft lists the names that heads usually have, and saves the one that the model had; none where
    the model's has another name, as T5's.
    """
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise FileError(f"{where}: modules_to_save is {names!r}; it must be a list of names")
    paths: dict[str, None] = {}
    for name in tensors if names else ():
        parts = name.split(".")
        for end in range(1, len(parts)):
            path = ".".join(parts[:end])
            if any(path == head or path.endswith(f".{head}") for head in names):
                paths[path] = None
    if names and not paths and not PEFT_HEADS.issuperset(names):
        raise FileError(
            f"{where} should carry a trained head ({', '.join(names)}), and no tensor of it is "
            "there; fetch the adapter anew"
        )
    return tuple(paths)


def name_folder(folder: Path) -> str:
    """A folder without the rest of its path."""
    return f"./{folder.absolute().name}"


def as_parameter(tensor: torch.Tensor) -> nn.Parameter:
    """The same as a parameter, itself where it is one."""
    if type(tensor) is not torch.Tensor and isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor, requires_grad=tensor.is_floating_point())


def lies_in(path: str, parents: tuple[str, ...]) -> bool:
    """Whether a module is one of `parents` or inside one."""
    return any(path == parent or path.startswith(f"{parent}.") for parent in parents)


def name_task_type(model: nn.Module) -> str | None:
    """peft's word for what the model's class is for; None where peft has no word for it."""
    from transformers.models.auto import modeling_auto as auto

    name = type(model).__name__
    for task_type, classes in (
        ("SEQ_CLS", auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
        ("TOKEN_CLS", auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES),
        ("QUESTION_ANS", auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES),
        ("SEQ_2_SEQ_LM", auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
        ("CAUSAL_LM", auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        ("FEATURE_EXTRACTION", auto.MODEL_MAPPING_NAMES),
    ):
        if name in classes.values():
            return task_type
    return None
