"""Publishing: adapters out of the registry to a remote, and from there into another registry.

    "org/repo", "org/repo@revision"     a repository on the Hub (HF_ENDPOINT, HF_TOKEN)
    "./folder", "file:///folder"        a folder

What arrives is held against the digests that the remote and `hub.json` tell before anything looks
into it, all of it from one revision. The Hub's client checks the size alone and keeps what it got,
so a damaged file is fetched once more, and removed from the client's cache where that is no better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hub.errors import HubError, RemoteError
from hub.files import (
    CONFIG,
    FILES,
    MANIFEST,
    PICKLES,
    TENSORS,
    AdapterFiles,
    edit_manifest,
    parse_adapter,
    pickle_text,
    read_contents,
    write_files,
)
from hub.references import is_folder, locate_folder
from hub.registration import Registry, guess_base
from hub.remotes.cards import README, Card, name_hub_repo, update_card
from hub.remotes.folders import Folder, digest_contents, find_version, name_of
from hub.remotes.publications import Listing, Publication, Remote
from hub.remotes.repositories import Repository
from hub_registry import AlreadyExists, Version

__all__ = ["Publication", "fetch", "pull", "push"]


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

    reference: "sst2@3", "sst2@production", "sst2", or "./folder" of an adapter.
    remote: "org/repo" or "org/repo@branch", made where it is missing; or "./folder".
    private: make the repository private, and refuse one that is public.
    message: the commit's, the version when left out.

    One commit holds the adapter's files and its card; where all of it is there already there is
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
    files = parse_adapter(contents, Path(str(reference)))
    before = target.look_to_write(private)
    known = before.files if before is not None else {}
    readme = read_verified(target, before, README) if before and README in known else None
    contents[README] = update_card(readme, make_card(target, contents, files, version))
    gone = [name for name in (MANIFEST,) if name in known and name not in contents]
    if before is not None and not gone and holds(target, before, contents):
        revision, changed = target.find_revision(before, contents), False
    else:
        label = version.reference if version is not None else f"{target.title} from a folder"
        revision = target.write(contents, gone, before, message or label, private)
        changed = True
    url = target.name_url(revision)
    if version is not None:
        try:
            entry = (version.reference, target.remote, revision)
            if entry not in registry.publications(version.adapter):
                registry.record_publication(version, target.remote, revision)
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
    registry: Registry | None = None,
    token: str | None = None,
) -> Version:
    """Fetch an adapter, verify it, and register it as the next version of `name`.

    remote: "org/repo", "org/repo@revision" (a branch, a tag or a commit), or "./folder".
    name: the adapter's name in this registry; when left out, the one that it was published under,
        or the last part of the remote's.

    The same bytes give the version that they already are. An adapter that another tool wrote is
    registered as it is, its base unknown.

    Raises RemoteError, FileError, MethodError (no plugin for its method), ConfigError, BadName,
    and AlreadyExists where an adapter of that name is here that never was at this remote and no
    `name` says that they belong together. Then the registry is as it was.
    """
    source = open_remote(remote, token)
    registry = registry or Registry()
    contents, revision = receive(source)
    label = find_version(contents.get(MANIFEST))
    if label is not None:
        contents[MANIFEST] = edit_manifest(contents[MANIFEST], version=None)
    target = name or (name_of(label) if label is not None else source.title)
    digest = digest_contents(contents)
    versions = registry.list(target)
    published = registry.publications(target)
    version = find_same(versions, digest)
    if version is None:
        if versions and name is None and source.remote not in {there for _, there, _ in published}:
            raise AlreadyExists(
                f"{target} is here already ({versions[0].reference}) and was never at "
                f"{source.label}; name it {target} to make this its next version, or give it "
                "another name"
            )
        note = f"pulled from {source.remote}@{revision[:12]}"
        if MANIFEST not in contents:
            note += "; another tool wrote it, so its base can't be verified"
        try:
            version = registry.add(contents, name=target, note=note)
        except AlreadyExists:
            # The same bytes may have come meanwhile, with another note: `note` is only ours.
            version = find_same(registry.list(target), digest)
            if version is None:
                raise
    if (version.reference, source.remote, revision) not in published:
        registry.record_publication(version, source.remote, revision)
    return version


def find_same(versions: Sequence[Version], digest: str) -> Version | None:
    """The version with this content."""
    return next((version for version in versions if version.digest == digest), None)


def fetch(remote: str | Path, folder: str | Path, *, token: str | None = None) -> Path:
    """Write the verified files of a published adapter into `folder`, and register nothing.

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
    """The files to publish, their `hub.json` with the version in it, and that version. A folder's
    are checked as if to be loaded, as the registry did with a version's."""
    if isinstance(reference, Path) or is_folder(reference):
        from hub.adapter import Adapter

        folder = locate_folder(reference)
        contents = read_contents(folder)
        Adapter.parse(contents, folder)
        return contents, None
    version = registry.get(reference)
    contents = registry.read_files(version)
    if MANIFEST in contents:
        contents[MANIFEST] = edit_manifest(contents[MANIFEST], version=version.reference)
    return contents, version


def receive(source: Remote) -> tuple[dict[str, bytes], str]:
    """The adapter's files of a remote, verified, and the revision that they are from."""
    listing = source.look()
    if TENSORS not in listing.files:
        for pickle in PICKLES:
            if pickle in listing.files:
                raise RemoteError(pickle_text(Path(source.label, pickle)))
    for name in (CONFIG, TENSORS):
        if name not in listing.files:
            there = ", ".join(sorted(listing.files)[:8]) or "nothing"
            raise RemoteError(f"{source.label} is no adapter: it has no {name}; it holds {there}")
    contents = {
        name: read_verified(source, listing, name) for name in FILES if name in listing.files
    }
    parse_adapter(contents, Path(source.label))
    return contents, listing.revision or source.find_revision(listing, contents)


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


def holds(remote: Remote, listing: Listing, contents: Mapping[str, bytes]) -> bool:
    """Whether all these files are there already."""
    for name, data in contents.items():
        if name not in listing.files:
            return False
        told = listing.files[name]
        if (told.of(data) != told.value) if told else remote.read(listing, name) != data:
            return False
    return True


def make_card(
    remote: Remote,
    contents: Mapping[str, bytes],
    files: AdapterFiles,
    version: Version | None,
) -> Card:
    """What the card of these files says."""
    manifest, config = files.manifest, files.config
    base = manifest.base if manifest is not None and manifest.base is not None else None
    base = base or guess_base(contents)
    repo = name_hub_repo(base.repo)
    training = manifest.lineage.get("training") if manifest is not None else None
    metrics = version.metrics if version is not None else manifest.metrics if manifest else {}
    task = version.task if version is not None else manifest.task if manifest else None
    peft_type = str(config.get("peft_type"))
    return Card(
        title=version.adapter if version is not None else remote.title,
        address=remote.address,
        repo=remote.repo,
        reference=version.reference if version is not None else None,
        digest=digest_contents(contents),
        method=manifest.method if manifest is not None else peft_type.lower(),
        peft_type=peft_type,
        task_type=config.get("task_type"),
        base=repo,
        base_label=replace(base, repo=None).label,
        task=task,
        values=sum(tensor.numel() for tensor in files.tensors.values()),
        metrics=metrics,
        training=training if isinstance(training, dict) else {},
    )
