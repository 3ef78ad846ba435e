from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hub_registry import AlreadyExists, BadName, CorruptBlob, Registry, StorageError, Version

Add = Callable[..., Version]


def test_an_export_is_every_file_as_it_was(registry: Registry, add: Add, tmp_path: Path) -> None:
    version = add()
    folder = registry.export(version, tmp_path / "new" / "folder")
    assert folder == tmp_path / "new" / "folder"
    assert {path.name for path in folder.iterdir()} == set(version.files)
    for name in version.files:
        assert (folder / name).read_bytes() == registry.read(version, name)
        (folder / name).write_bytes(b"an export belongs to who asked for it")
    assert registry.verify() == []
    assert list(folder.parent.iterdir()) == [folder]


def test_an_empty_folder_is_filled(registry: Registry, add: Add, tmp_path: Path) -> None:
    add()
    (tmp_path / "folder").mkdir()
    assert len(list(registry.export("sst2@1", tmp_path / "folder").iterdir())) == 2


def test_what_is_there_is_never_touched(registry: Registry, add: Add, tmp_path: Path) -> None:
    add()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "mine").write_bytes(b"mine")
    with pytest.raises(AlreadyExists, match="it is not empty"):
        registry.export("sst2", folder)
    with pytest.raises(AlreadyExists, match="it is a file"):
        registry.export("sst2", folder / "mine")
    assert (folder / "mine").read_bytes() == b"mine"
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_a_damaged_file_exports_nothing(registry: Registry, add: Add, tmp_path: Path) -> None:
    version = add()
    path = registry.blobs.find_path(version.files["adapter_model.safetensors"].sha256)
    path.unlink()
    path.write_bytes(b"0ne")
    with pytest.raises(CorruptBlob, match=r"sst2@1 adapter_model\.safetensors is damaged"):
        registry.export(version, tmp_path / "out" / "folder")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_name_that_leads_elsewhere_is_refused(
    registry: Registry, add: Add, tmp_path: Path
) -> None:
    version = add()
    version.files["../evil"] = version.files["adapter_config.json"]  # type: ignore[index]
    with pytest.raises(BadName):
        registry.export(version, tmp_path / "out" / "folder")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_can_not_be_written_is_named(
    registry: Registry, add: Add, tmp_path: Path
) -> None:
    add()
    (tmp_path / "file").touch()
    with pytest.raises(StorageError) as caught:
        registry.export("sst2", tmp_path / "file" / "folder")
    assert str(caught.value).startswith(f"can't write {tmp_path / 'file'}: ")
    assert str(caught.value).endswith("or choose another folder")


def test_a_name_that_is_too_long_is_told_of_the_folder(
    registry: Registry, add: Add, tmp_path: Path
) -> None:
    add()
    folder = tmp_path / ("a" * 250)  # the temporary beside it has a longer name
    with pytest.raises(StorageError) as caught:
        registry.export("sst2", folder)
    assert str(caught.value).startswith(f"can't write {folder}: ")
    assert "HUB_HOME" not in str(caught.value)
