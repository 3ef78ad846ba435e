"""References: what a user types to name an adapter.

sst2@3  sst2@production  sst2      a version in the registry: by number, by alias, the latest
./folder  /folder  ~/folder  file:///folder
hf://org/repo@revision
stack(de@2, ./folder)              a composition of such, see `hub.notation`
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlparse

from hub.errors import FileError
from hub_registry import RegistryError

if TYPE_CHECKING:
    from hub.adapter import Adapter
    from hub.composition import Operator


def load(reference: str | Path) -> Adapter | Operator:
    """The adapter that a reference names, checked, and bound to no model; or its composition, with
    the adapters in it loaded, each once.

    A peft folder loads too; its base is then not known, and attaching it notes that.

    Raises AttachError where a composition is not written as one, UnknownReference where the
    registry has no such version, FileError where the files are not what they should be, RemoteError
    where the Hub can't be read, MethodError where the method's plugin is missing, ConfigError where
    the configuration has what we can't reproduce.
    """
    from hub.composition import is_written

    if not isinstance(reference, str | Path):
        raise FileError(
            f"a {type(reference).__name__} names no adapter; give a reference as text, or a Path"
        )
    text = str(reference)
    if isinstance(reference, str) and is_written(text):
        from hub.attachment.admission import resolve_composition
        from hub.notation import parse_composition

        return resolve_composition(parse_composition(text))  # type: ignore[return-value]
    if isinstance(reference, Path) or is_folder(text):
        from hub.adapter import Adapter, name_folder
        from hub.recipes.bundles import load_contents, read_folder

        folder = locate_folder(reference)
        loaded = load_contents(read_folder(folder), folder)
        if isinstance(loaded, Adapter):
            loaded.folder = name_folder(folder)
        return loaded
    if text.startswith("hf://"):
        from hub.recipes.bundles import load_contents
        from hub.remotes import open_remote, receive

        source = open_remote(text.removeprefix("hf://"))
        contents, _ = receive(source)
        return load_contents(contents, Path(source.label), reference=text)
    if "/" in text:
        raise FileError(
            f"{text!r} could be a folder or a repository; write ./{text} or hf://{text}"
        )
    from hub.registration import Registry

    return Registry().load(text)


def load_adapter(reference: str | Path) -> Adapter:
    """The one adapter that a reference names. Raises RegistryError where that is a composition,
    and what `load` raises."""
    return take_adapter(load(reference), str(reference))


def take_adapter(loaded: Adapter | Operator, label: str) -> Adapter:
    """What was loaded, where it is one adapter. Raises RegistryError for a composition."""
    from hub.adapter import Adapter

    if isinstance(loaded, Adapter):
        return loaded
    raise RegistryError(
        f"{label} is a composition, {loaded}, and this takes one adapter; name a part of it"
    )


def is_folder(text: str) -> bool:
    """Whether a reference names a folder on this machine."""
    return text.startswith((".", "/", "~", "file://"))


def is_place(reference: str) -> bool:
    """Whether a reference names a folder or a remote, and no version."""
    return is_folder(reference) or "/" in reference


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
