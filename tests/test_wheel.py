"""What a user installs: the built wheel, file by file."""

import subprocess
import sys
import zipfile
from configparser import ConfigParser
from email import message_from_string
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
METHODS = sorted((ROOT / "plugins").glob("hub_*"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of a freshly built wheel and their text."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def read_meta(wheel: dict[str, str], file: str) -> str:
    (name,) = (name for name in wheel if name.endswith(f".dist-info/{file}"))
    return wheel[name]


def list_package(folder: Path) -> set[str]:
    """The files of the package at `folder`, as the wheel should name them."""
    return {
        path.relative_to(folder.parent).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel_holds_the_packages_and_nothing_else(wheel: dict[str, str]) -> None:
    expected = list_package(ROOT / "hub") | list_package(ROOT / "registry" / "hub_registry")
    for path in METHODS:
        expected |= list_package(path) if path.is_dir() else {path.name}
    held = {name for name in wheel if ".dist-info" not in PurePosixPath(name).parts[0]}
    assert held == expected


@pytest.mark.parametrize(
    "name", ["hub/py.typed", "hub_registry/py.typed", "hub_lora/__init__.py", "hub_houlsby.py"]
)
def test_wheel_holds_what_an_install_needs(wheel: dict[str, str], name: str) -> None:
    assert name in wheel


def test_wheel_holds_the_registry_migrations(wheel: dict[str, str]) -> None:
    names = [name for name in wheel if name.startswith("hub_registry/migrations/")]
    assert "hub_registry/migrations/env.py" in names
    assert any(PurePosixPath(name).parent.name == "versions" for name in names)


def test_wheel_offers_both_commands_and_every_method(wheel: dict[str, str]) -> None:
    entries = ConfigParser()
    entries.read_string(read_meta(wheel, "entry_points.txt"))
    assert dict(entries["console_scripts"]) == {"hub": "hub.cli:main", "pefthub": "hub.cli:main"}
    assert dict(entries["hub"]) == {path.stem.removeprefix("hub_"): path.stem for path in METHODS}


def test_wheel_says_its_name_licence_and_python(wheel: dict[str, str]) -> None:
    metadata = message_from_string(read_meta(wheel, "METADATA"))
    assert metadata["Name"] == "pefthub"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert read_meta(wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_text()
