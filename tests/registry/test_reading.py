from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import event

from hub_registry import BaseIdentity, Registry, UnknownReference, Version

Add = Callable[..., Version]


@pytest.fixture
def versions(registry: Registry, add: Add) -> list[Version]:
    for name, content, task in (
        ("sst2", b"1", "sentiment"),
        ("sst2", b"2", "sentiment"),
        ("de", b"3", "translation"),
        ("sst2", b"4", None),
    ):
        add(name=name, content=content, task=task)
    registry.alias("sst2@2", "production")
    return registry.list()


def test_versions_are_listed_by_name_and_the_newest_first(
    registry: Registry, versions: list[Version]
) -> None:
    assert [v.reference for v in versions] == ["de@1", "sst2@3", "sst2@2", "sst2@1"]
    assert [v.reference for v in registry.list("sst2")] == ["sst2@3", "sst2@2", "sst2@1"]
    assert [v.reference for v in registry.list(task="sentiment")] == ["sst2@2", "sst2@1"]
    assert [v.reference for v in registry.list("de", "translation")] == ["de@1"]
    assert registry.list("nobody") == registry.list(task="nothing") == []


@pytest.mark.parametrize(
    ("reference", "number"),
    [("sst2", 3), ("sst2@latest", 3), ("sst2@1", 1), ("sst2@production", 2)],
)
def test_a_reference_finds_its_version(
    registry: Registry, versions: list[Version], reference: str, number: int
) -> None:
    version = registry.get(reference)
    assert (version.adapter, version.number) == ("sst2", number)
    assert version.aliases == (("production",) if number == 2 else ())
    assert version in versions


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("sst3", "there is no adapter 'sst3' in .*; close names are sst2"),
        ("zzz", "there is no adapter 'zzz' in .*; it has de, sst2"),
        ("sst2@4", "'sst2' has no version 4; its versions are 1 to 3"),
        ("sst2@0", "'sst2' has no version 0; its versions are 1 to 3"),
        ("sst2@99999999999999999999", "'sst2' has no version 9+; its versions are 1 to 3"),
        ("de@2", "'de' has no version 2; its only version is 1"),
        ("sst2@staging", r"'sst2' has no alias 'staging'; its aliases are production \(2\)"),
        ("de@staging", "'de' has no alias 'staging'; its versions are 1 to 1"),
    ],
)
def test_an_unknown_reference_says_what_there_is(
    registry: Registry, versions: list[Version], reference: str, message: str
) -> None:
    with pytest.raises(UnknownReference, match=f"^{message}$"):
        registry.get(reference)


def test_an_unknown_reference_in_an_empty_registry_says_so(registry: Registry) -> None:
    with pytest.raises(UnknownReference, match="is empty"):
        registry.get("sst2")


def test_adapters_show_their_latest_version(registry: Registry, versions: list[Version]) -> None:
    de, sst2 = registry.adapters()
    assert (de.name, de.latest, de.task, de.aliases) == ("de", 1, "translation", {})
    assert (sst2.name, sst2.latest, sst2.task, sst2.method) == ("sst2", 3, None, "lora")
    assert sst2.aliases == {"production": 2}
    assert sst2.base == "org/base@aaaaaaa"
    assert sst2.created == registry.get("sst2@3").created


def test_a_listing_takes_the_same_statements_however_long(registry: Registry, add: Add) -> None:
    def count() -> int:
        statements = []
        engine = registry.database._engine
        listen = (engine, "before_cursor_execute", lambda *_: statements.append(1))
        event.listen(*listen)
        registry.adapters()
        registry.list()
        event.remove(*listen)
        return len(statements)

    add(content=b"0")
    few = count()
    for i in range(1, 6):
        add(content=bytes([i]), name=f"name{i % 2}")
    assert count() == few


def test_a_base_that_many_versions_share_is_one(
    registry: Registry, versions: list[Version], base: BaseIdentity
) -> None:
    assert {id(version.base) for version in versions} == {id(versions[0].base)}
    assert versions[0].base == base


def test_a_file_that_is_not_there_is_named_with_those_that_are(
    registry: Registry, versions: list[Version]
) -> None:
    with pytest.raises(UnknownReference, match=r"sst2@3 has no file 'x'; it has adapter_config"):
        registry.read("sst2", "x")


def test_where_a_registry_is_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HUB_REGISTRY", raising=False)
    monkeypatch.setenv("HUB_HOME", str(tmp_path / "home"))
    assert Registry().home == tmp_path / "home"
    assert Registry().database.path == tmp_path / "home" / "registry.db"
    monkeypatch.setenv("HUB_REGISTRY", f"sqlite:///{tmp_path}/other.db")
    assert Registry().database.path == tmp_path / "other.db"
    assert Registry(tmp_path / "third").home == tmp_path / "third"
    monkeypatch.delenv("HUB_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Registry().home == tmp_path / ".cache" / "pefthub"


def test_a_registry_that_is_not_there_is_named_by_its_place(tmp_path: Path) -> None:
    with pytest.raises(UnknownReference, match=re.escape(str(tmp_path / "none"))):
        Registry(tmp_path / "none").get("sst2")


def test_versions_are_collected_with_all_that_they_are_composed_of(
    registry: Registry, add: Add
) -> None:
    def compose(name: str, *parents: str) -> None:
        files = {"composition.json": f"{name} {parents}".encode()}
        add(name=name, files=files, kind="composition", parents=parents)

    for name, content in (("sst2", b"1"), ("de", b"2"), ("fr", b"3"), ("it", b"4")):
        add(name=name, content=content)
    add(name="de", content=b"5", parents=["it@1"])  # trained further: that is no part of it
    compose("inner", "fr", "de@2")
    compose("outer", "de@2", "inner", "sst2")
    compose("other", "it")

    def collect(*references: str) -> list[str]:
        return [version.reference for version in registry.collect(references)]

    assert collect("outer") == ["sst2@1", "fr@1", "de@2", "inner@1", "outer@1"]
    assert collect("de") == ["de@2"]
    assert collect("other", "inner", "it", "it@1") == ["fr@1", "it@1", "de@2", "inner@1", "other@1"]
    assert registry.collect([registry.get("it")]) == [registry.get("it")]
    assert collect() == []
    assert [v.reference for v in registry.list(kind="composition")] == [
        *("inner@1", "other@1", "outer@1")
    ]
    assert len(registry.list(kind="adapter")) == 5
    with pytest.raises(UnknownReference, match="'nobody'"):
        collect("outer", "nobody")


def test_more_versions_are_collected_than_one_query_takes(
    registry: Registry, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub_registry.reading._BATCH", 2)
    versions = [add(content=bytes([number])) for number in range(5)]
    assert registry.collect(versions) == versions
