"""The starting files of a method's plugin, as `hub methods new NAME` writes them."""

from __future__ import annotations

import keyword
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from hub.discovery import GROUP
from hub.errors import FileError, MethodError

RESERVED = frozenset({"new"})  # what `hub methods` takes for a word of its own


def write_scaffold(name: str, where: Path) -> tuple[Path, tuple[str, ...]]:
    """Write a plugin for a method of this name into a new folder in `where`; the folder and its
    files.

    Raises MethodError on a name that can't be a method's or is taken, FileError where the folder
    is there already or can't be written.
    """
    check_name(name)
    folder = where / f"hub-{name.replace('_', '-')}"
    words = {"NAME": name, "DIST": folder.name, "CLASS": name.title().replace("_", "")}
    files = {}
    for path, template in FILES.items():
        for word, value in words.items():
            path, template = path.replace(word, value), template.replace(word, value)
        files[path] = template
    try:
        folder.mkdir()
        for path, text in files.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(text)
    except FileExistsError as error:
        raise FileError(
            f"{folder} is there already; choose another name, or move that away"
        ) from error
    except OSError as error:
        raise FileError(
            f"can't write {folder}: {(error.strerror or str(error)).lower()}; go to a folder that "
            "can be written"
        ) from error
    return folder, tuple(files)


def check_name(name: str) -> None:
    """Raise MethodError on a name that can't be a method's, or is one's already."""
    if keyword.iskeyword(name):
        raise MethodError(
            f"{name!r} can't be a method's name, since it is a word of Python; choose another name"
        )
    if not (name.isascii() and name.isidentifier() and name == name.lower()):
        raise MethodError(
            f"{name!r} can't be a method's name; take lower-case letters, digits and underscores, "
            "a letter first"
        )
    if name in RESERVED:
        raise MethodError(f"{name!r} is a word of `hub methods` itself; choose another name")
    if any(entry.name == name for entry in entry_points(group=GROUP)):
        raise MethodError(f"{name!r} is an installed method; choose another name")
    if find_spec(f"hub_{name}") is not None:
        raise MethodError(f"a module hub_{name} is installed already; choose another name")


PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "DIST"
version = "0.1.0"
description = "NAME, a method for pefthub"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["pefthub"]

[project.optional-dependencies]
test = ["pytest"]

[project.entry-points.hub]
NAME = "hub_NAME"

[tool.hatch.build.targets.wheel]
packages = ["hub_NAME.py"]
"""

MODULE = '''\
"""CLASS: a learned scale for what a projection gives.

    h = (1 + s) * W x,    s: (out_features,)

Put here the paper, its equation, and what differs from it. s starts at zero, so a new
adapter changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import hub
import torch
from torch import nn


@dataclass(frozen=True)
class Config:
    """What an adapter is made of.

    targets: where it acts: attention, feedforward, all, a pattern, or names of modules.
    """

    targets: str | tuple[str, ...] = "attention"


class Layer(nn.Module):
    """Every tensor that it needs is a parameter; a buffer, where it does not learn."""

    def __init__(self, site: hub.Site) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(site.out_features))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x: (..., in_features) went in, y: (..., out_features) came out."""
        return y + self.scale.to(y.dtype) * y


class CLASS(hub.Method[Config]):
    """The method as the hub knows it."""

    name = "NAME"
    paper = "authors, year, title, link"
    config = Config

    def choose_sites(
        self, sites: Sequence[hub.Site], config: Config
    ) -> Sequence[hub.Site]:
        """Where it acts. Raise hub.ConfigError, with the reason, where it can't."""
        return hub.choose_targets("NAME", sites, config.targets)

    def build(self, site: hub.Site, config: Config) -> nn.Module:
        """A new module for one site."""
        return Layer(site)

    def weight_delta(self, module: nn.Module, weight: torch.Tensor) -> torch.Tensor:
        """For merging; leave it out where the effect is no change of weights."""
        assert isinstance(module, Layer)
        return module.scale[:, None] * weight

    def bias_delta(self, module: nn.Module, bias: torch.Tensor) -> torch.Tensor:
        """The same for a bias."""
        assert isinstance(module, Layer)
        return module.scale * bias


@hub.hookimpl
def hub_method() -> hub.Method[Config]:
    """What the entry point in pyproject.toml leads to."""
    return CLASS()
'''

TEST = '''\
"""NAME keeps every promise of a method."""

from hub.testing import MethodContract


class TestCLASS(MethodContract):
    """See hub.testing.MethodContract for what else can be said here."""

    method = "NAME"
    merges = True
'''

README = """\
# DIST

NAME, a method for pefthub.

    pip install -e ".[test]"
    hub methods NAME
    pytest

`hub_NAME.py` is the whole of it. It starts as a learned scale; put your own equation in its place.
"""

FILES = {
    "pyproject.toml": PYPROJECT,
    "hub_NAME.py": MODULE,
    "tests/test_NAME.py": TEST,
    "README.md": README,
}
