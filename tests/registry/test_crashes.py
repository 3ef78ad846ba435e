"""A process killed at any point of adding: the registry is as before or as after."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from hub_registry import Registry, Version

# Every system call that leaves a trace is a step, and so is every statement (of making the tables,
# which is one transaction, those that make a table). The n-th child is killed just before its n-th
# step, until one gets through. What the system was told survives the process, so nothing waits
# for the disk here.
SCRIPT = """if True:
    import alembic.command, json, os, shutil, signal, sys
    from pathlib import Path
    from sqlalchemy import Engine, event
    from hub_registry import BaseIdentity, Registry

    @event.listens_for(Engine, "connect")
    def forget_the_disk(connection, record):
        connection.execute("PRAGMA synchronous = OFF")

    os.fsync = lambda handle: None
    work = Path(sys.argv[1])
    template = work / "template"
    base = BaseIdentity("llama", "float32")

    def add(home):
        Registry(home).add_files({"a.json": b"shared", "b.json": b"new"}, name="sst2", task="t",
                           method="lora", base=base, config={}, metrics={"loss": 1.0},
                           parents=["sst2@1"] if template.exists() else [])

    def die_at(step):
        count = 0

        def tick(*_):
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

        def tick_statement(connection, cursor, statement, *_):
            if not statement.startswith(("CREATE TRIGGER", "CREATE INDEX")):
                tick()

        def wrap(name):
            original = getattr(os, name)

            def wrapped(*args, **kwargs):
                tick()
                return original(*args, **kwargs)

            setattr(os, name, wrapped)

        for name in ("open", "fsync", "link", "unlink", "replace", "rename", "mkdir", "chmod"):
            wrap(name)
        event.listen(Engine, "before_cursor_execute", tick_statement)
        event.listen(Engine, "commit", tick)

    def describe(home):
        return [[v.reference, v.digest, v.task, dict(v.metrics), v.parents, len(v.files)]
                for v in Registry(home).list()]

    before = describe(template)
    outcomes, step = [], 0
    while True:
        step += 1
        home = work / "home"
        if template.exists():
            shutil.copytree(template, home)
        child = os.fork()
        if child == 0:
            die_at(step)
            try:
                add(home)
            except BaseException as error:
                print("child failed", repr(error), file=sys.stderr)
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        found = describe(home)
        registry = Registry(home)
        faults = [fault.problem for fault in registry.verify()]
        registry.sweep(older_than=0)
        names = {name for name, _ in registry.blobs.find_all()}
        used = {e.sha256 for v in registry.list() for e in v.files.values()}
        left = len(list(registry.blobs.find_temporary())) + len(names ^ used)
        if step % 5 == 0:
            add(home)
        again = describe(home) if step % 5 == 0 else None
        shutil.rmtree(home, ignore_errors=True)
        outcomes.append([found, faults, left, again])
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            print(json.dumps([before, os.waitstatus_to_exitcode(status), outcomes]))
            break
"""


@pytest.mark.parametrize("first", [True, False])
def test_a_kill_at_any_step_of_adding_leaves_before_or_after(
    first: bool,
    registry: Registry,
    add: Callable[..., Version],
    run_python: Callable[..., str],
) -> None:
    work = registry.home.parent
    if not first:
        add(files={"a.json": b"shared"})
        registry.home.rename(work / "template")
    before, status, outcomes = json.loads(run_python(SCRIPT, work))
    after = outcomes[-1][0]
    assert status == 0
    assert len(after) == len(before) + 1
    assert len(outcomes) > 40
    seen = [found == after for found, *_ in outcomes]
    for step, (found, faults, left, again) in enumerate(outcomes):
        assert found in (before, after), step
        assert faults == [], step
        assert left == 0, step
        assert again in (None, after), step
    # Once it is there it stays, and steps were killed on both sides of it.
    assert seen == sorted(seen)
    assert 1 < seen.count(True) < len(seen) - 10
