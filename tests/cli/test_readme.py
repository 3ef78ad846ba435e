"""The README's lines for a shell do what they say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

import hub
from tests.cli.conftest import Run

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```(?:shell|console)\n(.*?)```", README.read_text(), re.DOTALL)
LINES = [
    line.removeprefix("$ ")
    for block in BLOCKS
    for line in block.splitlines()
    if line.removeprefix("$ ").startswith("hub ")
]


@pytest.fixture
def named(workplace: Path) -> None:
    """What the lines name: the base on the Hub as a folder here, and an adapter of peft's."""
    (workplace / "bert-base-uncased").symlink_to(workplace / "bert")
    model = AutoModelForSequenceClassification.from_pretrained("bert")
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    get_peft_model(model, config).save_pretrained("peft-folder")


@pytest.mark.usefixtures("named", "online")
def test_lines_for_a_shell_run_in_their_order(run: Run, registry: hub.Registry) -> None:
    assert len(LINES) >= 10
    for line in LINES:
        run(shlex.split(line, comments=True)[1:])
    assert registry.get("reviews@production").number == 1
    assert "accuracy" in registry.get("reviews@1").metrics
    assert [remote for _, remote, _ in registry.publications("reviews")]
