"""What a base model is, told from its weights, and whether two of them are the same.

An identity holds digests of the weight files where they are known, and a sample: a few values
of each tensor, which travels well and tells one fine-tune from another of the same shape.
Everything here is plain Python, so a registry or a remote can read it without torch.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import struct
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

from hub_registry.errors import BadIdentity

Verdict = Literal["same", "precision", "different", "unverified"]

# Unit roundoff: the largest relative error of rounding a real number to the format.
_ROUNDOFF = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24}
# Half the distance between two float16 subnormals: small weights keep no relative precision there.
_FLOAT16_SLACK = 2.0**-25
_FLOAT32_TOLERANCE = 1e-6
# Scales that were quantized too come out a little differently on another processor; the next level
# of a weight is farther away.
_QUANTIZED_TOLERANCE = 2.0**-7
# These may be there or not: the same base is loaded with a head or a pooler, or without.
_HEADS = ("lm_head", "head", "pooler")
_NAMED = 3


@dataclass(frozen=True)
class TensorSample:
    """The shape of a tensor and up to 16 of its values, at positions fixed by the shape.

    `values` are rounded to float32 here, so that an identity equals its JSON round trip.
    `precision` is how this tensor is held: a model may keep some of them in a finer one.
    `errors` are there for a quantized tensor: how far each value may be from what it was before.
    """

    shape: tuple[int, ...]
    values: tuple[float, ...]
    precision: str = "float32"
    errors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        for name in ("values", "errors"):
            object.__setattr__(self, name, tuple(array("f", getattr(self, name))))
        if self.errors and len(self.errors) != len(self.values):
            raise BadIdentity(
                f"a tensor sample of a base identity has {len(self.values)} values and "
                f"{len(self.errors)} errors; each value has one, or none has"
            )

    def to_json(self) -> dict[str, Any]:
        """`{"shape": [...], "precision": ..., "values": base64 of little-endian float32}`, and
        "errors", written likewise, of a quantized tensor."""
        told = {
            "shape": list(self.shape),
            "precision": self.precision,
            "values": _encode_floats(self.values),
        }
        return {**told, "errors": _encode_floats(self.errors)} if self.errors else told

    @classmethod
    def from_json(cls, value: Any) -> TensorSample:
        """The inverse of `to_json`. Raises BadIdentity."""
        try:
            shape = tuple(int(size) for size in value["shape"])
            values, errors = (
                _decode_floats(value["values"]),
                _decode_floats(value.get("errors", "")),
            )
            return cls(shape, values, str(value["precision"]), errors)
        except (KeyError, TypeError, ValueError, binascii.Error, struct.error) as error:
            raise BadIdentity(
                f"a tensor sample of a base identity is not readable ({error}); "
                "it must be {shape: [...], precision: text, values: base64 of float32}"
            ) from error


def _encode_floats(values: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode("ascii")


def _decode_floats(text: str) -> tuple[float, ...]:
    raw = base64.b64decode(text, validate=True)
    return struct.unpack(f"<{len(raw) // 4}f", raw)


@dataclass(frozen=True)
class BaseIdentity:
    """What an adapter is bound to.

    `revision` is a commit hash where one is known, `architecture` the model type ("llama"),
    `precision` how the weights are held ("bfloat16"), `quantization` the way they are quantized,
    `tokenizer` the sha256 of the tokenizer's content, `files` the sha256 of each weight file,
    `sample` a few values of each tensor by its name.
    """

    architecture: str
    precision: str
    repo: str | None = None
    revision: str | None = None
    quantization: str | None = None
    tokenizer: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    sample: Mapping[str, TensorSample] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", dict(self.files))
        object.__setattr__(self, "sample", dict(self.sample))

    def __hash__(self) -> int:
        return hash(self.digest)

    def to_json(self) -> dict[str, Any]:
        """A value that `json.dumps` takes; its keys are the field names."""
        return {
            **{item.name: getattr(self, item.name) for item in fields(self)},
            "files": dict(self.files),
            "sample": {name: sample.to_json() for name, sample in self.sample.items()},
        }

    @classmethod
    def from_json(cls, value: Any) -> BaseIdentity:
        """The inverse of `to_json`. Raises BadIdentity."""
        if not isinstance(value, Mapping):
            raise BadIdentity(f"a base identity is a JSON object, not {type(value).__name__}")
        known = {item.name for item in fields(cls)}
        if unknown := sorted(set(value) - known):
            raise BadIdentity(
                f"a base identity has no field '{unknown[0]}'; a newer version wrote it: upgrade"
            )
        for name in ("architecture", "precision"):
            if not isinstance(value.get(name), str):
                raise BadIdentity(f"a base identity must say its {name}, and this one does not")
        for name in ("repo", "revision", "quantization", "tokenizer"):
            if not isinstance(value.get(name), str | None):
                raise BadIdentity(f"the {name} of a base identity is not text")
        for name in ("files", "sample"):
            if not isinstance(value.get(name, {}), Mapping):
                raise BadIdentity(f"the {name} of a base identity are not a JSON object")
        if not all(isinstance(sha256, str) for sha256 in value.get("files", {}).values()):
            raise BadIdentity("the files of a base identity are not names and their sha256")
        sample = {
            name: TensorSample.from_json(item) for name, item in value.get("sample", {}).items()
        }
        return cls(**{**value, "sample": sample})

    @cached_property
    def digest(self) -> str:
        """The sha256 of the canonical JSON (sorted keys, no spaces), in hex."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def label(self) -> str:
        """Short text for people: `org/repo@1234abc`, or `llama (1.2M parameters, 1234abc)`."""
        if self.repo:
            return f"{self.repo}@{self.revision[:7]}" if self.revision else self.repo
        if not self.sample:
            return self.architecture
        count = sum(math.prod(item.shape) for item in self.sample.values())
        return f"{self.architecture} ({_shorten_count(count)} parameters, {self.digest[:7]})"


