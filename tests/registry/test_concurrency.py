"""Several processes at once: no error, and nothing lost, doubled or left out."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable

from hub_registry import Registry, Swept

SCRIPT = """if True:
    import json, os, sys, time
    from hub_registry import BaseIdentity, Registry
    home, begin, seconds, processes = sys.argv[1], *map(float, sys.argv[2:])
    base = BaseIdentity("llama", "float32")

    def work(who):
        registry = Registry(home)
        added = []
        while time.time() < begin:
            time.sleep(0.001)
        while not added or time.time() < begin + seconds:
            mine = f"{who} {len(added)}".encode()
            version = registry.add_files({"mine": mine, "shared": b"%d" % (len(added) % 3)},
                                   name="sst2", task="t", method="lora", base=base, config={})
            assert registry.read(version, "mine") == mine
            added.append([version.number, mine.decode()])
            registry.alias(version.reference, "newest")
            registry.list("sst2")
        return added

    pipes = []
    for who in range(int(processes)):
        reader, writer = os.pipe()
        if os.fork() == 0:
            try:
                text = json.dumps(work(who))
            except BaseException as error:
                text = json.dumps(repr(error))
            os.write(writer, text.encode())
            os._exit(0)
        os.close(writer)
        pipes.append(os.fdopen(reader))
    print(json.dumps([json.loads(pipe.read()) for pipe in pipes]))
"""


def test_four_processes_add_to_one_adapter_that_none_has_made(
    registry: Registry, run_python: Callable[..., str]
) -> None:
    results = json.loads(run_python(SCRIPT, registry.home, time.time() + 1.0, 1.5, 4))
    assert all(isinstance(added, list) for added in results), results
    added = {number: mine for result in results for number, mine in result}
    assert sum(len(result) for result in results) == len(added) >= 4
    versions = registry.list()
    assert [version.number for version in versions] == list(range(len(added), 0, -1))
    assert {v.number: registry.read(v, "mine").decode() for v in versions} == added
    assert registry.verify() == []
    assert registry.sweep(older_than=0) == Swept(0, 0, 0)
    moves = Counter(event.kind for event in registry.log("sst2"))
    assert moves == {"version": len(added), "alias": len(added)}
    assert all(result for result in results)


def test_a_sweep_among_writers_takes_nothing_that_is_used(
    registry: Registry, run_python: Callable[..., str]
) -> None:
    # Each process leaves the bytes that it adds next as a blob of no version, as a killed one
    # would, and sweeps all such blobs, however young; temporary files it leaves to their writers.
    script = SCRIPT.replace(
        'registry.list("sst2")',
        """
            registry.blobs.find_temporary = lambda: iter(())
            staged = registry.blobs.stage(f"{who} {len(added)}".encode())
            registry.blobs.place(staged)
            registry.blobs.discard(staged)
            swept += registry.sweep(0).blobs
        """,
    ).replace("added = []\n", "added = []; swept = 0\n")
    results = json.loads(run_python(script, registry.home, time.time() + 1.0, 1.5, 2))
    assert all(isinstance(added, list) for added in results), results
    assert registry.verify() == []
    assert len(registry.list()) == sum(len(added) for added in results)
