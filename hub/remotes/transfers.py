"""Publishing: adapters out of the registry to a remote, and from there into another registry.

    "org/repo", "org/repo@revision"     a repository on the Hub (HF_ENDPOINT, HF_TOKEN)
    "./folder", "file:///folder"        a folder

What arrives is held against the digests that the remote and `hub.json` tell before anything looks
into it, all of it from one revision. The Hub's client checks the size alone and keeps what it got,
so a damaged file is fetched once more, and removed from the client's cache where that is no better.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from hub.errors import HubError, RemoteError
from hub.files import (
    CONFIG,
    FILES,
    MANIFEST,
    PICKLES,
    TENSORS,
    edit_manifest,
    parse_adapter,
    pickle_text,
    write_files,
)
from hub.recipes.arrivals import Arrival, add_again, add_arrived, find_other, find_same, name_of
from hub.recipes.bundles import (
    Contents,
    digest_contents,
    gather_contents,
    is_composition,
    is_part_file,
    load_contents,
    pack_version,
    parse_bundle,
    read_folder,
)
from hub.recipes.recipe import RECIPE
from hub.references import is_folder, locate_folder
from hub.registration import Registry
from hub.remotes.cards import README, update_card
from hub.remotes.facts import make_card
from hub.remotes.folders import Folder, find_version
from hub.remotes.publications import Listing, Publication, Remote
from hub.remotes.repositories import Repository
from hub_registry import AlreadyExists, RegistryError, Version

__all__ = ["Publication", "fetch", "pull", "push", "receive"]


def push(
    reference: str | Path,
    remote: str | Path,
    *,
    private: bool = False,
    message: str | None = None,
    token: str | None = None,
    registry: Registry | None = None,
) -> Publication:
    """Publish a version, and note in the registry where it went.

    reference: "sst2@3", "sst2@production", "sst2", or "./folder" of an adapter or a composition.
        A composition goes whole: its recipe, and every version that it is made of.
    remote: "org/repo" or "org/repo@branch", made where it is missing; or "./folder".
    private: make the repository private, and refuse one that is public.
    message: the commit's, the version when left out.

    One commit holds the version's files and its card; where all of it is there already there is
    none, and `changed` is False. Text that a user wrote into README.md stays.

    Raises UnknownReference, CorruptBlob and FileError for what is to be published, MethodError and
    ConfigError for a folder that could not be loaded, RemoteError where the remote can't be
    reached or written, StorageError where the registry can't be written; then nothing was sent.
    """
    target = open_remote(remote, token)
    registry = registry or Registry()
    contents, version = read_local(reference, registry)
    if version is not None:
        registry.check_writable()  # before anything leaves this machine
    card = make_card(target, contents, version)
    before = target.look_to_write(private)
    known = before.files if before is not None else {}
    readme = read_verified(target, before, README) if before and README in known else None
    contents[README] = update_card(readme, card)
    gone = [name for name in known if name not in contents and is_ours(name)]
    if before is not None and not gone and holds(target, before, contents):
        revision, changed = target.find_revision(before, contents), False
    else:
        label = version.reference if version is not None else f"{target.title} from a folder"
        revision = target.write(contents, gone, before, message or label, private)
        changed = True
    url = target.name_url(revision)
    if version is not None:
        try:
            note_publication(registry, version, target, revision)
        except HubError as error:
            raise RemoteError(
                f"{version.reference} is published at {url}, and that could not be noted here: "
                f"{error}; then push again, which only notes it"
            ) from error
    return Publication(target.remote, revision, url, changed)


def pull(
    remote: str | Path,
    *,
    name: str | None = None,
    names: Mapping[str, str] | None = None,
    registry: Registry | None = None,
    token: str | None = None,
) -> Version:
    """Fetch an adapter or a composition, verify it, and register it as the next version of `name`.

    remote: "org/repo", "org/repo@revision" (a branch, a tag or a commit), or "./folder".
    name: the name in this registry; when left out, the one that it was published under, or the
        last part of the remote's.
    names: what the parts of a composition are to be called in this registry, by the names that
        they were published under, which they keep when left out.

    The same bytes give the version that they already are. An adapter that another tool wrote is
    registered as it is, its base unknown. The parts of a composition become versions too.

    Raises RemoteError, FileError, MethodError (no plugin for its method), ConfigError, BadName,
    BaseMismatch (its parts are for different ones), UnknownReference (`names` names no part), and
    AlreadyExists where the name of it or of a part stands for something here that never was at
    this remote, and no `name` or `names` says that they belong together. Then the registry is as
    it was.
    """
    source = open_remote(remote, token)
    registry = registry or Registry()
    contents, revision = receive(source)
    label = find_version(contents)
    target = name or (name_of(label) if label is not None else source.title)
    version = find_same(registry.list(target), digest_contents(contents))
    arrival = None
    if RECIPE in contents:
        where = Path(source.label)
        bundle = parse_bundle(contents, where)
        arrival = Arrival(registry, bundle, where, remote=source.remote, names=names)
    if version is None and name is None:
        # A part may be called like the whole.
        digests = arrival.list_digests(target) if arrival is not None else ()
        check_name_is_free(registry, target, source, digests)
    note = f"pulled from {source.remote}@{revision[:12]}"
    if arrival is not None:
        version = arrival.register(target, note if version is None else None)
    else:
        version = register_adapter(registry, contents, target, version, note, names)
    note_publication(registry, version, source, revision)
    return version


def register_adapter(
    registry: Registry,
    contents: dict[str, bytes],
    name: str,
    version: Version | None,
    note: str,
    names: Mapping[str, str] | None,
) -> Version:
    """The version of an adapter that arrived: the one that it is already, its blobs mended where
    they are damaged, or the next of `name`."""
    if names:
        raise RegistryError(
            f"{', '.join(names)} can't be given other names: this is one adapter and has no parts; "
            "leave names out, and give name"
        )
    if MANIFEST in contents:
        contents[MANIFEST] = edit_manifest(contents[MANIFEST], version=None)
    else:
        note += "; another tool wrote it, so its base can't be verified"
    if version is None:
        return add_arrived(registry, contents, name, note)
    add_again(registry, version, contents)
    return version


def check_name_is_free(
    registry: Registry, name: str, source: Remote, digests: Collection[str]
) -> None:
    """Raise AlreadyExists where `name` stands for what never was at this remote, and is not among
    what arrives under that name."""
    other = find_other(registry, name, digests, source.remote)
    if other is not None:
        raise AlreadyExists(
            f"{name} is here already ({other.reference}) and was never at {source.label}; "
            f"name it {name} to make this its next version, or give it another name"
        )


def note_publication(registry: Registry, version: Version, remote: Remote, revision: str) -> None:
    """Note that a version is at a remote, and with a composition all that it is made of."""
    for one in registry.collect([version]):
        entry = (one.reference, remote.remote, revision)
        if entry not in registry.publications(one.adapter):
            registry.record_publication(one, remote.remote, revision)


def fetch(remote: str | Path, folder: str | Path, *, token: str | None = None) -> Path:
    """Write the verified files of what is published into `folder`, and register nothing.

    Raises RemoteError, FileError.
    """
    contents, _ = receive(open_remote(remote, token))
    return write_files(folder, contents)


def open_remote(remote: str | Path, token: str | None = None) -> Remote:
    """The repository or the folder that a user names. Raises RemoteError, FileError."""
    if isinstance(remote, Path) or is_folder(remote):
        return Folder(locate_folder(remote))
    return Repository(remote, token)


def read_local(
    reference: str | Path, registry: Registry
) -> tuple[dict[str, bytes], Version | None]:
    """The files to publish, which say what version they are, and that version. A folder's are
    checked as if to be loaded, as the registry did with a version's."""
    if isinstance(reference, Path) or is_folder(reference):
        folder = locate_folder(reference)
        contents = read_folder(folder)
        load_contents(contents, folder)
        return contents, None
    version = registry.get(reference)
    return pack_version(registry, version), version


