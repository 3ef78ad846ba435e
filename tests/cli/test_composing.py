"""`hub compose`, and what the other commands make of a composition."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hub
from tests.cli.conftest import Add, Run
from tests.cli.test_startup import CODE
from tests.tiny import build_tiny

Read = Callable[..., Any]
Fail = Callable[..., str]


@pytest.fixture
def parts(add: Add, registry: hub.Registry) -> None:
    """de@1, de@2 and fr@1, of which de@production is de@1."""
    for name in ("de", "de", "fr"):
        add(name)
    registry.alias("de@1", "production")


@pytest.fixture
def both(parts: None, run: Run) -> None:
    """both@1, of de@1 and fr@1."""
    run("compose 'batchsplit(de@production, fr)' --name both --task sentiment --note first")


def strip(text: str) -> str:
    return re.sub(r"\(.*", "", text).strip()


@pytest.mark.usefixtures("parts")
def test_compose_registers_a_version(run: Run, read: Read, registry: hub.Registry) -> None:
    line = "compose 'parallel(de@production, average(de, none; 0.7, 0.3))' --name both --note why"
    said = run(f"{line} --task qa").stdout
    pinned = "parallel(de@1, average(de@2, none; 0.7, 0.3))"
    base = registry.get("de").base.label
    assert said == f"both@1 is {pinned} (for {base})\n"
    version = registry.get("both")
    assert (version.task, version.note, version.parents) == ("qa", "why", ("de@1", "de@2"))
    document = read(f"{line} --task qa")
    assert document["reference"] == "both@1"
    assert document["digest"] == version.digest
    assert (document["method"], document["task"]) == ("parallel", "qa")
    assert (document["composition"], document["parents"]) == (pinned, ["de@1", "de@2"])


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stack(de@2, fr", "is no composition: at 15 there is the end, where ')' or ','"),
        ("stack(de@2 fr)", "is no composition: at 12 there is 'fr)'"),
        ("heap(de, fr)", "there is no heap; there are stack, parallel, batchsplit"),
        ("average(de, fr; 1)", "average has 2 parts and 1 weights"),
        ("stack(it)", "there is no adapter 'it'"),
        ("stack(de@7)", "'de' has no version 7; its versions are 1 to 2"),
        ("stack(de@staging)", "'de' has no alias 'staging'; its aliases are production (1)"),
        ("stack(./folder)", "`hub import ./folder --name NAME`"),
        ("stack(hf://org/de)", "`hub pull org/de`"),
        ("stack(none)", "stack(none) has no adapter in it"),
        ("de@2", "composes nothing; write an operator over references"),
        ("none", "composes nothing"),
        ("", "is no composition: at 1 there is the end"),
    ],
)
def test_what_composes_nothing_fails_in_one_line(
    text: str, said: str, fail: Fail, registry: hub.Registry
) -> None:
    line = fail(["compose", text, "--name", "both"])
    assert said in line
    assert len(registry.list()) == 3


@pytest.mark.usefixtures("parts")
def test_compose_with_a_bad_name_fails_in_one_line(fail: Fail) -> None:
    assert "'a b' is no adapter name" in fail(["compose", "stack(de)", "--name", "a b"])


@pytest.mark.usefixtures("both")
def test_a_composition_is_listed_and_logged(run: Run, read: Read) -> None:
    assert re.search(r"^both +1 +batchsplit +sentiment ", run("list").stdout, re.MULTILINE)
    assert re.search(r"^both@1 +batchsplit +sentiment ", run("list both").stdout, re.MULTILINE)
    rows = {row["name"]: row["kind"] for row in read("list")["adapters"]}
    assert rows == {"both": "composition", "de": "adapter", "fr": "adapter"}
    assert "added version 1 (batchsplit, " in run("log both").stdout
    run("alias both@1 staging")
    assert "aliases      staging" in run("show both@staging").stdout


@pytest.mark.usefixtures("both")
def test_show_has_the_composition_and_its_parts(
    run: Run, read: Read, registry: hub.Registry
) -> None:
    registry.record_metric("de@1", "accuracy", 0.5)
    run("compose 'parallel(both, de)' --name outer")
    shown = run("show both").stdout
    assert "composition  batchsplit(de@1, fr@1)\n" in shown
    digests = [registry.get(name).digest[:12] for name in ("de@1", "fr@1", "both@1")]
    table = shown.partition("PART")[2].splitlines()
    assert table[1].split() == ["de@1", "lora", "sentiment", "accuracy", "0.5", digests[0]]
    assert table[2].split() == ["fr@1", "lora", "sentiment", "-", digests[1]]
    outer = run("show outer").stdout
    assert re.search(rf"both@1 +batchsplit\(de@1, fr@1\) +sentiment +- +{digests[2]}", outer)
    document = read("show both")
    assert (document["kind"], document["parents"]) == ("composition", ["de@1", "fr@1"])
    assert document["config"] == {"composition": "batchsplit(de@1, fr@1)"}
    assert list(document["files"]) == ["composition.json"]


@pytest.mark.usefixtures("both")
def test_words_are_one_adapters(fail: Fail) -> None:
    line = fail("show both --base bert")
    assert line == (
        "both@1 is a composition, batchsplit(de@1, fr@1), and this takes one adapter; "
        "name a part of it"
    )


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize("line", ["show both", "show both --json", "verify both", "verify", "list"])
def test_reading_a_composition_imports_nothing_heavy(line: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, *line.split()], capture_output=True, text=True, check=True
    )
    *_, modules, _ = done.stderr.splitlines()
    assert "click" in modules.split()
    assert {"torch", "transformers", "lark", "safetensors"} & set(modules.split()) == set()


@pytest.mark.usefixtures("both")
def test_verify_finds_a_damaged_part(run: Run, registry: hub.Registry) -> None:
    assert run("verify both").stdout == "both is as it was stored\n"
    entry = registry.get("fr").files["adapter_model.safetensors"]
    path = registry.blobs.find_path(entry.sha256)
    path.chmod(0o644)
    path.write_bytes(b"nonsense")
    assert "fr@1" in run("verify both", 1).stdout
    assert "is damaged" in run("export both ./out", 1).stderr
    assert not Path("out").exists()


@pytest.mark.usefixtures("both")
def test_export_and_import_give_the_same_versions(
    run: Run, fail: Fail, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, registry: hub.Registry
) -> None:
    assert run("export both@1 ./out").stdout == "both@1 is in out\n"
    ours = {version.reference: version.digest for version in registry.list()}
    assert "is bound to the base of its parts" in fail("import out --name x --base bert")
    monkeypatch.setenv("HUB_HOME", str(tmp_path / "other"))
    said = run("import ./out --name both --part fr=french").stdout
    assert said.startswith("both@1 is out (batchsplit(de@1, french@1), for ")
    theirs = {version.reference: version.digest for version in hub.Registry().list()}
    assert theirs == {
        "both@1": ours["both@1"],
        "de@1": ours["de@1"],
        "french@1": ours["fr@1"],
    }
    assert hub.Registry().get("both").task == "sentiment"
    assert "no part 'it'" in fail("import ./out --name both --part it=x")


@pytest.mark.usefixtures("both", "online")
@pytest.mark.parametrize("remote", ["./shared", "org/both"])
def test_push_and_pull(
    run: Run,
    read: Read,
    fail: Fail,
    add: Add,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    remote: str,
) -> None:
    pushed = read(f"push both {remote}")
    assert pushed["changed"]
    assert run(f"push both@1 {remote}").stdout.startswith("both@1 was there already: ")
    assert remote.partition("/")[2] in run("show de@1").stdout.partition("published")[2]
    monkeypatch.setenv("HUB_HOME", str(tmp_path / "other"))
    pulled = read(f"pull {remote}")
    assert (pulled["reference"], pulled["method"]) == ("both@1", "batchsplit")
    said = run(f"pull {remote} --name other").stdout
    assert said.startswith(f"other@1 is {remote} (batchsplit(de@1, fr@1), for ")


@pytest.mark.usefixtures("both")
def test_a_part_whose_name_is_taken_says_the_way_out(
    run: Run, fail: Fail, add: Add, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run("push both ./shared")
    run("export de@2 ./mine")
    monkeypatch.setenv("HUB_HOME", str(tmp_path / "other"))
    run("import ./mine --name de")
    assert "--part de=NAME" in fail("pull ./shared")
    assert "--part de=german" in run("pull ./shared --part de=", 2).stderr
    assert "german@1" in run("pull ./shared --part de=german").stdout
    assert len(hub.Registry().list("de")) == 1


EVAL = "--base bert --template '{{ text }}|||{{ label }}' --data test.jsonl"


@pytest.mark.usefixtures("parts")
def test_eval_measures_a_composition_and_records_it(
    run: Run, read: Read, registry: hub.Registry
) -> None:
    for path in Path("test.jsonl"), Path("reviews.jsonl"):
        path.write_text(path.read_text().replace('"good"', '"1"').replace('"bad"', '"0"'))
    run("compose 'average(de, none; 0.7, 0.3)' --name softer")
    run("export softer ./out")
    said = read(f"eval softer@1 {EVAL}")
    assert (said["reference"], said["recorded"]) == ("softer@1", True)
    assert registry.get("softer").metrics == said["metrics"]
    assert registry.get("de").metrics == {}
    assert read(f"eval ./out {EVAL}")["metrics"] == said["metrics"]


@pytest.mark.usefixtures("both")
def test_eval_of_rows_of_their_own_says_to_measure_the_parts(fail: Fail, run: Run) -> None:
    line = fail(f"eval both {EVAL}")
    assert "which row has which; measure its parts one at a time" in line
    run("compose 'parallel(de, fr)' --name twice")
    assert "measure its parts one at a time" in fail(f"eval twice {EVAL}")


def test_a_fusion_alone_is_told_the_command(fail: Fail, registry: hub.Registry) -> None:
    model = build_tiny("llama")
    fuse = hub.Fuse.create(model, hub.Adapter.create("lora", model, r=1), size=2)
    assert isinstance(fuse.by, hub.Adapter)
    registry.add(fuse.by, name="fu")
    line = fail(f"eval fu {EVAL.replace('bert', 'llama')}")
    assert "hub compose 'fuse(a, b; fu@1)'" in line


@pytest.mark.usefixtures("parts")
def test_eval_takes_a_composition_as_it_is_written(
    run: Run, read: Read, fail: Fail, registry: hub.Registry
) -> None:
    said = read(["eval", "average(de@2, none; 0.7, 0.3)", *shlex.split(EVAL)])
    assert (said["reference"], said["recorded"]) == ("average(de@2, none; 0.7, 0.3)", False)
    run("compose 'average(de@2, none; 0.7, 0.3)' --name softer")
    assert read(f"eval softer {EVAL}")["metrics"] == said["metrics"]
    run("export de@2 ./out")
    folder = read(["eval", " average( ./out, none; 0.7, 0.3)", *shlex.split(EVAL)])
    assert folder["metrics"] == said["metrics"]
    assert "there is no adapter 'it'" in fail(["eval", "stack(it)", *shlex.split(EVAL)])
    assert "is no composition: at 9" in fail(["eval", "stack(de", *shlex.split(EVAL)])
    assert "'heap(de)' is not a reference" in fail(["eval", "heap(de)", *shlex.split(EVAL)])


@pytest.mark.usefixtures("both")
def test_eval_of_what_can_not_be_measured_fails_in_one_line(fail: Fail, run: Run, add: Add) -> None:
    assert "both@1 does not say its template; give it with --template" in fail(
        "eval both --base bert --data test.jsonl"
    )
    for name, template in (
        ("one", "{{ text }}|||{{ label }}"),
        ("two", "{{ text }}!|||{{ label }}"),
    ):
        add(name, lineage={"training": {"template": template}})
    run("compose 'average(one, two)' --name mean")
    run("compose 'average(one, fr)' --name mean")
    assert "the parts of mean@1 were trained with 2 templates" in fail(
        "eval mean@1 --base bert --data test.jsonl"
    )
    assert "--base" in fail("eval mean@2 --data test.jsonl")
