"""References: what a user types to name an adapter.

sst2@3  sst2@production  sst2      a version in the registry: by number, by alias, the latest
./folder  /folder  ~/folder  file:///folder
hf://org/repo@revision
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlparse

from hub.errors import FileError

if TYPE_CHECKING:
    from hub.adapter import Adapter


def load(reference: str | Path) -> Adapter:
    """The adapter that a reference names, checked, and bound to no model.

    A peft folder loads too; its base is then not known, and attaching it notes that.

    Raises UnknownReference where the registry has no such version, FileError where the files are
    not what they should be, RemoteError where the Hub can't be read, MethodError where the
    method's plugin is missing, ConfigError where the configuration has what we can't reproduce.
    """
    if not isinstance(reference, str | Path):
        raise FileError(
            f"a {type(reference).__name__} names no adapter; give a reference as text, or a Path"
        )
    from hub.adapter import Adapter

    text = str(reference)
    if isinstance(reference, Path) or is_folder(text):
        return Adapter.read(locate_folder(reference))
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


def locate_folder(place: str | Path) -> Path:
    """The folder that a path or a file:// address names. Raises FileError."""
    path = str(place)
    if isinstance(place, str) and path.startswith("file://"):
        address = urlparse(path)
        if address.netloc not in ("", "localhost") or not address.path:
            meant = quote(f"/{unquote(address.netloc + address.path).lstrip('/') or 'folder'}")
            raise FileError(
                f"{path} names another machine, or no folder; a folder of this one has three "
                f"slashes, write file://{meant}"
            )
        path = unquote(address.path)
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise FileError(
            f"{path}: {str(error).lower().rstrip('.')}; write the whole path"
        ) from error
