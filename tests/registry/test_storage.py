"""Disks that are full, read-only or forbidden: one line, and nothing half done."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from hub_registry import BaseIdentity, Registry, StorageError, Swept
from hub_registry.storage import describe_os_error, storage_errors

START = """if True:
    import json, os, resource, sys
    from pathlib import Path
    from hub_registry import BaseIdentity, HubError, Registry
    home = Path(sys.argv[1])
    base = BaseIdentity("llama", "float32")

    def add(registry, content, **config):
        files = {"a.json": content, "b.json": b"b" + content}
        return registry.add_files(files, name="sst2", task=None, method="lora", base=base,
                                  config=config)

    def report(use):
        try:
            use()
            print(json.dumps(None))
        except HubError as error:
            print(json.dumps([type(error).__name__, str(error)]))

    def become_nobody():
        # Root may do everything; everyone else is held by the mode bits already.
        if os.getuid() == 0:
            import alembic.command, alembic.script, tempfile
            with tempfile.TemporaryDirectory() as folder:
                add(Registry(folder), b"1")  # imports all that is imported late
            os.setgid(65534)
            os.setuid(65534)
"""


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (errno.ENOSPC, "MB are free; free some space, or set HUB_HOME to another disk"),
        (errno.EDQUOT, "MB are free; free some space, or set HUB_HOME to another disk"),
        (errno.EROFS, "make it writable, or set HUB_HOME"),
        (errno.EACCES, "ask who owns it to let you write it"),
        (errno.ENOTDIR, "move away what is there"),
        (errno.EIO, "check the disk"),
    ],
)
def test_an_error_of_the_system_names_the_path_and_the_way_out(
    number: int, way_out: str, tmp_path: Path
) -> None:
    with (
        pytest.raises(StorageError, match=way_out) as caught,
        storage_errors(tmp_path / "x", "write"),
    ):
        raise OSError(number, "What Went Wrong")
    assert str(caught.value).startswith(f"can't write {tmp_path / 'x'}: what went wrong")
    assert isinstance(caught.value.__cause__, OSError)
    assert "\n" not in describe_os_error(OSError("odd"), tmp_path, "read")


def parse(output: str) -> list[Any]:
    return [json.loads(line) for line in output.splitlines()]


def test_a_full_disk_stores_nothing(registry: Registry, run_python: Callable[..., str]) -> None:
    script = (
        START
        + """
    registry = Registry(home)
    add(registry, b"1")
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    report(lambda: add(registry, b"2" * 400_000))                # the blob does not fit
    report(lambda: add(registry, b"2", text="x" * 2_000_000))    # the rows do not fit
    report(lambda: add(registry, b"3"))
    """
    )
    blob, rows, small = parse(run_python(script, registry.home))
    assert blob[0] == "StorageError"
    assert "file too large" in blob[1]
    assert str(registry.home / "blobs" / "tmp") in blob[1]
    assert "free some space" in blob[1]
    assert rows[0] == "StorageError"
    assert "can't be written" in rows[1]
    assert str(registry.home / "registry.db") in rows[1]
    assert small is None
    assert [version.reference for version in registry.list()] == ["sst2@2", "sst2@1"]
    assert registry.verify() == []
    assert registry.sweep(older_than=0) == Swept(0, 0, 0)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own are for one."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_home_that_can_not_be_made_is_named(shared: Path, run_python: Callable[..., str]) -> None:
    script = (
        START
        + """
    become_nobody()
    registry = Registry(home / "closed" / "home")
    report(registry.list)
    report(lambda: add(registry, b"1"))
    """
    )
    (shared / "closed").mkdir(mode=0o555)
    listed, added = parse(run_python(script, shared))
    assert listed is None
    assert isinstance(added, list)
    assert added[0] == "StorageError"
    assert f"can't write {shared / 'closed' / 'home'}" in added[1]
    assert "permission denied" in added[1]
    assert list((shared / "closed").iterdir()) == []


def test_a_home_that_can_only_be_read_is_read(
    shared: Path, base: BaseIdentity, run_python: Callable[..., str]
) -> None:
    home = shared / "home"
    version = Registry(home).add_files(
        {"a.json": b"one"}, name="sst2", task=None, method="lora", base=base, config={}
    )
    before = sorted(home.rglob("*"))
    for path in (home, *before):
        path.chmod(0o555 if path.is_dir() else 0o444)
    script = (
        START
        + """
    become_nobody()
    registry = Registry(home / "home")
    print(json.dumps([v.reference for v in registry.list()]))
    print(json.dumps(registry.read("sst2", "a.json").decode()))
    print(json.dumps([fault.problem for fault in registry.verify()]))
    report(lambda: add(registry, b"1"))
    report(lambda: registry.alias("sst2", "production"))
    report(lambda: registry.record_metric("sst2", "loss", 1.0))
    print(json.dumps([f.level for f in registry.check() if f.subject == "home"]))
    """
    )
    listed, content, faults, added, aliased, measured, levels = parse(run_python(script, shared))
    assert listed == [version.reference]
    assert content == "one"
    assert faults == []
    for refused in (added, aliased, measured):
        assert isinstance(refused, list)
        assert refused[0] == "StorageError"
        assert str(home) in refused[1]
    assert levels == ["error"]
    assert sorted(home.rglob("*")) == before