@dataclass(frozen=True)
class Comparison:
    """What `compare` found: "same", "precision" (the same weights, held in another precision or
    quantization), "different", or "unverified" (too little is known), and why, a line each."""

    verdict: Verdict
    reasons: tuple[str, ...] = ()


def compare(expected: BaseIdentity, found: BaseIdentity) -> Comparison:
    """Tell whether `found` is the base that `expected` describes.

    The sampled tensors are compared; where a side has none, the digests of the weight files. The
    precision of a tensor is the coarsest of bfloat16, float16 and float32 that holds exactly the
    values of all tensors kept like it on its side: two of equal precision must be equal, two of
    different precision within rounding of each other. A quantized value must be as near to the one
    on the other side as its error says, and equal where that is quantized alike.
    A tokenizer that differs is said in the reasons and leaves the verdict as it is.
    """
    notes = _note_tokenizer(expected, found)
    if expected.architecture != found.architecture:
        reason = f"the architecture is {found.architecture}, not {expected.architecture}"
        return Comparison("different", (reason, *notes))

    names = _find_common_tensors(expected, found)
    shared = sorted(expected.files.keys() & found.files.keys())
    changed = [name for name in shared if expected.files[name] != found.files[name]]
    differences, rounded = [], False
    if expected.sample and found.sample:
        # Files say what was loaded, the sample what is in memory: only that may have been trained.
        differences = _compare_names(expected, found) or _compare_shapes(expected, found, names)
        if not differences and not names:
            return Comparison("unverified", ("no tensor was sampled on both sides", *notes))
        if not differences:
            differences, rounded = _compare_values(expected, found, names)
    elif changed:
        differences = [
            f"{changed[0]} is another file: {found.files[changed[0]][:12]}, not "
            f"{expected.files[changed[0]][:12]}"
        ]
    elif not shared or expected.files != found.files:
        side = "expected" if not (expected.sample or expected.files) else "present"
        reason = f"nothing comparable is known of the weights of the {side} base"
        return Comparison("unverified", (reason, *notes))
    if differences:
        return Comparison("different", (*differences, *notes))

    held = []
    if expected.precision != found.precision or rounded:
        held.append(f"the weights are held in {found.precision}, not {expected.precision}")
    if expected.quantization != found.quantization:
        held.append(
            f"the quantization is {found.quantization or 'none'}, "
            f"not {expected.quantization or 'none'}"
        )
    return Comparison("precision" if held else "same", (*held, *notes))


def _note_tokenizer(expected: BaseIdentity, found: BaseIdentity) -> tuple[str, ...]:
    if expected.tokenizer and found.tokenizer and expected.tokenizer != found.tokenizer:
        return (f"the tokenizer is {found.tokenizer[:12]}, not {expected.tokenizer[:12]}",)
    return ()


def _find_common_tensors(expected: BaseIdentity, found: BaseIdentity) -> list[str]:
    return [name for name in expected.sample if name in found.sample]


def _compare_names(expected: BaseIdentity, found: BaseIdentity) -> list[str]:
    missing = [name for name in expected.sample if name not in found.sample]
    extra = [name for name in found.sample if name not in expected.sample]
    # Some quantized tensors can't be sampled, and then the other side has them alone.
    if expected.quantization != found.quantization:
        missing = [] if found.quantization else missing
        extra = [] if expected.quantization else extra
    reasons = []
    for names, word in ((missing, "missing"), (extra, "not in the expected base")):
        names = [name for name in names if not name.startswith(_HEADS)]
        if names:
            reasons.append(f"{_name_some(names)} {'is' if len(names) == 1 else 'are'} {word}")
    return reasons


