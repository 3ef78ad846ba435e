"""Data: rows from a file or a `datasets.Dataset`, and the template that turns them into examples.

JSONL is read line by line and CSV cell by cell, so that a text is what the file says: pyarrow's
JSON reader makes timestamps of texts that look like dates, and CSV readers make 7 of "007" and
nothing of "NA". Nothing is cached, so a changed file is never read as it was.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tqdm import tqdm  # type: ignore[import-untyped]

from hub.errors import DataError, PackageMissing

Row = Mapping[str, Any]
Data = Sequence[Row] | str | Path

DIVIDER = "|||"
SUFFIXES = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class Example:
    """What a row became: a prompt and the completion that shall follow it.

    number: the row's, counted from 1.
    """

    number: int
    prompt: str
    completion: str


@dataclass(frozen=True)
class Examples:
    """A dataset's examples, and what they were made from.

    source: the file's name and sha256, or the dataset's fingerprint; the number of rows.
    """

    items: tuple[Example, ...]
    source: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """sha256 of all prompts and completions in their order."""
        digest = hashlib.sha256()
        for example in self.items:
            digest.update(json.dumps([example.prompt, example.completion]).encode())
        return digest.hexdigest()


class Template:
    """A Jinja2 template for a prompt and its completion, divided by ``|||``.

    It is divided before any row is filled in, so the divider may stand in the data. Expressions
    run in a sandbox. Raises DataError where the text is no such template.
    """

    def __init__(self, text: str) -> None:
        parts = text.split(DIVIDER)
        if len(parts) != 2:
            raise DataError(
                f"the template {shorten(text)} has {len(parts) - 1} times {DIVIDER!r}; it stands "
                "once, between the prompt and the completion: '{{ text }}|||{{ label }}'"
            )
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, finalize=refuse_none)
        try:
            self._prompt, self._completion = map(environment.from_string, parts)
        except TemplateSyntaxError as error:
            raise DataError(
                f"the template {shorten(text)} can't be read: {error.message}"
            ) from error
        self.text = text

    def render(self, row: Row, number: int) -> Example:
        """The example that a row gives. Raises DataError."""
        columns = ", ".join(map(str, row)) or "none"
        try:
            values = {str(name): value for name, value in row.items()}
            prompt = self._prompt.render(values)
            completion = self._completion.render(values)
        except UndefinedError as error:
            raise DataError(
                f"row {number}: {error.message}; the template can use the columns {columns}"
            ) from error
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise DataError(
                f"row {number}: the template can't be filled in: {error}; its columns are {columns}"
            ) from error
        if not completion.strip():
            raise DataError(f"row {number}: the completion is empty; fill it in or drop the row")
        return Example(number, prompt, completion)


def refuse_none(value: Any) -> Any:
    """Called on everything a template prints: a missing value would be trained on as "None"."""
    if value is None:
        raise ValueError("a column that it uses is null here; fill it in or drop the row")
    return value


def read_examples(dataset: Data, template: str) -> Examples:
    """The examples of a dataset.

    dataset: a `datasets.Dataset`, another sequence of mappings, or the path of a JSONL, CSV or
        Parquet file. In a CSV file a column of whole numbers is read as such, others as text.

    Raises DataError where the file, a row or the template is not what it should be, and
    PackageMissing where `datasets` is needed and not installed.
    """
    form = Template(template)
    source: dict[str, Any] = {}
    rows: Iterable[Row]
    if isinstance(dataset, str | Path):
        path = Path(dataset)
        source = {"file": path.name, "sha256": hash_file(path)}
        rows = read_file(path)
    else:
        rows = check_dataset(dataset)
        fingerprint = getattr(dataset, "_fingerprint", None)
        if fingerprint is not None:
            source = {"fingerprint": fingerprint}
    items = tuple(
        form.render(row, number)
        for number, row in enumerate(show_progress(rows, "reading rows"), start=1)
    )
    if not items:
        name = source.get("file", "the dataset")
        raise DataError(f"{name} has no rows; give a dataset with at least one")
    return Examples(items, {**source, "rows": len(items)})


def check_dataset(dataset: Any) -> Sequence[Row]:
    """A dataset in memory, if it is one. Raises DataError."""
    if isinstance(dataset, Mapping):
        raise DataError(
            f"the dataset has the splits {', '.join(map(str, dataset))}; give one of them"
        )
    if not isinstance(dataset, Iterable) or not hasattr(dataset, "__len__"):
        raise DataError(
            f"a {type(dataset).__name__} is no dataset; give a datasets.Dataset with all its rows, "
            f"or the path of a {', '.join(SUFFIXES)} file"
        )
    # A dataset that gives tensors would have their repr filled in.
    plain: Sequence[Row] = dataset.with_format(None) if hasattr(dataset, "with_format") else dataset  # type: ignore[assignment]
    first = next(iter(plain), {})
    if not isinstance(first, Mapping):
        raise DataError(f"row 1 is a {type(first).__name__}; a row is a mapping of column to value")
    return plain


def read_file(path: Path) -> Iterable[Row]:
    """The rows of a file, by its suffix. Raises DataError, PackageMissing."""
    readers = {".jsonl": read_jsonl, ".csv": read_csv, ".parquet": read_parquet}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path} ends in {path.suffix!r}; it can be {', '.join(SUFFIXES)}")
    return readers[path.suffix.lower()](path)


def read_jsonl(path: Path) -> Iterator[Row]:
    """One JSON object a line; empty lines are passed over."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise DataError(f"{path}, line {number} is not JSON: {error}") from error
                if not isinstance(row, dict):
                    raise DataError(
                        f"{path}, line {number} is a JSON {type(row).__name__}; a row is an "
                        'object, {"column": value}'
                    )
                yield row
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(describe_reading(path, error)) from error


