"""The JSON documents beside an adapter's tensors: read strictly, written in one layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hub.errors import FileError


def read_json(path: Path, data: bytes) -> dict[str, Any]:
    """A file's JSON object. Raises FileError."""
    try:
        value = json.loads(data, parse_constant=refuse_constant)
    except ValueError as error:
        raise FileError(f"{path} is not JSON: {error}; fetch it anew") from error
    if not isinstance(value, dict):
        raise FileError(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value


def refuse_constant(word: str) -> float:
    """What Python's parser asks about NaN and the infinities, which are no JSON."""
    raise ValueError(f"{word} is no number there")


def format_json(value: Mapping[str, Any]) -> bytes:
    """The bytes of a JSON object, the same for equal ones."""
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
