"""A dataset is read as it is, or refused with a line that says where it is wrong."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.errors import DataError, PackageMissing
from hub.training.data import Template, describe_reading, read_examples
from tests.training.tasks import TEMPLATE

ROWS = [{"x": "2020-01-01", "y": "NA"}, {"x": "007", "y": "1"}, {"x": 'a "b", ||| c', "y": "ü\nv"}]
EXPECTED = [("2020-01-01", "NA"), ("007", "1"), ('a "b", ||| c', "ü\nv")]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    elif path.suffix == ".csv":
        datasets.Dataset.from_list(rows).to_csv(path)
    else:
        datasets.Dataset.from_list(rows).to_parquet(path)
    return path


def read_pairs(dataset: Any, template: str = TEMPLATE) -> list[tuple[str, str]]:
    return [(e.prompt, e.completion) for e in read_examples(dataset, template).items]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_file_gives_exactly_its_texts(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", ROWS)
    assert read_pairs(path) == EXPECTED
    assert read_pairs(str(path)) == EXPECTED


def test_dataset_and_sequence_give_exactly_their_texts() -> None:
    assert read_pairs(datasets.Dataset.from_list(ROWS)) == EXPECTED
    assert read_pairs(ROWS) == EXPECTED


def test_tensors_of_a_dataset_are_filled_in_as_numbers() -> None:
    dataset = datasets.Dataset.from_list([{"x": 3, "y": 1.5}]).with_format("torch")
    assert read_pairs(dataset) == [("3", "1.5")]


def test_csv_columns_of_whole_numbers_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("x,y,z\n7,1,1.0\n-2,0,2\n")
    template = "{{ x + 1 }}|||{{ 'yes' if y == 1 else 'no' }} {{ z }}"
    assert read_pairs(path, template) == [("8", "yes 1.0"), ("-1", "no 2")]


def test_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", [{"x": "old", "y": "1"}])
    before = read_examples(path, TEMPLATE)
    times = path.stat()
    write(path, [{"x": "new", "y": "1"}])
    os.utime(path, (times.st_atime, times.st_mtime))
    after = read_examples(path, TEMPLATE)
    assert [e.prompt for e in after.items] == ["new"]
    assert after.digest != before.digest


def test_source_names_the_file_and_its_sha256(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    source = read_examples(path, TEMPLATE).source
    assert source == {"file": "rows.jsonl", "sha256": sha256, "rows": 3}


def test_same_examples_have_the_same_digest_whatever_they_came_from(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", ROWS)
    digest = read_examples(path, TEMPLATE).digest
    assert read_examples(ROWS, TEMPLATE).digest == digest
    assert read_examples(ROWS[::-1], TEMPLATE).digest != digest


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"x": 1, "y": 2}\n{"x": 1,\n', "a.jsonl, line 2 is not JSON"),
        ("a.jsonl", '{"x": 1, "y": 2}\n\n[1]\n', "a.jsonl, line 3 is a JSON list"),
        ("a.jsonl", "", "a.jsonl has no rows"),
        ("a.csv", "x,y\n", "a.csv has no rows"),
        ("a.csv", "", "a.csv has no rows"),
        ("a.csv", "x,y\n1,2\n1,2,3\n", "a.csv, line 3 has 3 cells, the header has 2"),
        ("a.csv", "x,y,x\n1,2,3\n", "has the column 'x' twice"),
        ("a.csv", 'x,y\n1,"2\n', "can't read .*a.csv"),
        ("a.parquet", "PAR1 no", "can't read .*a.parquet"),
        ("a.json", "[]", "a.json ends in '.json'; it can be .jsonl, .csv, .parquet"),
        ("a", "", "ends in ''"),
    ],
)
def test_faulty_file_is_refused_in_one_line(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_examples(tmp_path / name, TEMPLATE)
    assert "\n" not in str(caught.value)


def test_file_of_other_bytes_than_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"x": "\xff"}\n')
    with pytest.raises(DataError, match=r"can't read .*utf-8"):
        read_examples(tmp_path / "a.jsonl", TEMPLATE)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.jsonl does not exist"):
        read_examples(tmp_path / "no.jsonl", TEMPLATE)
    with pytest.raises(DataError, match="is a folder"):
        read_examples(tmp_path, TEMPLATE)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)), "the splits train; give"),
        (iter(ROWS), "a list_iterator is no dataset"),
        (["a", "b"], "row 1 is a str"),
        ([], "the dataset has no rows"),
        (3, "a int is no dataset"),
    ],
)
def test_what_is_no_dataset_is_refused(dataset: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_examples(dataset, TEMPLATE)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ x }} {{ y }}", "has 0 times"),
        ("{{ x }}|||{{ y }}|||", "has 2 times"),
        ("{{ x |||{{ y }}", "can't be read"),
        ("{{ x }}|||{{ label }}", "row 1: 'label' is undefined; .* columns x, y"),
        ("{{ x.__class__.__mro__ }}|||{{ y }}", "row 1: .*unsafe"),
        ("{{ x + 1 }}|||{{ y }}", "row 1: the template can't be filled in"),
        ("{{ x }}|||  ", "row 1: the completion is empty"),
    ],
)
def test_template_that_does_not_fit_is_refused(template: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_examples(ROWS, template)
    assert "\n" not in str(caught.value)


def test_null_is_refused_with_its_row(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"x": "a", "y": "b"}, {"x": None, "y": "c"}])
    with pytest.raises(DataError, match=r"row 2: .* null"):
        read_examples(path, TEMPLATE)
    assert read_pairs(path, "{{ x or 'none' }}|||{{ y }}") == [("a", "b"), ("none", "c")]


@settings(deadline=None)
@given(prompt=st.text(), completion=st.text().filter(str.strip))
def test_template_puts_any_text_in_as_it_is(prompt: str, completion: str) -> None:
    example = Template(TEMPLATE).render({"x": prompt, "y": completion}, 1)
    assert (example.prompt, example.completion) == (prompt, completion)


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "rows.parquet", ROWS)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(PackageMissing, match=r"pip install 'pefthub\[train\]'"):
        read_examples(path, TEMPLATE)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(13, "Permission denied"), "permission denied; ask who owns it"),
        (OSError(5, "Input/output error"), "input/output error; check the disk, or give another"),
        (ValueError("odd"), "'odd'; mend it, or write it anew as csv"),
    ],
)
def test_file_that_can_not_be_read_has_a_way_out(error: Exception, expected: str) -> None:
    assert f"can't read a.csv: {expected}" in describe_reading(Path("a.csv"), error)