def receive(source: Remote) -> tuple[dict[str, bytes], str]:
    """The files of the adapter or the composition at a remote, verified, and the revision that they
    are from. Raises RemoteError, FileError."""
    listing = source.look()
    where = Path(source.label)
    if is_composition(listing.files, where):
        contents = gather_contents(
            listing.files, lambda name: read_verified(source, listing, name), where
        )
        parse_bundle(contents, where)
    else:
        check_listing(source, listing)
        contents = {
            name: read_verified(source, listing, name) for name in FILES if name in listing.files
        }
        parse_adapter(contents, where)
    return contents, listing.revision or source.find_revision(listing, contents)


def check_listing(source: Remote, listing: Listing) -> None:
    """Raise RemoteError where what is there is no adapter."""
    if TENSORS not in listing.files:
        for pickle in PICKLES:
            if pickle in listing.files:
                raise RemoteError(pickle_text(Path(source.label, pickle)))
    for name in (CONFIG, TENSORS):
        if name not in listing.files:
            there = ", ".join(sorted(listing.files)[:8]) or "nothing"
            raise RemoteError(f"{source.label} is no adapter: it has no {name}; it holds {there}")


def is_ours(name: str) -> bool:
    """Whether a file at a remote is one that a push writes and takes away; the card stays."""
    return name == RECIPE or name in FILES or is_part_file(name)


def read_verified(source: Remote, listing: Listing, name: str) -> bytes:
    """A file's bytes, with the digest that the remote tells. Raises RemoteError."""
    told = listing.files[name]
    found = ""
    for again in (False, True):
        data = source.read(listing, name, again=again)
        if told is None or (found := told.of(data)) == told.value:
            return data
        source.discard(listing, name)
    raise RemoteError(
        f"{name} of {source.label} arrives damaged: its digest is {found[:12]} and "
        f"{told.value[:12] if told else ''} is what {source.label} says; it was fetched twice and "
        "nothing is kept of it; try again later, or from another network"
    )


def holds(remote: Remote, listing: Listing, contents: Contents) -> bool:
    """Whether all these files are there already."""
    for name, data in contents.items():
        if name not in listing.files:
            return False
        told = listing.files[name]
        if (told.of(data) != told.value) if told else remote.read(listing, name) != data:
            return False
    return True