def read_csv(path: Path) -> list[Row]:
    """A header and rows of as many cells."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            twice = sorted({name for name in header if header.count(name) > 1})
            if twice:
                raise DataError(f"{path} has the column {twice[0]!r} twice; name each once")
            table = []
            for cells in reader:
                if cells and len(cells) != len(header):
                    raise DataError(
                        f"{path}, line {reader.line_num} has {len(cells)} cells, the header has "
                        f"{len(header)}; put cells with a comma in quotes"
                    )
                if cells:
                    table.append(cells)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(describe_reading(path, error)) from error
    columns = [read_column(cells) for cells in zip_longest(*table)]
    return [dict(zip(header, row, strict=True)) for row in zip(*columns, strict=True)]


def read_column(cells: Sequence[str]) -> Sequence[str | int]:
    """Whole numbers where every cell is one and would be written back the same, else the texts."""
    try:
        numbers = [int(cell) for cell in cells]
    except ValueError:
        return cells
    return numbers if [str(number) for number in numbers] == list(cells) else cells


def read_parquet(path: Path) -> Iterator[Row]:
    """Read by pyarrow, a batch at a time."""
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]
    except ImportError as error:
        raise PackageMissing("datasets", "train") from error
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(describe_reading(path, error)) from error


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes. Raises DataError."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {what}; give a {', '.join(SUFFIXES)} file")
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(describe_reading(path, error)) from error


def describe_reading(path: Path, error: Exception) -> str:
    """One line on a file that can't be read, with the way out."""
    if isinstance(error, PermissionError):
        return f"can't read {path}: permission denied; ask who owns it to let you"
    if isinstance(error, OSError) and error.strerror:
        return f"can't read {path}: {error.strerror.lower()}; check the disk, or give another file"
    if isinstance(error, UnicodeDecodeError):
        return f"can't read {path}: {error}; save it as UTF-8"
    kind = path.suffix.lower().removeprefix(".")
    return f"can't read {path}: {shorten(str(error))}; mend it, or write it anew as {kind}"


def show_progress(items: Iterable[Any], what: str) -> Iterable[Any]:
    """A bar on stderr for what takes more than a second, silent when that is no terminal."""
    bar: Iterable[Any] = tqdm(items, what, delay=1, leave=False, disable=None, file=sys.stderr)
    return bar


def shorten(text: str, limit: int = 80) -> str:
    """The beginning of a text, on one line and quoted."""
    line = " ".join(text.split())
    return repr(line if len(line) <= limit else line[: limit - 3] + "...")
