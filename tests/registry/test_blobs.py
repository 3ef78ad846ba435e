from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub_registry import CorruptBlob, FileEntry, RegistryError
from hub_registry.blobs import BlobStore

SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def put(store: BlobStore, content: bytes | Path) -> FileEntry:
    staged = store.stage(content)
    store.place(staged)
    store.discard(staged)
    return staged.entry


def overwrite(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


@SHARED
@given(st.binary(max_size=300))
def test_bytes_come_back_as_they_went_in(store: BlobStore, content: bytes) -> None:
    entry = put(store, content)
    assert entry == FileEntry(hashlib.sha256(content).hexdigest(), len(content))
    assert store.read(entry, "it") == content
    assert list(store.find_temporary()) == []


def test_a_file_of_several_chunks_comes_back(store: BlobStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(3_000_001))
    entry = put(store, source)
    assert store.read(entry, "it") == source.read_bytes()
    store.copy(entry, tmp_path / "copy", "it")
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()


@SHARED
@given(st.binary(min_size=1, max_size=64), st.data())
def test_every_flipped_bit_is_found(store: BlobStore, content: bytes, data: st.DataObject) -> None:
    entry = put(store, content)
    position = data.draw(st.integers(0, len(content) - 1))
    flipped = bytearray(content)
    flipped[position] ^= 1 << data.draw(st.integers(0, 7))
    check_found(store, entry, bytes(flipped))


@SHARED
@given(st.binary(min_size=1, max_size=64), st.data())
def test_every_truncation_and_addition_is_found(
    store: BlobStore, content: bytes, data: st.DataObject
) -> None:
    entry = put(store, content)
    check_found(store, entry, content[: data.draw(st.integers(0, len(content) - 1))])
    check_found(store, entry, content + data.draw(st.binary(min_size=1, max_size=4)))


def check_found(store: BlobStore, entry: FileEntry, damaged: bytes) -> None:
    path = store.find_path(entry.sha256)
    overwrite(path, damaged)
    for use in (
        lambda: store.read(entry, "sst2@3 a.json"),
        lambda: store.copy(entry, store.folder / "copy", "sst2@3 a.json"),
    ):
        with pytest.raises(CorruptBlob, match=r"^sst2@3 a\.json is damaged: ") as caught:
            use()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert store.find_damage(entry)


def test_a_missing_blob_is_said_to_be_lost(store: BlobStore) -> None:
    entry = put(store, b"content")
    store.remove(entry.sha256)
    with pytest.raises(CorruptBlob, match=r"is lost: .* is missing; add or pull"):
        store.read(entry, "sst2@3 a.json")
    assert "is lost" in str(store.find_damage(entry))


def test_a_damaged_blob_is_mended_by_the_same_bytes(store: BlobStore) -> None:
    entry = put(store, b"content")
    overwrite(store.find_path(entry.sha256), b"c0ntent")
    assert put(store, b"content") == entry
    assert store.read(entry, "it") == b"content"


def test_a_blob_is_stored_once_and_can_not_be_written(store: BlobStore) -> None:
    first, second = store.stage(b"content"), store.stage(b"content")
    assert store.place(first)
    assert not store.place(second)
    store.discard(first)
    store.discard(second)
    [(sha256, found)] = store.find_all()
    assert sha256 == first.entry.sha256
    assert not found.st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)


def test_where_there_are_no_links_a_blob_is_renamed(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    entry = put(store, b"content")
    assert store.read(entry, "it") == b"content"
    assert put(store, b"content") == entry
    assert list(store.find_temporary()) == []


@pytest.mark.parametrize("make", ["missing", "folder", "pipe"])
def test_what_is_no_file_is_refused(store: BlobStore, tmp_path: Path, make: str) -> None:
    source = tmp_path / "source"
    if make == "folder":
        source.mkdir()
    if make == "pipe":
        os.mkfifo(source)
    with pytest.raises(RegistryError, match=r"can't add .*source: it"):
        store.stage(source)
    assert list(store.find_temporary()) == []
