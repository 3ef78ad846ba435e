"""Plugins: found one by one, a broken one breaks nothing else."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from importlib.metadata import Distribution, EntryPoint, PathDistribution
from pathlib import Path

import pytest

import hub
from hub.discovery import Methods, installed_methods
from hub.errors import MethodError

GOOD = """
    import hub
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Config:
        size: int = 1

    class Scale(hub.Method[Config]):
        name = "{name}"
        paper = "none"
        config = Config

        def choose_sites(self, sites, config):
            return sites

        def build(self, site, config):
            raise NotImplementedError

    @hub.hookimpl
    def hub_method():
        return Scale()
"""


def install(folder: Path, distribution: str, name: str, source: str) -> EntryPoint:
    """A distribution on disk with one module and one entry point."""
    module = f"{distribution}_{name}"
    (folder / f"{module}.py").write_text(textwrap.dedent(source.replace("{name}", name)))
    info = folder / f"{distribution}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[hub]\n{name} = {module}\n")
    found: Distribution = PathDistribution(info)
    (entry,) = found.entry_points
    return entry


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_the_built_in_methods_are_found_by_entry_point() -> None:
    plugins = {plugin.name: plugin for plugin in installed_methods().plugins()}
    assert {"lora", "houlsby"} <= plugins.keys()
    assert plugins["lora"].distribution.startswith("pefthub")
    assert plugins["lora"].fault is None


def test_a_strangers_method_is_the_same_thing(site: Path) -> None:
    methods = Methods([install(site, "stranger", "scale", GOOD)])
    assert methods.get("scale").make_config(size=3).size == 3


def test_unknown_method_names_those_installed_and_a_close_one() -> None:
    with pytest.raises(MethodError, match=r"no method 'lorra'; installed: .*did you mean 'lora'"):
        hub.Adapter.create("lorra", None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("import nothing_of_that_name", "can't be imported: ModuleNotFoundError"),
        ("raise SystemExit(3)", "can't be imported: SystemExit"),
        ("def broken(:", "can't be imported: SyntaxError"),
        ("x = 1", "implements no hub_method"),
        (
            GOOD + "\n    @hub.hookimpl\n    def hub_trian(adapter):\n        pass\n",
            "hub_trian",
        ),
        (
            GOOD + "\n    @hub.hookimpl\n    def hub_train(adaptor):\n        pass\n",
            "adaptor",
        ),
        (GOOD.replace('"{name}"', '"other"'), "entry point is named 'bad' but its method 'other'"),
        ("hub_interface = 7", "written for hook interface 7, this pefthub has 1"),
        (
            "import hub\n    @hub.hookimpl\n    def hub_method():\n        return 3",
            "hub_method returned int, not a hub.Method",
        ),
        (
            "import hub\n    @hub.hookimpl\n    def hub_method():\n        return 1 / 0",
            "hub_method failed: ZeroDivisionError",
        ),
    ],
)
def test_broken_plugin_says_why_and_breaks_nothing_else(site: Path, source: str, text: str) -> None:
    source = source if source.startswith("\n") else f"\n    {source}"
    bad = install(site, f"broken{abs(hash(source))}", "bad", source)
    good = install(site, f"fine{abs(hash(source))}", "good", GOOD)
    methods = Methods([bad, good])
    for _ in range(2):
        with pytest.raises(MethodError, match=text) as caught:
            methods.get("bad")
        assert "plugin 'bad' of broken" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert methods.get("good").name == "good"
    faults = {plugin.name: plugin.fault for plugin in methods.plugins()}
    assert faults["good"] is None
    assert faults["bad"] is not None


def test_two_with_one_name_are_an_error_that_names_both(site: Path) -> None:
    entries = [install(site, name, "scale", GOOD) for name in ("first", "second")]
    entries.append(install(site, "third", "good", GOOD))
    methods = Methods(entries)
    with pytest.raises(MethodError, match=r"claimed by first 1\.0 and second 1\.0; uninstall"):
        methods.get("scale")
    assert methods.get("good").name == "good"
    assert sum(plugin.name == "scale" for plugin in methods.plugins()) == 2


def test_a_method_is_imported_when_asked_for_and_not_before(site: Path) -> None:
    entry = install(site, "lazy", "idle", "raise RuntimeError('imported')")
    methods = Methods([entry, install(site, "used", "good", GOOD)])
    methods.get("good")
    assert "lazy_idle" not in sys.modules


def test_a_hook_is_asked_of_the_owner_alone(site: Path) -> None:
    hook = "@hub.hookimpl\n    def hub_load(config, tensors):\n        return {'taken': 1}, {}"
    taking = f"{GOOD}\n    {hook}\n"
    methods = Methods(
        [install(site, "greedy", "greedy", taking), install(site, "modest", "modest", GOOD)]
    )
    assert methods.get("greedy") and methods.get("modest")
    assert methods.call("hub_load", "modest", config={}, tensors={}) is None
    assert methods.call("hub_load", "greedy", config={}, tensors={}) == ({"taken": 1}, {})


def test_importing_hub_imports_no_torch() -> None:
    code = "import sys, hub, hub.discovery; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
