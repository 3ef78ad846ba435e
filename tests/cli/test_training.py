"""`hub train` and `hub eval`."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoConfig, AutoModelForSequenceClassification

import hub
from hub.cli.models import choose_kind, describe_loading, shorten
from hub.cli.training import register
from hub.cli.within import read_within
from hub_registry import StorageError
from tests.cli.conftest import Run
from tests.snapshots import shake_adapter
from tests.tiny import build_tiny

QUICK = "--max-steps 2 --batch-size 4"
TRAIN = f"train --base bert --method lora --data reviews.jsonl {QUICK}"


def test_train_registers_a_version_and_tells_its_share(run: Run, registry: hub.Registry) -> None:
    result = run(f"{TRAIN} --name reviews --task sentiment --set r=2 --set targets=attention")
    version = registry.get("reviews@1")
    assert (version.method, version.task, version.config["r"]) == ("lora", "sentiment", 2)
    assert all("attention" in path for path in version.config["targets"])
    assert result.stdout.splitlines()[0] == "reviews@1"
    assert "trainable" in result.stdout
    assert result.stderr == ""


def test_train_finds_the_labels_in_the_data(read: Callable[..., Any]) -> None:
    rows = [{"text": f"a {word} film", "label": word} for word in ("dull", "fine", "cold")]
    Path("three.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read(f"train --base bert --method lora --data three.jsonl {QUICK} --name three")
    adapter = hub.load("three@1")
    assert adapter.lineage["labels"] == ["cold", "dull", "fine"]
    assert len(adapter.tensors["classifier.weight"]) == 3


def test_train_counts_numbered_labels_to_the_highest(read: Callable[..., Any]) -> None:
    Path("numbers.csv").write_text("text,label\na dull film,0\na fine film,4\n")
    read(f"train --base bert --method lora --data numbers.csv {QUICK} --name numbers")
    assert len(hub.load("numbers@1").tensors["classifier.weight"]) == 5


def test_train_json_has_the_numbers(read: Callable[..., Any]) -> None:
    document = read(f"{TRAIN} --name reviews --eval-data test.jsonl")
    assert document["reference"] == "reviews@1"
    assert document["steps"] == 2
    assert document["metrics"].keys() == {"accuracy"}
    assert 0 < document["trainable"] < document["total"]
    assert document["output"] is None


def test_train_learns_what_the_data_says(read: Callable[..., Any]) -> None:
    line = "train --base bert --method lora --data reviews.jsonl --eval-data reviews.jsonl"
    document = read(f"{line} --name reviews --epochs 30 --learning-rate 0.02")
    assert document["metrics"]["accuracy"] == 1.0


def test_train_a_language_model_by_its_base(read: Callable[..., Any]) -> None:
    document = read(
        f"train --base ./llama --method houlsby --data reviews.jsonl --name words "
        f"--eval-data test.jsonl --metric accuracy --choice good --choice bad {QUICK}"
    )
    assert document["metrics"].keys() == {"accuracy"}
    assert hub.load("words").task_type == "CAUSAL_LM"


def test_train_into_a_folder_loads_from_there(run: Run, registry: hub.Registry) -> None:
    assert run(f"{TRAIN} --output out").stdout.startswith("out\n")
    assert hub.load("./out").method == "lora"
    assert registry.adapters() == []


def test_train_again_into_a_folder_keeps_what_is_there(run: Run, fail: Callable[..., str]) -> None:
    run(f"{TRAIN} --output out")
    before = Path("out/adapter_model.safetensors").read_bytes()
    assert "out holds an adapter already" in fail(f"{TRAIN} --output out --seed 1")
    assert Path("out/adapter_model.safetensors").read_bytes() == before


def test_train_resumes_to_the_same_adapter(run: Run) -> None:
    line = "train --base bert --method lora --data reviews.jsonl --epochs 2 --batch-size 8"
    run(f"{line} --output whole")
    run(f"{line} --output halves")
    # As a kill after the first of the two epochs leaves it.
    last = max(Path("halves/checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name[11:]))
    (last / "trainer_state.json").unlink()
    for path in Path("halves").glob("adapter_*"):
        path.unlink()
    Path("halves/hub.json").unlink()
    run(f"{line} --output halves --resume")
    name = "adapter_model.safetensors"
    assert Path("whole", name).read_bytes() == Path("halves", name).read_bytes()


def test_train_with_the_same_seed_gives_the_same_version(
    read: Callable[..., Any], registry: hub.Registry
) -> None:
    for name in ("a", "b"):
        read(f"{TRAIN} --name {name} --seed 3")
    tensors = [registry.get(name).files["adapter_model.safetensors"] for name in ("a", "b")]
    assert tensors[0] == tensors[1]


LLAMA = f"train --base ./llama --data reviews.jsonl {QUICK}"


@pytest.fixture(scope="module")
def llama() -> Any:
    return build_tiny("llama")


@pytest.fixture
def parts(registry: hub.Registry, llama: Any) -> hub.Registry:
    """de@1 and fr@1, of the base `llama`; de@production is de@1."""
    for name, method in (("de", "lora"), ("fr", "houlsby")):
        registry.add(shake_adapter(hub.Adapter.create(method, llama), scale=0.1), name=name)
    registry.alias("de@1", "production")
    return registry


def read_tensors(registry: hub.Registry, reference: str) -> dict[str, Any]:
    adapter = registry.load(reference)
    assert isinstance(adapter, hub.Adapter)
    return dict(adapter.tensors)


def test_train_within_a_composition_has_its_parts_as_parents(
    parts: hub.Registry, read: Callable[..., Any], run: Run
) -> None:
    line = f"{LLAMA} --method houlsby --set size=3 --within 'stack(de@production, new)'"
    document = read(f"{line} --name qa")
    assert document["within"] == "stack(de@1, qa@1)"
    assert parts.get("qa@1").parents == ("de@1",)
    adapter = parts.load("qa@1")
    assert isinstance(adapter, hub.Adapter)
    assert adapter.lineage["parents"] == ["de@1"]
    assert adapter.lineage["training"]["within"] == "stack(de@1, new)"
    run("compose 'stack(de@production, qa)' --name both")
    assert parts.get("both").parents == ("de@1", "qa@1")
    run(f"{LLAMA} --method houlsby --set size=3 --name alone")
    alone = read_tensors(parts, "alone")
    assert any(not tensor.equal(alone[name]) for name, tensor in adapter.tensors.items())
    assert "within" not in run(f"{LLAMA} --method ia3 --name plain").stdout


def test_train_a_fusion_of_two_versions(
    parts: hub.Registry, read: Callable[..., Any], run: Run
) -> None:
    line = f"{LLAMA} --method fusion --set value=false --set size=2"
    document = read(f"{line} --within 'fuse(de, fr@1; new)' --name fused")
    assert document["within"] == "fuse(de@1, fr@1; fused@1)"
    version = parts.get("fused@1")
    assert (version.method, version.parents) == ("fusion", ("de@1", "fr@1"))
    assert version.config["size"] == 2
    assert 0 < document["trainable"] < document["total"]
    run("compose 'fuse(de, fr; fused)' --name both")
    assert read("eval both --data test.jsonl")["metrics"].keys() == {"perplexity"}


def test_a_fuse_of_classifiers_may_be_for_a_task_of_other_classes(
    run: Run, read: Callable[..., Any]
) -> None:
    rows = [{"words": f"a {word} film", "label": word} for word in ("dull", "fine", "cold")]
    Path("three.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in "ab":
        run(f"{TRAIN} --method pfeiffer --name {name}")
    read(
        f"train --base bert --method fusion --within 'fuse(a, b; new)' --data three.jsonl {QUICK} "
        "--template '{{ words }}|||{{ label }}' --name led"
    )
    led = hub.load("led")
    assert isinstance(led, hub.Adapter)
    assert led.lineage["labels"] == ["cold", "dull", "fine"]
    run("compose 'fuse(a, b; led)' --name fused")
    assert read("eval fused --data three.jsonl")["metrics"].keys() == {"accuracy"}


@pytest.fixture
def classifiers(registry: hub.Registry) -> hub.Registry:
    """c1@1 and c2@1, classifiers of three classes on the base `bert`; plain@1 has no head."""
    model = AutoModelForSequenceClassification.from_pretrained("bert", num_labels=3)
    for seed, name in enumerate(["c1", "c2", "plain"]):
        adapter = hub.Adapter.create("lora", model, head=name != "plain", r=1)
        adapter = shake_adapter(adapter, seed=seed)
        adapter.lineage["labels"] = ["bad", "good", "odd"]
        registry.add(adapter, name=name)
    return registry


@pytest.mark.parametrize(
    ("within", "note"),
    [
        ("stack(c1, new)", "c1@1 answers"),
        ("stack(new, c1)", "c1@1 answers"),
        ("stack(average(c1, c2), new)", "c1@1 and c2@1 answer"),
        ("stack(c1, average(new, none))", "c1@1 answers"),
        ("stack(plain, new)", None),
        ("average(c1, new)", None),
    ],
)
def test_train_on_top_of_a_classifier_makes_no_second_head(
    classifiers: hub.Registry, run: Run, within: str, note: str | None
) -> None:
    result = run(f"{TRAIN} --set r=1 --within '{within}' --name qa")
    trained = classifiers.load("qa@1")
    assert isinstance(trained, hub.Adapter)
    said = f"note: the new adapter is made without a trained head: {note}\n" if note else ""
    assert result.stderr == said
    assert trained.heads == (() if note else ("classifier",))
    for name, tensor in read_tensors(classifiers, "c1").items():
        assert tensor.equal(read_tensors(classifiers, "c1@1")[name])
    run(f"compose '{within.replace('new', 'qa')}' --name both")
    run("eval both --data test.jsonl")


def test_train_in_a_fuse_that_answers_makes_no_head_and_of_one_beside_a_classifier_neither(
    classifiers: hub.Registry, run: Run
) -> None:
    run(f"{TRAIN} --within 'fuse(c1, c2; new)' --name cf".replace("lora", "fusion"))
    for line in (
        f"{TRAIN} --set r=1 --within 'fuse(c1, new; cf)' --name part",
        f"{TRAIN} --within 'stack(cf, new)' --name top",
    ):
        assert "cf@1" in run(line, 0 if "part" in line else 1).stderr
    part = classifiers.load("part@1")
    assert isinstance(part, hub.Adapter)
    assert part.heads == ()
    line = f"{TRAIN} --within 'stack(c1, fuse(c2, plain; new))' --name silent"
    assert "note: the new adapter is made without" in run(line.replace("lora", "fusion")).stderr
    assert classifiers.load("silent@1").heads == ()  # type: ignore[union-attr]


def test_train_within_shows_where_and_takes_folders(parts: hub.Registry, run: Run) -> None:
    run("export de ./german")
    line = f"{LLAMA} --method lora --within 'average(./german, fr, new; 1, 1, 2)'"
    result = run(f"{line} --name qa --output out")
    assert "within     average(./german, fr@1, qa@1; 1.0, 1.0, 2.0)" in result.stdout
    assert parts.get("qa@1").parents == ("fr@1",)
    told = hub.load("./out").lineage["training"]  # type: ignore[union-attr]
    assert (told["learners"], told["within"]) == (
        ["new"],
        "average(./german, fr@1, new; 1.0, 1.0, 2.0)",
    )
    within = read_within("average(./german, de@production, new)", "lora", parts)
    assert within.show(None) == "average(./german, de@1, new)"
    assert within.parents == ("de@1",)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("--within 'stack(de'", "is no composition: at 9 there is the end"),
        ("--within de", "composes nothing; write an operator over references"),
        ("--within 'stack(de, fr)'", "does not say where the new adapter stands; write new in its"),
        ("--within 'stack(it, new)'", "there is no adapter 'it'"),
        ("--within 'stack(de@7, new)'", "'de' has no version 7"),
        ("--within 'fuse(de, fr; new)'", "what leads a fuse is of the method fusion; train it"),
        ("--method fusion --within 'stack(de, new)'", "a fusion leads a fuse; write fuse(a, b; ne"),
        ("--method fusion", "or hub train --within 'fuse(a, b; new)'"),
        ("--within 'batchsplit(de, new)'", "a batchsplit gives rows adapters of their own"),
        ("--within 'stack(sst2, new)'", "was made for"),
        ("--within 'stack(./nothing, new)'", "nothing does not exist"),
    ],
)
def test_train_within_fails_in_one_line(
    change: str,
    expected: str,
    parts: hub.Registry,
    add: Callable[..., Any],
    fail: Callable[..., str],
) -> None:
    add()
    before = len(parts.list())
    assert expected in fail(f"{LLAMA} --method lora --name x {change}")
    assert len(parts.list()) == before


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("--method lra", "no method 'lra'"),
        ("--set r=0", "lora: r is 0"),
        ("--set rank=4", "lora has no option 'rank'"),
        ("--data nothing.jsonl", "nothing.jsonl does not exist"),
        ("--template '{{ txt }}|||{{ label }}'", "'txt' is undefined"),
        ("--base ./nothing", "the base ./nothing does not exist"),
        ("--base reviews.jsonl", "the base reviews.jsonl is a file"),
        ("--base org/nothing/at/all", "can't load the configuration of the base org/nothing"),
        ("--name 'a b'", "'a b' is no adapter name"),
        ("--task ''", "can't be a task"),
        ("--output reviews.jsonl", "reviews.jsonl is a file"),
        ("--eval-data test.jsonl --metric f1", "no metric 'f1'"),
        ("--batch-size 0", "batch_size is 0"),
        ("--resume --output new", "holds no run to resume"),
        ("--base ''", "the base has no name"),
        ("--kind seq2seq", "has no model for --kind seq2seq; choose another --kind"),
        ("--eval-data test.jsonl --choice good", "a classifier chooses among its labels"),
    ],
)
def test_train_fails_in_one_line(change: str, expected: str, fail: Callable[..., str]) -> None:
    assert expected in fail(f"{TRAIN} --name reviews {change}")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (TRAIN, "--name, --output, or both"),
        (f"{TRAIN} --name a --resume", "--resume needs --output"),
        (f"{TRAIN} --name a --set r", "write --set r=8"),
        (f"{TRAIN} --name a --kind other", "'other' is not one of"),
        (f"{TRAIN} --name a --seed 4294967296", "is not in the range"),
        (f"{TRAIN} --name a --metric accuracy", "--metric needs --eval-data"),
        (f"{TRAIN} --name a --choice good", "--choice needs --eval-data"),
    ],
)
def test_train_wrong_usage_exits_2(line: str, expected: str, run: Run) -> None:
    assert expected in run(line, 2).stderr


def test_what_could_not_be_registered_is_kept(
    registry: hub.Registry, model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = hub.Adapter.create("lora", model)
    with pytest.raises(hub.HubError, match="is no "):
        register(registry, adapter, "a b", None)
    kept = re.search(r"the trained adapter is in (.+?); add it with", capsys.readouterr().err)
    assert kept is not None
    assert hub.load(kept[1]).tensors.keys() == adapter.tensors.keys()
    shutil.rmtree(kept[1])


@pytest.mark.parametrize(
    ("kind", "architecture", "expected"),
    [
        ("bert", "BertForMaskedLM", "classification"),
        ("bert", "BertForPreTraining", "classification"),
        ("bert", "BertModel", "classification"),
        ("llama", "LlamaForSequenceClassification", "classification"),
        ("llama", "LlamaForCausalLM", "causal"),
        ("llama", None, "causal"),
        ("gpt2", "GPT2LMHeadModel", "causal"),
        ("t5", "T5ForConditionalGeneration", "seq2seq"),
        ("bart", "BartForSequenceClassification", "classification"),
    ],
)
def test_a_base_learns_what_it_was_made_for(
    kind: str, architecture: str | None, expected: str
) -> None:
    config = AutoConfig.for_model(kind, architectures=[architecture] if architecture else None)
    assert choose_kind(config) == expected


def test_a_base_that_knows_the_labels_keeps_its_head(read: Callable[..., Any]) -> None:
    names = {0: "good", 1: "bad", 2: "unsure"}
    known = build_tiny("bert", "classification", id2label=names)
    shutil.copytree("bert", "known", symlinks=False)
    known.save_pretrained("known")
    read(f"train --base known --method lora --data reviews.jsonl {QUICK} --name known")
    adapter = hub.load("known")
    assert adapter.lineage["labels"] == ["good", "bad", "unsure"]
    assert len(adapter.tensors["classifier.weight"]) == 3


def test_train_with_one_label_names_it(fail: Callable[..., str]) -> None:
    Path("one.jsonl").write_text('{"text": "a", "label": "good"}\n' * 2)
    line = f"train --base bert --method lora --data one.jsonl {QUICK} --name one"
    assert "every row has the label 'good'" in fail(line)


def test_eval_uses_what_the_training_said_and_records(
    run: Run, read: Callable[..., Any], registry: hub.Registry
) -> None:
    run(f"{TRAIN} --name reviews")
    document = read("eval reviews --data test.jsonl")
    assert document["reference"] == "reviews@1"
    assert (document["samples"], document["recorded"]) == (6, True)
    assert registry.get("reviews@1").metrics == document["metrics"]
    assert "on test.jsonl (6 samples)" in registry.log("reviews")[0].what


def test_what_a_base_lacks_is_noted_and_always_the_same(run: Run) -> None:
    result = run(f"train --base masked --method lora --data reviews.jsonl --name masked {QUICK}")
    assert "note: the base masked has no weights for bert.pooler.dense.bias and 1 more" in (
        result.stderr
    )
    assert "note" in run("eval masked --data test.jsonl").stderr


def test_eval_without_recording_leaves_the_log(run: Run, registry: hub.Registry) -> None:
    run(f"{TRAIN} --name reviews")
    assert "recorded  no" in run("eval reviews@1 --data test.jsonl --no-record").stdout
    assert len(registry.log("reviews")) == 1


def test_eval_a_folder_with_several_metrics(run: Run, read: Callable[..., Any]) -> None:
    run(f"train --base llama --method lora --data reviews.jsonl --output out {QUICK}")
    document = read("eval ./out --data test.jsonl --metric perplexity --metric exact_match")
    assert document["metrics"].keys() == {"perplexity", "exact_match"}
    assert document["recorded"] is False


def test_eval_on_another_base_fails_in_one_line(run: Run, fail: Callable[..., str]) -> None:
    run(f"{TRAIN} --name reviews")
    assert "was made for" in fail("eval reviews --data test.jsonl --base llama")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("eval sst3 --data test.jsonl", "close names are sst2"),
        ("eval sst2 --data test.jsonl", "does not say its template"),
        ("eval sst2 --data test.jsonl --template '{{ text }}|||{{ label }}'", "does not say which"),
        ("eval ./nothing --data test.jsonl", "nothing does not exist"),
    ],
)
def test_eval_fails_in_one_line(
    line: str, expected: str, fail: Callable[..., str], add: Callable[..., Any]
) -> None:
    add()
    assert expected in fail(line)


@pytest.fixture
def mangled(workplace: Path) -> Path:
    """`mangled`, a copy of `bert` to be changed."""
    return Path(shutil.copytree(workplace / "bert", workplace / "mangled", symlinks=False))


def test_a_base_without_a_tokenizer_is_refused(mangled: Path, fail: Callable[..., str]) -> None:
    for path in mangled.glob("*token*"):
        path.unlink()
    line = fail(f"{TRAIN} --name a --base mangled")
    assert "the base mangled has no tokenizer (what it has knows 5 tokens)" in line


def test_a_base_whose_weights_are_cut_short_is_refused(
    mangled: Path, fail: Callable[..., str]
) -> None:
    path = mangled / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "are cut short or damaged" in fail(f"{TRAIN} --name a --base mangled")


def test_a_base_is_remembered_by_its_whole_path(
    run: Run, registry: hub.Registry, workplace: Path
) -> None:
    run(f"{TRAIN} --name reviews")
    assert registry.get("reviews").base.repo == str(workplace / "bert")


def test_a_base_from_a_server_that_is_away_names_it(
    fail: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    line = fail(f"{TRAIN} --name a --base org/nothing")
    assert "HF_HUB_OFFLINE is set" in line


@pytest.mark.usefixtures("online")
def test_a_base_that_the_hub_has_not_is_named(fail: Callable[..., str]) -> None:
    line = fail(f"{TRAIN} --name a --base org/nothing")
    assert "has no repository org/nothing" in line
    assert line.endswith("or give the folder of a model")


def test_the_hubs_errors_keep_their_way_out() -> None:
    try:
        raise OSError("We couldn't connect") from HfHubHTTPError.__bases__[0]("refused")
    except OSError as error:
        line = describe_loading(error, "org/base", "model", None)
    assert "can't be reached (refused); check the network, or HF_ENDPOINT" in line


def test_what_transformers_says_is_cut_between_sentences() -> None:
    text = "One. " + "x" * 200 + ". " + "y" * 200 + "."
    assert shorten(text) == "One. " + "x" * 200


def test_eval_that_could_not_record_does_not_measure(
    run: Run, fail: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(f"{TRAIN} --name reviews")

    def refuse(*_: Any) -> None:
        raise StorageError("the database can't be opened for this")

    monkeypatch.setattr(hub.Registry, "check_writable", refuse)
    # The base is not looked for any more.
    line = fail("eval reviews --data test.jsonl --base ./nothing")
    assert line == "the database can't be opened for this"
    assert "recorded  no" in run("eval reviews --data test.jsonl --no-record").stdout


@pytest.fixture
def small() -> Path:
    """A folder with a base whose sizes bitsandbytes takes on every processor."""
    build_tiny("llama", hidden_size=64, intermediate_size=128).save_pretrained("small")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path("llama") / name, "small")
    return Path("small")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("form", "said"), [("nf4", "bitsandbytes-nf4-double"), ("int8", "bitsandbytes-int8")]
)
def test_train_on_a_quantized_base_and_measure_there(
    read: Callable[..., Any], run: Run, form: str, said: str
) -> None:
    read(f"train --base ./small --quantize {form} --method lora --data reviews.jsonl "
         f"--optimizer adamw_8bit --name q {QUICK}")  # fmt: skip
    base = hub.load("q").base
    assert base is not None and base.quantization == said
    own = run("eval q --data test.jsonl --json")
    assert own.stderr == ""
    whole = run("eval q --data test.jsonl --quantize none --json")
    assert f"the quantization is none, not {said}" in whole.stderr
    assert json.loads(own.stdout)["metrics"] != json.loads(whole.stdout)["metrics"]


def test_train_a_new_head_on_a_quantized_base(read: Callable[..., Any]) -> None:
    read(f"{TRAIN} --quantize int8 --name q")
    adapter = hub.load("q")
    assert adapter.tensors["classifier.weight"].shape == (2, 32)
    assert adapter.base is not None and adapter.base.quantization == "bitsandbytes-int8"
    assert read("eval q --data test.jsonl")["metrics"].keys() == {"accuracy"}


@pytest.mark.usefixtures("small")
def test_quantizing_without_bitsandbytes_says_what_to_install(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.cli.quantizing.find_spec", lambda name: None)
    result = run(
        f"train --base ./small --quantize nf4 --method lora --data reviews.jsonl --name q {QUICK}",
        code=1,
    )
    assert "run: pip install 'pefthub[quantized]'" in result.stderr


@pytest.mark.usefixtures("small")
def test_paged_optimizer_without_a_gpu_is_refused(run: Run) -> None:
    result = run(
        "train --base ./small --method lora --data reviews.jsonl --name q "
        f"--optimizer paged_adamw_8bit {QUICK}",
        code=1,
    )
    assert "the model is on the cpu; take adamw_8bit" in result.stderr
