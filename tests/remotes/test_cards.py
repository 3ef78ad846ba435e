"""The model card, and peft beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hub
from hub.errors import RemoteError
from hub.identity import identify_base
from hub.remotes.cards import BEGIN, END, Card, update_card
from hub.server import HubServer
from tests.tiny import build_tiny

Make = Callable[..., hub.Adapter]
CARD = Card(
    title="sst2",
    address="hf://ana/sst2",
    repo="ana/sst2",
    reference="sst2@1",
    digest="0" * 64,
    method="lora",
    peft_type="LORA",
    task_type="SEQ_CLS",
    base="org/tiny",
    base_label="llama",
    task="sentiment",
    values=1234,
    metrics={"accuracy": 0.913},
    training={"epochs": 3, "nested": {"hidden": 1}},
)


def read_card(api: HfApi, repo: str) -> str:
    return Path(api.hf_hub_download(repo, "README.md", force_download=True)).read_text()


def test_card_says_what_the_hub_searches_by(registry: hub.Registry, api: HfApi) -> None:
    model = build_tiny("llama", task="classification")
    model.config._name_or_path = "org/tiny"
    adapter = hub.Adapter.create("lora", model, r=2)
    adapter.metrics = {"accuracy": 0.913}
    adapter.lineage = {"training": {"epochs": 3}}
    registry.add(adapter, name="sst2", task="sentiment")
    hub.push("sst2@1", "ana/sst2")
    assert ModelCard(read_card(api, "ana/sst2")).data.to_dict() == {
        "base_model": "org/tiny",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-classification",
        "tags": ["pefthub", "lora"],
    }
    text = read_card(api, "ana/sst2")
    for line in (
        "| version | sst2@1 |",
        f"| content digest | {registry.get('sst2').digest} |",
        "| accuracy | 0.913 |",
        "| epochs | 3 |",
        'hub.attach(model, hub.load("hf://ana/sst2"))',
        'model = AutoModelForSequenceClassification.from_pretrained("org/tiny")',
        'model = PeftModel.from_pretrained(model, "ana/sst2")',
    ):
        assert line in text.splitlines()
    assert "license" not in text
    [found] = api.list_models(filter=["pefthub", "lora"])
    assert found.id == "ana/sst2"


def test_card_of_a_method_that_peft_lacks(
    registry: hub.Registry, make_adapter: Make, api: HfApi
) -> None:
    registry.add(make_adapter("houlsby"), name="sst2")
    hub.push("sst2@1", "ana/sst2")
    text = read_card(api, "ana/sst2")
    data = ModelCard(text).data.to_dict()
    assert (data["library_name"], data["tags"]) == ("pefthub", ["pefthub", "houlsby"])
    assert "base_model" not in data
    assert "PeftModel" not in text


def test_path_of_a_local_base_is_no_base_model(
    registry: hub.Registry, api: HfApi, tmp_path: Path
) -> None:
    model = build_tiny("llama")
    model.config._name_or_path = str(tmp_path)
    registry.add(hub.Adapter.create("lora", model, r=2), name="sst2")
    hub.push("sst2@1", "ana/sst2")
    text = read_card(api, "ana/sst2")
    assert "base_model" not in ModelCard(text).data.to_dict()
    assert str(tmp_path) not in text


def test_readme_of_another_keeps_its_text_and_its_keys(sst2: hub.Adapter, api: HfApi) -> None:
    theirs = "---\nlicense: mit\ntags: [mine, lora]\nlanguage: de\n---\n\n# Ours\n\nRead this.\n"
    api.create_repo("ana/sst2")
    api.upload_file(path_or_fileobj=theirs.encode(), path_in_repo="README.md", repo_id="ana/sst2")
    hub.push("sst2@1", "ana/sst2")
    card = ModelCard(read_card(api, "ana/sst2"))
    assert card.text == "\n# Ours\n\nRead this.\n"
    data = card.data.to_dict()
    assert (data["license"], data["language"]) == ("mit", "de")
    assert data["tags"] == ["mine", "lora", "pefthub"]
    assert not hub.push("sst2@1", "ana/sst2").changed


def test_text_around_ours_stays_and_ours_is_renewed(
    sst2: hub.Adapter, registry: hub.Registry, make_adapter: Make, tmp_path: Path
) -> None:
    hub.push("sst2@1", tmp_path / "shared")
    readme = tmp_path / "shared" / "README.md"
    readme.write_text(readme.read_text().replace(BEGIN, f"Before.\n\n{BEGIN}") + "\nAfter.\n")
    assert not hub.push("sst2@1", tmp_path / "shared").changed
    registry.add(make_adapter(seed=2), name="sst2", task="sentiment")
    hub.push("sst2@2", tmp_path / "shared")
    text = readme.read_text()
    assert text.index("Before.") < text.index(BEGIN) < text.index("sst2@2") < text.index(END)
    assert text.index(END) < text.index("After.")
    assert "sst2@1" not in text


def test_metric_that_was_measured_later_is_a_new_card(
    sst2: hub.Adapter, registry: hub.Registry, api: HfApi
) -> None:
    hub.push("sst2@1", "ana/sst2")
    registry.record_metric("sst2@1", "f1", 0.75)
    assert hub.push("sst2@1", "ana/sst2").changed
    assert "| f1 | 0.75 |" in read_card(api, "ana/sst2").splitlines()


@pytest.mark.parametrize("readme", [b"---\n: [\n---\n", b"---\n- a\n---\n", b"\xff\xfe"])
def test_readme_that_can_not_be_read_is_left_alone(
    sst2: hub.Adapter, tmp_path: Path, readme: bytes
) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "README.md").write_bytes(readme)
    with pytest.raises(RemoteError, match=r"README\.md that is there can't be read") as caught:
        hub.push("sst2@1", tmp_path / "shared")
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["README.md"]
    assert (tmp_path / "shared" / "README.md").read_bytes() == readme


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(
    body=st.text(st.characters(codec="utf-8", exclude_characters="\x00\ufeff")),
    value=st.text(st.characters(codec="utf-8")),
)
def test_any_readme_keeps_its_text_and_is_settled_after_one_update(body: str, value: str) -> None:
    readme = f"---\nlicense: mit\n---\n{body}".encode()
    card = Card(**{**vars(CARD), "task": value, "training": {"note": value}})
    once = update_card(readme, card)
    assert update_card(once, card) == once
    kept = ModelCard(once.decode())
    assert kept.data.license == "mit"
    assert kept.text == body if body.strip() else END in kept.text


@given(value=st.text())
def test_no_value_ends_our_part_of_the_card(value: str) -> None:
    values = {"title": value, "task": value, "training": {value: value}, "metrics": {value: 1.0}}
    text = update_card(None, Card(**{**vars(CARD), **values})).decode("utf-8", "surrogatepass")
    assert (text.count(BEGIN), text.count(END)) == (1, 1)


PEFT = """
import sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, set_seed

