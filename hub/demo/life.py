"""The life of the trained adapters: registered, published, pulled elsewhere, and used together."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from sqlalchemy import URL

import hub
from hub.demo.report import format_value
from hub.demo.tasks import Task
from hub.demo.trials import ROWS, Trial
from hub.errors import RemoteError
from hub.references import take_adapter
from hub.training.data import Template
from hub.training.metrics import METRICS
from hub_registry import Version

ALIAS = "production"
TOKEN = "demo"  # noqa: S105
TOKENS = 40  # to answer with
PROMPT = 120  # characters of a text held out

Echo = Callable[[str], None]


def open_registry(home: Path) -> hub.Registry:
    """The registry in a home, whatever HUB_REGISTRY says: nobody wants a demo in a team's."""
    return hub.Registry(home, name_database(home))


def name_database(home: Path) -> str:
    """The URL of the SQLite file in a home."""
    return URL.create("sqlite", database=str(home / "registry.db")).render_as_string()


def register(registry: hub.Registry, task: Task, trials: Sequence[Trial], echo: Echo) -> Version:
    """Add a task's adapters as versions of one name, and give the best of them an alias."""
    name = f"demo-{task.name}"
    added = []
    for trial in trials:
        if trial.adapter is None:
            continue
        version = registry.add(trial.adapter, name=name, task=task.name, note="by hub demo")
        added.append((trial.value, version))
        value = format_value(task, trial.value)
        echo(f"  {version.reference}  {trial.learner}, {task.metric} {value}")
    pick = max if METRICS[task.metric].higher else min
    best = pick(added, key=lambda pair: pair[0])[1]
    registry.alias(best.reference, ALIAS, note="by hub demo")
    echo(f"  {name}@{ALIAS} is now {best.reference}")
    return best


def publish(home: Path, reference: str, echo: Echo) -> hub.Adapter:
    """Push a version to a Hub on loopback and pull it into a new, empty home; what arrived there.

    Each is a process of its own, with nothing but the address in common. Raises RemoteError.
    """
    from hub.server import HubServer, User

    repo = f"demo/{reference.partition('@')[0].removeprefix('demo-')}"
    with (
        tempfile.TemporaryDirectory(prefix="pefthub-") as scratch,
        HubServer(Path(scratch, "server"), {TOKEN: User("demo")}) as server,
    ):
        second = Path(scratch, "second-home")
        echo(f"  a Hub answers at {server.url}")
        run_command(["push", reference, repo], home, server.url, Path(scratch, "cache-1"), echo)
        run_command(["pull", repo], second, server.url, Path(scratch, "cache-2"), echo)
        registry = open_registry(second)
        (version,) = registry.list()
        echo(f"  in {second}: {version.reference}, content {version.digest[:12]}")
        return take_adapter(registry.load(version), version.reference)


def run_command(words: list[str], home: Path, url: str, cache: Path, echo: Echo) -> None:
    """Run `hub` in a process of its own. Raises RemoteError where it fails."""
    near = ",".join(filter(None, ["127.0.0.1", os.environ.get("NO_PROXY", "")]))
    settings = {
        "HUB_HOME": str(home),
        "HUB_REGISTRY": name_database(home),
        "HF_ENDPOINT": url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(cache),
        "HF_HUB_CACHE": str(cache / "hub"),
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": near,
        "no_proxy": near,
    }
    echo(f"  $ hub {' '.join(words)}")
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", "from hub.cli import main; main()", *words],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RemoteError(f"hub {' '.join(words)} failed: {lines[-1].removeprefix('error: ')}")
    for line in done.stdout.splitlines():
        echo(f"    {line}")


@torch.no_grad()
def compare_outputs(model: Any, tokenizer: Any, task: Task, ours: Any, theirs: Any) -> float:
    """The largest difference between the outputs with one adapter and with the other, over some
    rows held out; what makes them differ at all would be a fault."""
    texts = [row["text"] for row in task.held_out[:ROWS]]
    device = model.get_input_embeddings().weight.device
    outputs = []
    for adapter in (ours, theirs):
        with hub.attach(model, adapter, trainable=False):
            batches = [tokenizer(text, return_tensors="pt", truncation=True) for text in texts]
            ids = [batch.input_ids.to(device) for batch in batches]
            outputs.append([model(input_ids=row).logits for row in ids])
    return max(float((a - b).abs().max()) for a, b in zip(*outputs, strict=True))


def make_prompt(task: Task) -> str:
    """The beginning of a text held out: its title and its first lines."""
    row = task.held_out[0]
    return Template(task.template).render(row, 1).prompt + row["text"][:PROMPT]


@torch.no_grad()
def answer(model: Any, tokenizer: Any, prompt: str, adapter: Any) -> str:
    """What the model writes after a prompt, with an adapter or a stack on it, or without."""
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    ids = ids.to(model.get_input_embeddings().weight.device)

    def write() -> str:
        written = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TOKENS,
            do_sample=False,
            no_repeat_ngram_size=3,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
        )
        return str(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))

    if adapter is None:
        return write()
    with hub.attach(model, adapter, trainable=False):
        return write()
