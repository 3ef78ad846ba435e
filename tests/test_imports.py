"""Imports run one way, plugins -> hub -> hub_registry, and starting up is cheap."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import hub

ROOT = Path(__file__).parents[1]
HUB = sorted((ROOT / "hub").rglob("*.py"))
REGISTRY = sorted((ROOT / "registry" / "hub_registry").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").glob("hub_*"))
HEAVY = {
    "accelerate",
    "alembic",
    "datasets",
    "huggingface_hub",
    "numpy",
    "peft",
    "safetensors",
    "torch",
    "transformers",
}


def name_file(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def find_imports(tree: ast.AST) -> Iterator[str]:
    """The absolute dotted name of everything imported, at any depth of the code.

    `from a import b` gives "a.b". A relative import stays inside its package and gives nothing.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and is_import_call(node.func):
            yield from (
                argument.value
                for argument in node.args[:1]
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            )


def find_texts(tree: ast.AST) -> list[str]:
    """Every string in the code; a docstring may give an example, so it is left out."""
    lone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in lone
    ]


def is_import_call(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in {"import_module", "__import__"}


def read_files(plugin: Path) -> list[str]:
    """The text of a plugin's one file, or of each in its package."""
    files = sorted(plugin.rglob("*.py")) if plugin.is_dir() else [plugin]
    return [file.read_text() for file in files]


def read_imports(path: Path) -> set[str]:
    return {name for text in read_files(path) for name in find_imports(ast.parse(text))}


def read_packages(path: Path) -> set[str]:
    """The top-level packages that a file imports, without the standard library's."""
    packages = {name.partition(".")[0] for name in read_imports(path)}
    return packages - sys.stdlib_module_names


def normalize_name(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


@pytest.mark.parametrize("path", REGISTRY, ids=name_file)
def test_registry_imports_only_itself_and_the_database(path: Path) -> None:
    assert read_packages(path) <= {"hub_registry", "sqlalchemy", "alembic"}


@pytest.mark.parametrize("path", HUB, ids=name_file)
def test_hub_knows_no_plugin(path: Path) -> None:
    names = "|".join(plugin.stem for plugin in PLUGINS)
    tree = ast.parse(path.read_text())
    texts = [text for text in find_texts(tree) if re.search(rf"\b(?:{names})\b", text)]
    assert texts == []
    assert read_packages(path).isdisjoint(plugin.stem for plugin in PLUGINS)


def test_imported_packages_are_declared_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wishes = [*project["dependencies"], *extras["train"], *extras["serve"], *extras["quantized"]]
    declared = {normalize_name(re.split(r"[<>=~!\[; ]", wish)[0]) for wish in wishes}
    imported = set().union(*map(read_packages, [*HUB, *REGISTRY, *PLUGINS]))
    imported -= {"hub", "hub_registry", *(plugin.stem for plugin in PLUGINS)}
    owners = packages_distributions()
    missing = {
        package
        for package in imported
        if declared.isdisjoint(map(normalize_name, owners.get(package, ())))
    }
    assert missing == set()


@pytest.mark.parametrize("path", PLUGINS, ids=name_file)
def test_plugin_imports_only_hub_and_torch(path: Path) -> None:
    assert read_packages(path) - {path.stem} <= {"hub", "torch"}


@pytest.mark.parametrize("path", PLUGINS, ids=name_file)
def test_plugin_uses_only_public_names(path: Path) -> None:
    used = {
        node.attr
        for text in read_files(path)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "hub"
    }
    used |= {name.removeprefix("hub.") for name in read_imports(path) if name.startswith("hub.")}
    assert used, "a plugin that uses nothing of hub is no plugin"
    assert used - set(hub.__all__) == set()


def test_public_names_are_sorted_and_few_and_there() -> None:
    names = list(hub.__all__)
    assert names == sorted(names)
    assert len(names) <= 32
    assert [name for name in names if not hasattr(hub, name)] == []


@pytest.mark.parametrize("package", ["hub", "hub_registry", "hub.cli"])
def test_import_loads_nothing_heavy(package: str) -> None:
    code = f"import {package}, sys; print(*sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert package.partition(".")[0] in loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import torch.nn as nn", {"torch.nn"}),
        ("def f():\n    from hub.files import read_adapter", {"hub.files.read_adapter"}),
        ("from . import errors", set()),
        ("import importlib\nimportlib.import_module('numpy')", {"importlib", "numpy"}),
    ],
)
def test_find_imports_sees_every_form(code: str, expected: set[str]) -> None:
    assert set(find_imports(ast.parse(code))) == expected