folder, out = sys.argv[1:]
base = AutoModelForCausalLM.from_pretrained(folder)
model = PeftModel.from_pretrained(base, "ana/sst2").eval()
with torch.no_grad():
    torch.save(model(torch.arange(3, 10)[None]).logits, out)
model.push_to_hub("ana/theirs")
"""


def test_peft_reads_what_we_push_and_we_what_it_pushes(
    registry: hub.Registry,
    other: hub.Registry,
    make_adapter: Make,
    online: HubServer,
    tmp_path: Path,
) -> None:
    import torch

    model = build_tiny("llama")
    model.save_pretrained(tmp_path / "base")
    registry.add(make_adapter("lora"), name="sst2")
    hub.push("sst2@1", "ana/sst2")
    done = subprocess.run(
        [sys.executable, "-c", PEFT, str(tmp_path / "base"), str(tmp_path / "logits.pt")],
        env={**os.environ, "HF_ENDPOINT": online.url, "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    expected = torch.load(tmp_path / "logits.pt")
    theirs = hub.pull("ana/theirs", registry=other)
    assert theirs.reference == "theirs@1"
    assert theirs.base.label == str(tmp_path / "base")
    assert theirs.note is not None and theirs.note.endswith("its base can't be verified")
    assert other.load("theirs").base is None
    ids = torch.arange(3, 10)[None]
    for adapter in (registry.load("sst2"), other.load("theirs")):
        with hub.attach(model, adapter), torch.no_grad():
            torch.testing.assert_close(model(ids).logits, expected)
    assert adapter.base is None
    assert identify_base(model) == registry.get("sst2").base
