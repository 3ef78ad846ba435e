"""`hub combine`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

import hub
from tests.cli.conftest import Add, Run
from tests.tiny import build_tiny

Read = Callable[..., Any]
Fail = Callable[..., str]


def test_the_result_is_a_version_with_its_parts_as_parents(
    run: Run, read: Read, add: Add, registry: hub.Registry
) -> None:
    add("a"), add("b"), add("a")
    registry.alias("a@1", "production")
    line = "combine a@production b a --how svd --weights 1,0.25,0.5 --svd-rank 3 --name both"
    result = run(f"{line} --note why")
    assert result.stdout.startswith("a@1, b@1, a@2 combined is both@1 (lora, for bert")
    document = read("show both")
    assert (document["parents"], document["note"]) == (["a@1", "b@1", "a@2"], "why")
    assert document["task"] == "sentiment"
    assert document["lineage"]["combination"] == {
        "parts": ["a@1", "b@1", "a@2"],
        "how": "svd",
        "weights": [1.0, 0.25, 0.5],
        "svd_rank": 3,
    }
    expected = hub.combine(["a@1", "b@1", "a@2"], how="svd", weights=[1.0, 0.25, 0.5], svd_rank=3)
    found = hub.load("both@1")
    assert isinstance(found, hub.Adapter)
    for name, tensor in expected.tensors.items():
        assert torch.equal(found.tensors[name], tensor)


def test_show_says_how_it_was_made(run: Run, read: Read, add: Add) -> None:
    for _ in range(4):
        add("a")
    options = "--how dare_ties --density 0.5 --seed 3 --weights 1,0.25,1,2"
    run(f"combine a@1 a@2 a@3 a@4 {options} --name both")
    said = run("show both").stdout.partition("\ncombination\n")[2].partition("\n\n")[0]
    assert [line.split(maxsplit=1) for line in said.splitlines()] == [
        ["parts", "a@1, a@2, a@3, a@4"],
        ["how", "dare_ties"],
        ["weights", "1, 0.25, 1, 2"],
        ["density", "0.5"],
        ["majority_sign_method", "total"],
        ["seed", "3"],
    ]
    assert read("show both")["lineage"]["combination"]["weights"] == [1, 0.25, 1, 2]
    assert "combination" not in run("show a").stdout


def test_what_leads_a_fuse_is_not_combined(fail: Fail, registry: hub.Registry) -> None:
    model = build_tiny("llama")
    fuse = hub.Fuse.create(model, hub.Adapter.create("lora", model, r=1), size=2)
    assert isinstance(fuse.by, hub.Adapter)
    registry.add(fuse.by, name="fu")
    for how in ("linear", "svd"):
        line = fail(f"combine fu fu --how {how} --name both")
        assert "belongs to the parts that it was made for" in line
        assert "hub train --method fusion --within 'fuse(a, b; new)'" in line
        assert "tack(" not in line


def test_other_methods_are_to_be_attached_together(
    fail: Fail, add: Add, registry: hub.Registry
) -> None:
    add("a")
    registry.add(
        hub.Adapter.create("houlsby", build_tiny("bert", "classification"), head=False), name="b"
    )
    assert "hub compose 'stack(a, b)'" in fail("combine a b --how linear --name both")


def test_json_says_what_became_of_it(
    read: Read, add: Add, registry: hub.Registry, workplace: Path
) -> None:
    add("a"), add("b")
    document = read("combine a b --how linear --name both --task other --to ./out")
    assert document.keys() == {
        *("reference", "digest", "method", "task", "base", "parents", "folder")
    }
    version = registry.get("both")
    assert (document["reference"], document["digest"]) == ("both@1", version.digest)
    assert (document["task"], document["parents"]) == ("other", ["a@1", "b@1"])
    assert document["folder"] == "out"
    PeftModel.from_pretrained(build_tiny("bert", "classification"), "out")


def test_a_folder_alone_registers_nothing(
    run: Run, read: Read, add: Add, registry: hub.Registry
) -> None:
    add("a")
    run("export a theirs")
    result = run("combine ./theirs a@1 --how ties --density 0.5 --to out")
    assert "combined is in out (lora, for bert" in result.stdout
    assert [row.name for row in registry.adapters()] == ["a"]
    manifest = json.loads(Path("out/hub.json").read_text())
    assert (manifest["version"], manifest["lineage"]["combination"]["how"]) == (None, "ties")
    document = read("combine ./theirs a --how linear --weights 1,2 --to more")
    assert (document["reference"], document["parents"]) == (None, [])
    assert document["base"]["label"].startswith("bert")


def test_a_folder_is_no_parent(run: Run, add: Add, registry: hub.Registry) -> None:
    add("a")
    run("export a theirs")
    run("combine ./theirs a --how linear --name both")
    assert registry.get("both").parents == ("a@1",)


def test_one_part_twice_is_one_parent(run: Run, add: Add, registry: hub.Registry) -> None:
    add("a")
    run("combine a a@1 --how cat --name twice")
    assert registry.get("twice").parents == ("a@1",)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("combine a none --how linear --name x", "none"),
        ("combine a b --how mean --name x", "how is 'mean'; choose from linear, ties"),
        ("combine a b --how linear --weights -1,2 --name x", "weights of -1 and 2 have no mean"),
        ("combine a c --how linear --name x", "is another base"),
        ("combine a ./nothing --how linear --name x", "nothing does not exist"),
        ("combine a b --how linear --to full", "it is not empty; give another folder"),
        ("combine a b --how linear --to full/file", "it is a file; give another folder"),
        ("combine a b --how linear --name 'a b'", "'a b' is no "),
    ],
)
def test_it_fails_in_one_line(
    line: str, expected: str, fail: Fail, add: Add, registry: hub.Registry
) -> None:
    add("a"), add("b")
    other = hub.Adapter.create("lora", build_tiny("bert", "classification", seed=3), r=2)
    add("c", base=other.base)
    Path("full").mkdir()
    Path("full/file").touch()
    assert expected in fail(line)
    assert [row.name for row in registry.adapters()] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("combine a b --how linear", "give --name to register the result, --to to save it, or"),
        ("combine a b --how linear --to x --note y", "a note is kept with a version"),
        ("combine a b --how linear --weights 1,x --name y", "'1,x' is no list of numbers"),
        ("combine --how linear --name y", "Missing argument 'REFERENCE...'"),
    ],
)
def test_wrong_usage_exits_2(line: str, expected: str, run: Run, add: Add) -> None:
    assert expected in run(line, 2).stderr
