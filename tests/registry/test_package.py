from __future__ import annotations

import ast
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import hub_registry
from hub_registry import HubError, Registry, Version, errors

HEAVY = ("torch", "transformers", "huggingface_hub", "numpy", "alembic", "sqlalchemy.orm")


def test_the_public_names_are_sorted_and_there() -> None:
    assert hub_registry.__all__ == sorted(hub_registry.__all__)
    for name in hub_registry.__all__:
        assert getattr(hub_registry, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'registri'"):
        _ = hub_registry.registri


def test_every_error_is_in_one_tree_and_public() -> None:
    classes = [item for _, item in inspect.getmembers(errors, inspect.isclass)]
    assert len(classes) > 5
    for item in classes:
        assert issubclass(item, HubError)
        assert item.__name__ in hub_registry.__all__
        assert item.__name__ in str(errors.__doc__)


def test_every_public_method_says_what_it_does() -> None:
    for name, method in inspect.getmembers(Registry, inspect.isfunction):
        assert name.startswith("_") or method.__doc__, name


def test_the_package_is_typed_and_ships_its_migrations() -> None:
    folder = Path(str(hub_registry.__file__)).parent
    assert (folder / "py.typed").is_file()
    assert (folder / "migrations" / "env.py").is_file()
    assert list((folder / "migrations" / "versions").glob("*.py"))


@pytest.mark.parametrize("filled", [True, False])
def test_a_listing_imports_nothing_heavy(
    filled: bool,
    registry: Registry,
    add: Callable[..., Version],
    run_python: Callable[..., str],
) -> None:
    if filled:
        add()
    script = """if True:
        import json, sys
        import hub_registry
        light = "sqlalchemy" not in sys.modules
        rows = hub_registry.Registry(sys.argv[1]).adapters()
        print(json.dumps([light, len(rows), sorted(sys.modules)]))
    """
    light, count, modules = json.loads(run_python(script, registry.home))
    assert light
    assert count == filled
    assert [name for name in HEAVY if name in modules] == []


def test_the_registry_stands_alone() -> None:
    folder = Path(str(hub_registry.__file__)).parent
    allowed = {"hub_registry", "sqlalchemy", "alembic"} | sys.stdlib_module_names
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0
                names = [str(node.module)]
            for name in names:
                assert name.split(".")[0] in allowed, (path, name)
