"""References: what a user types to name an adapter.

sst2@3  sst2@production  sst2      a version in the registry: by number, by alias, the latest
./folder  /folder  ~/folder  file:///folder
hf://org/repo@revision
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from urllib.parse import unquote, urlparse

from hub.adapter import Adapter
from hub.errors import FileError


def load(reference: str | Path) -> Adapter:
    """The adapter that a reference names, checked, and bound to no model.

    A peft folder loads too; its base is then not known, and attaching it notes that.

    Raises UnknownReference where the registry has no such version, FileError where the files are
    not what they should be, RemoteError where the Hub can't be read, MethodError where the
    method's plugin is missing, ConfigError where the configuration has what we can't reproduce.
    """
    text = str(reference)
    if isinstance(reference, Path) or is_folder(text):
        return Adapter.read(locate_folder(text))
    if text.startswith("hf://"):
        from hub.remotes import fetch

        with tempfile.TemporaryDirectory() as scratch:
            folder = fetch(text.removeprefix("hf://"), Path(scratch, "adapter"))
            return Adapter.read(folder, reference=text)
    if "/" in text:
        raise FileError(
            f"{text!r} could be a folder or a repository; write ./{text} or hf://{text}"
        )
    from hub.registration import Registry

    return Registry().load(text)


def is_folder(text: str) -> bool:
    """Whether a reference names a folder on this machine."""
    return text.startswith((".", "/", "~", "file://"))


def locate_folder(text: str) -> Path:
    """The folder that a path or a file:// address names."""
    path = unquote(urlparse(text).path) if text.startswith("file://") else text
    return Path(path).expanduser()
