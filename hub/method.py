"""What a method says about itself: the one class that a plugin fills in."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import torch
from torch import nn

from hub.bases import Base
from hub.errors import ConfigError
from hub.sites import Site

if TYPE_CHECKING:
    from hub.combining import Rule

C = TypeVar("C")


@dataclass(frozen=True)
class Training:
    """What a method adds to a training run; see the hook `hub_train`.

    penalty: called once a step, gives a scalar tensor that is added to the loss.
    after_step: called with the number of optimizer steps done (1 after the first).
    result_from: the number of steps from which the adapter is what it shall become; what is
        measured before can't be the best.
    """

    penalty: Callable[[], torch.Tensor] | None = None
    after_step: Callable[[int], None] | None = None
    result_from: int = 0


class Method(ABC, Generic[C]):
    """A way to adapt a base model.

    A method is stateless: everything that differs between two adapters is in their configuration,
    a frozen dataclass with a default for every field that a user may leave out.

    name: what a user types, and the name of the entry point.
    paper: authors, title and link.
    config: the dataclass.
    peft_type: what ``adapter_config.json`` says in the field of that name; peft's own where peft
        has the method, else the name in capitals, which peft refuses to read.
    prefix: what the names of its files' tensors begin with: peft's, which is ``base_model.`` for
        methods that peft counts among prompt learning.
    plain_names: tensors that its files name as they are, without the prefix.
    leads: whether its modules do nothing alone and lead a fuse: theirs is ``fuse(y, parts)``, which
        chooses among what the parts of the fuse give, see `hub.Fuse`.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    config: type[C]
    peft_type: ClassVar[str] = ""
    prefix: ClassVar[str] = "base_model.model."
    plain_names: ClassVar[frozenset[str]] = frozenset()
    leads: ClassVar[bool] = False

    @abstractmethod
    def choose_sites(self, sites: Sequence[Site], config: C) -> Sequence[Site]:
        """Those of the base's `sites` where this configuration acts.

        Raises ConfigError where the configuration asks for what the base does not have.
        """

    @abstractmethod
    def build(self, site: Site, config: C) -> nn.Module:
        """A new module for one site, with the method's own initial values.

        Its ``forward(x, y)`` gets what went into the site's module, ``(..., in_features)``, and
        what came out, ``(..., out_features)``, and returns what shall come out instead. Every
        tensor that it needs is a parameter or a persistent buffer: when an adapter is loaded the
        module is built without values and filled from the file.

        At an embedding a projection's x is token ids. At a site of kind attention x is the query,
        ``(batch, heads, seq, head_dim)``, and y the attention's output, ``(batch, seq, heads,
        head_dim)``. A module that has ``extend()`` puts n virtual positions in front: at a site of
        kind embedding it returns ``(n, d_model)``, virtual tokens; at an attention ``(n,
        in_features + out_features)``, the keys and then the values of each.

        A module that has ``before(x)`` changes what goes into the site's module: x becomes what it
        returns, for the site and for every other adapter there. It needs no forward then.

        At a branch whose `stream` is known, a module with the attribute ``reads_stream = True``
        gets as x the residual stream that y will be added to, in y's shape.

        Where `build_shared` returned a module it is given as a third argument; it may be kept as
        a child.
        """

    def build_shared(self, sites: Sequence[Site], config: C) -> nn.Module | None:
        """What all the sites of an adapter have in common; its tensors are kept once.

        The default, None, says that every site is on its own.
        """
        return None

    def start(self, module: nn.Module, site: Site, config: C, base: Base) -> None:
        """Set the first values of a new adapter's module that depend on the base. Default: none."""

    def bind(self, module: nn.Module, site: Site, base: Base) -> None:
        """Give an attached module, filled with its values, what it needs of the base.

        The default gives nothing. `base` may be kept as an attribute.
        """

    def settle_config(self, config: C, sites: Sequence[Site]) -> C:
        """The configuration to keep, now that its sites are known.

        The default keeps it as it is. A method whose files list their modules by name puts the
        names in here, so that the same configuration means the same sites ever after.
        """
        return config

    def weight_delta(self, module: nn.Module, weight: torch.Tensor) -> torch.Tensor | None:
        """What must be added to a projection's or a norm's weight to have the module's effect
        without it.

        weight: ``(out_features, in_features)``, a norm's ``(width,)``, in float32, whatever the
        layer's own layout. The default, None, says that the effect is not a change of weights:
        without a change of the bias either there is no merging.
        """
        return None

    def bias_delta(self, module: nn.Module, bias: torch.Tensor) -> torch.Tensor | None:
        """What must be added to a projection's or a norm's bias, ``(out_features,)``, when merging;
        None, the default, for nothing."""
        return None

    def virtual_tokens(self, config: C, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """The virtual tokens that an adapter puts in front of the input, ``(n, d_model)``.

        With them it can be read: `hub show` names the nearest words. Default: None, it has none.
        """
        return None

    def neutral(self, config: C, name: str) -> float | None:
        """The value at which the tensor of this name changes nothing.

        When adapters are combined, what is mixed is how far their tensors are from it. None, the
        default, says that mixing them has no meaning, and combining is refused.
        """
        return None

    def join_config(self, configs: Sequence[C]) -> C:
        """The configuration of one adapter that is combined of several with these.

        The default is theirs, where they are equal, else a ConfigError that names what differs. A
        method leaves out what had its effect before, such as where the training began.
        """
        for config in configs[1:]:
            for name in sorted(self._field_names()):
                one, other = getattr(configs[0], name), getattr(config, name)
                if one != other:
                    raise ConfigError(
                        f"{self.name}: {name} is {one!r} in one and {other!r} in another; only "
                        "adapters that are alike there can be combined"
                    )
        return configs[0]

    def combine(
        self, configs: Sequence[C], tensors: Sequence[Mapping[str, torch.Tensor]], rule: Rule
    ) -> tuple[C, Mapping[str, torch.Tensor]]:
        """One adapter of several: its configuration and its tensors.

        configs, tensors: of each part; the tensors in float32, without those of trained heads. They
            must stay as they are, and the result's share no memory with them. No gradients are
            taken.
        rule: what the user asked for. ``rule.mix`` makes one tensor of several by it,
            ``rule.mix_factors`` one change of a weight that is kept as two factors, and
            ``rule.weights`` are those of the parts.

        The default mixes the tensors of each name, in sorted order, as `neutral` says. All parts
        must have all of them. Raises ConfigError on what can't be combined, with the reason.
        """
        from hub.combining.mixing import mix_tensors

        config = self.join_config(configs)
        return config, mix_tensors(self, config, tensors, rule)

    def write_tensors(
        self, config: C, tensors: Mapping[str, torch.Tensor]
    ) -> Mapping[str, torch.Tensor]:
        """The tensors that the files hold, by name; `hub_load` is the way back. Default: as they
        are."""
        return tensors

    def write_config(self, config: C) -> dict[str, Any]:
        """The configuration as the fields of ``adapter_config.json``, in peft's names."""
        return dataclasses.asdict(cast("Any", config))

    def read_config(self, fields: Mapping[str, Any]) -> C:
        """The configuration that these fields of ``adapter_config.json`` mean.

        Raises ConfigError on a field that this method does not know and whose value is not
        neutral (null, false or empty).
        """
        return self.make_config(**drop_neutral(fields, self._field_names()))

    def make_config(self, **options: Any) -> C:
        """The configuration that a user's options mean. Raises ConfigError."""
        known = self._field_names()
        unknown = sorted(options.keys() - known)
        if unknown:
            raise ConfigError(
                f"{self.name} has no option {', '.join(map(repr, unknown))}; "
                f"it has {', '.join(sorted(known))}"
            )
        values = {name: copy_option(value) for name, value in options.items()}
        hints = find_hints(cast("Any", self.config))
        for name, value in values.items():
            if not fits_type(value, hints[name]):
                shown = describe_type(hints[name])
                raise ConfigError(f"{self.name}: {name} is {value!r}; it must be {shown}")
        try:
            return self.config(**values)
        except TypeError as error:
            raise ConfigError(f"{self.name}: {error}") from error

    def _field_names(self) -> frozenset[str]:
        return frozenset(field.name for field in dataclasses.fields(cast("Any", self.config)))


@cache
def find_hints(config: type) -> dict[str, Any]:
    """The types of a configuration's fields, which are kept as text until then."""
    return get_type_hints(config)


def copy_option(value: Any) -> Any:
    """An option that stays as it is when what was given changes: of a list a tuple, of a table a
    copy."""
    if isinstance(value, list):
        return tuple(value)
    return dict(value) if isinstance(value, Mapping) else value


def fits_type(value: Any, hint: Any) -> bool:
    """Whether a configuration's value is of its field's type: a plain one, a union of them, a
    tuple of one kind, or a mapping. True and False are no numbers, a whole number is a float."""
    origin, parts = split_hint(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return True
    if origin in (Union, UnionType):
        return any(fits_type(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin is tuple:
        return isinstance(value, tuple) and all(fits_type(item, parts[0]) for item in value)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            fits_type(k, parts[0]) and fits_type(v, parts[1]) for k, v in value.items()
        )
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else origin or hint)


@cache
def split_hint(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without its parameters, None for a plain one, and these."""
    return get_origin(hint), get_args(hint)


WORDS: dict[Any, tuple[str, str]] = {
    bool: ("true or false", "true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    type(None): ("nothing", "nothing"),
}


def describe_type(hint: Any, *, many: bool = False) -> str:
    """A field's type in a user's words; of `many` such values."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(describe_type(part, many=many) for part in parts)
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is tuple:
        return f"a list of {describe_type(parts[0], many=True)}"
    if origin is not None and issubclass(origin, Mapping):
        return f"a table of {describe_type(parts[1], many=True)} by name"
    one, several = WORDS.get(hint, (str(getattr(hint, "__name__", hint)),) * 2)
    return several if many else one


def drop_neutral(fields: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """The fields in `known`; the others must be null, false or empty, else ConfigError names them.

    An unknown field with a real value changes what the adapter computes in a way that we can't
    reproduce, so loading it would give other outputs than its author saw.
    """
    strange = {k: v for k, v in fields.items() if k not in known and v not in NEUTRAL}
    if strange:
        shown = ", ".join(f"{key}={value!r}" for key, value in sorted(strange.items()))
        raise ConfigError(
            f"adapter_config.json has {shown}, which this version does not know and so can't "
            "reproduce; upgrade pefthub, or remove the field if it has no effect on inference"
        )
    return {k: v for k, v in fields.items() if k in known}


NEUTRAL: tuple[Any, ...] = (None, False, "", [], {}, ())