def _compare_shapes(expected: BaseIdentity, found: BaseIdentity, names: list[str]) -> list[str]:
    reasons = []
    for name in names:
        left, right = expected.sample[name], found.sample[name]
        if left.shape != right.shape:
            reasons.append(f"{name} has shape {list(right.shape)}, not {list(left.shape)}")
        elif len(left.values) != len(right.values):
            reasons.append(
                f"{name} was sampled at {len(right.values)} places, not {len(left.values)}"
            )
    if len(reasons) > _NAMED:
        reasons[_NAMED:] = [f"and {len(reasons) - _NAMED} more tensors"]
    return reasons


def _compare_values(
    expected: BaseIdentity, found: BaseIdentity, names: list[str]
) -> tuple[list[str], bool]:
    """The reason why the values differ (none when they agree), and whether any was rounded."""
    differing = [n for n in names if expected.sample[n].values != found.sample[n].values]
    if not differing:
        return [], False
    ours, theirs = _find_precisions(expected, names), _find_precisions(found, names)
    worst, worst_excess, count, rounded = "", 0.0, 0, False
    converted = expected.precision != found.precision
    alike = not converted and expected.quantization == found.quantization
    for name in differing:
        left, right = expected.sample[name].values, found.sample[name].values
        absolute = [0.0] * len(left)
        if expected.sample[name].errors or found.sample[name].errors:
            relative = _QUANTIZED_TOLERANCE
            if not alike:
                relative = _add_roundoffs(expected, found) if converted else 0.0
                absolute = _add_errors(expected.sample[name], found.sample[name])
        elif ours[name] != theirs[name]:
            relative = _ROUNDOFF[ours[name]] + _ROUNDOFF[theirs[name]]
            absolute = [_FLOAT16_SLACK] * len(left)
            rounded = True
        else:
            relative = _FLOAT32_TOLERANCE if ours[name] == "float32" else 0.0
            absolute = [_FLOAT16_SLACK if converted else 0.0] * len(left)
        excess, values = max(
            (_measure_excess(a, b, relative, slack), (a, b))
            for a, b, slack in zip(left, right, absolute, strict=True)
        )
        if excess > 0.0:
            count += 1
            if excess > worst_excess:
                worst, worst_excess = f"{name} holds {values[1]:.6g}, not {values[0]:.6g}", excess
    if not count:
        return [], rounded
    more = f" ({count} of {len(names)} sampled tensors differ)"
    return [worst + more], rounded


def _measure_excess(a: float, b: float, relative: float, absolute: float) -> float:
    """By how much two values differ over what is allowed; 0 within it, inf where one is a NaN."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    distance = abs(a - b)
    if not math.isfinite(distance):
        return math.inf
    allowed = relative * max(abs(a), abs(b)) + absolute
    return 0.0 if distance <= allowed else distance - allowed


def _add_errors(left: TensorSample, right: TensorSample) -> list[float]:
    """How far two samples of one tensor may be apart, of which one or both are quantized."""
    none = (0.0,) * len(left.values)
    pairs = zip(left.errors or none, right.errors or none, strict=True)
    return [ours + theirs for ours, theirs in pairs]


def _add_roundoffs(left: BaseIdentity, right: BaseIdentity) -> float:
    """The largest relative distance of one number, rounded to the precision of each side."""
    return sum(_ROUNDOFF.get(side.precision, 0.0) for side in (left, right))


def _find_precisions(side: BaseIdentity, names: list[str]) -> dict[str, str]:
    """The effective precision of each tensor: what was cast up keeps the values of before."""
    kept: dict[str, list[float]] = {}
    for name in names:
        kept.setdefault(side.sample[name].precision, []).extend(side.sample[name].values)
    effective = {precision: _find_precision(values) for precision, values in kept.items()}
    return {name: effective[side.sample[name].precision] for name in names}


def _find_precision(values: Sequence[float]) -> str:
    """The coarsest format that holds every value exactly."""
    if all(_fits_bfloat16(value) for value in values):
        return "bfloat16"
    if all(_fits_float16(value) for value in values):
        return "float16"
    return "float32"


def _fits_bfloat16(value: float) -> bool:
    return math.isnan(value) or not struct.unpack("<I", struct.pack("<f", value))[0] & 0xFFFF


def _fits_float16(value: float) -> bool:
    try:
        return math.isnan(value) or struct.unpack("<e", struct.pack("<e", value))[0] == value
    except OverflowError:
        return False


def _name_some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more tensors" if more > 0 else "")


def _shorten_count(count: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)
