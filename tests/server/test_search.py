"""list_models: what the cards say can be found."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from huggingface_hub import HfApi

Connect = Callable[..., HfApi]

CARDS = {
    "ana/sst2-lora": "base_model: org/tiny\ntags: [sentiment, lora]\nlanguage: [en, de]\n",
    "ana/mnli-ia3": "base_model: org/other\ntags: nli\npipeline_tag: text-classification\n",
    "team/base": "library_name: transformers\nlicense: mit\ndatasets: [glue]\n",
}


@pytest.fixture
def full(connect: Connect) -> HfApi:
    """ana's client to a server with three models, the first two of them adapters."""
    api = connect()
    for repo, card in CARDS.items():
        api.create_repo(repo)
        api.upload_file(
            path_or_fileobj=f"---\n{card}---\n".encode(), path_in_repo="README.md", repo_id=repo
        )
        if "team" not in repo:
            api.upload_file(path_or_fileobj=b"{}", path_in_repo="adapter_config.json", repo_id=repo)
    return api


def find(api: HfApi, **asked: object) -> list[str]:
    return [model.id for model in api.list_models(**asked)]  # type: ignore[arg-type]


def test_models_are_found_by_tags_that_all_match(full: HfApi) -> None:
    assert find(full, filter="peft") == ["ana/mnli-ia3", "ana/sst2-lora"]
    assert find(full, filter=["peft", "lora"]) == ["ana/sst2-lora"]
    assert find(full, filter="base_model:org/tiny") == ["ana/sst2-lora"]
    assert find(full, filter="base_model:adapter:org/other") == ["ana/mnli-ia3"]
    assert find(full, filter=["license:mit", "dataset:glue"]) == ["team/base"]
    assert find(full, filter="de") == ["ana/sst2-lora"]
    assert find(full, filter="no-such-tag") == []


def test_models_are_found_by_author_name_and_task(full: HfApi) -> None:
    assert find(full, author="team") == ["team/base"]
    assert find(full, search="SST2") == ["ana/sst2-lora"]
    assert find(full, author="ana", search="lora") == ["ana/sst2-lora"]
    assert find(full, pipeline_tag="text-classification") == ["ana/mnli-ia3"]


def test_models_are_listed_newest_first_and_in_pages(full: HfApi) -> None:
    assert find(full) == ["team/base", "ana/mnli-ia3", "ana/sst2-lora"]
    full.upload_file(path_or_fileobj=b"1", path_in_repo="a", repo_id="ana/sst2-lora")
    assert find(full)[0] == "ana/sst2-lora"
    assert find(full, sort="created_at")[0] == "team/base"
    assert find(full, limit=2) == ["ana/sst2-lora", "team/base"]


def test_a_list_tells_what_was_asked_for_alone(full: HfApi) -> None:
    (bare,) = full.list_models(search="sst2")
    assert (bare.card_data, bare.sha, bare.siblings) == (None, None, None)
    (carded,) = full.list_models(search="sst2", cardData=True)
    assert carded.card_data is not None
    assert carded.card_data["base_model"] == "org/tiny"
    (whole,) = full.list_models(search="sst2", full=True)
    assert {sibling.rfilename for sibling in whole.siblings or []} == {
        "README.md",
        "adapter_config.json",
    }
    (expanded,) = full.list_models(search="sst2", expand=["sha"])
    assert (expanded.sha is None, expanded.tags) == (False, None)


def test_a_model_tells_its_card(full: HfApi) -> None:
    info = full.model_info("ana/mnli-ia3")
    assert info.library_name == "peft"
    assert info.pipeline_tag == "text-classification"
    assert info.author == "ana"
    assert info.tags is not None
    assert {"peft", "nli", "text-classification", "base_model:org/other"} <= set(info.tags)
    assert info.card_data is not None
    assert info.card_data["tags"] == ["nli"]
