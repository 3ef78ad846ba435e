"""What peers load without a word, we name: one fault in an adapter's files a test."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import hub
from hub.errors import AttachError, BaseMismatch, FileError, HubError, MethodError
from tests.snapshots import shake_adapter, take_snapshot
from tests.tiny import build_tiny

CONFIG, TENSORS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", "hub.json"
FIRST = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def model() -> Any:
    return build_tiny("llama")


@pytest.fixture
def folder(model: Any, tmp_path: Path) -> Path:
    """A good adapter of ours."""
    return shake_adapter(hub.Adapter.create("lora", model, r=4)).save(tmp_path / "adapter")


@pytest.fixture
def foreign(folder: Path) -> Path:
    """The same as peft writes it: nothing says what its digests were."""
    (folder / MANIFEST).unlink()
    return folder


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / TENSORS)
    edit(tensors)
    save_file(tensors, folder / TENSORS)


def test_round_trip_is_exact(model: Any, folder: Path, tmp_path: Path) -> None:
    adapter = hub.load(folder)
    again = hub.load(adapter.save(tmp_path / "again"))
    assert again.config == adapter.config
    assert again.base == adapter.base
    assert again.tensors.keys() == adapter.tensors.keys()
    for name, tensor in adapter.tensors.items():
        assert torch.equal(again.tensors[name], tensor)
    for name in (CONFIG, TENSORS):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_saving_again_replaces_and_leaves_no_scratch(model: Any, folder: Path) -> None:
    adapter = hub.load(folder)
    adapter.save(folder)
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, TENSORS, MANIFEST]


def test_edited_alpha_is_found(folder: Path) -> None:
    edit_config(folder, lora_alpha=64)
    with pytest.raises(FileError, match=r"adapter_config.json is not the file that hub.json"):
        hub.load(folder)


def test_edited_weights_are_found(folder: Path) -> None:
    edit_tensors(folder, lambda t: t[f"{FIRST}.lora_A.weight"].mul_(2))
    with pytest.raises(FileError, match=r"adapter_model\.safetensors is not the file"):
        hub.load(folder)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_flipped_byte_is_found(data: st.DataObject, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    hub.Adapter.create("lora", build_tiny("llama"), r=1, targets=["q_proj"]).save(folder)
    name = data.draw(st.sampled_from([CONFIG, TENSORS]))
    content = bytearray((folder / name).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(content)
    with pytest.raises(FileError):
        hub.load(folder)


@pytest.mark.parametrize("keep", [0, 4, 7, 100, 2000, -1])
def test_truncated_safetensors_is_named_with_its_size(foreign: Path, keep: int) -> None:
    data = (foreign / TENSORS).read_bytes()[:keep]
    (foreign / TENSORS).write_bytes(data)
    with pytest.raises(FileError, match=rf"\({len(data)} bytes\).* cut short or damaged"):
        hub.load(foreign)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_refused(foreign: Path, value: float) -> None:
    edit_tensors(foreign, lambda t: t[f"{FIRST}.lora_A.weight"].view(-1)[3:5].fill_(value))
    with pytest.raises(
        FileError, match=r"lora_A\.weight holds 2 of 128 values that are not finite"
    ):
        hub.load(foreign)


def test_diverged_adapter_is_not_written(model: Any, tmp_path: Path) -> None:
    adapter = hub.Adapter.create("lora", model)
    next(iter(adapter.tensors.values())).data.fill_(float("nan"))
    with pytest.raises(FileError, match="not finite"):
        adapter.save(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
def test_a_pickle_is_never_opened(foreign: Path, name: str, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "opened",))

    (foreign / TENSORS).unlink()
    (foreign / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(FileError, match=f"{name} is a pickle, which can run code"):
        hub.load(foreign)
    (foreign / name).rename(foreign / TENSORS)
    with pytest.raises(FileError, match="is a pickle, which can run code"):
        hub.load(foreign)
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_missing_file_is_named_with_what_is_there(foreign: Path, name: str) -> None:
    (foreign / name).unlink()
    other = TENSORS if name == CONFIG else CONFIG
    with pytest.raises(FileError, match=f"has no {name}; it holds {other}"):
        hub.load(foreign)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"nowhere does not exist; give the folder that holds"):
        hub.load(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="file is a file"):
        hub.load(tmp_path / "file")


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "\x00"])
@pytest.mark.parametrize("name", [CONFIG, MANIFEST])
def test_broken_json_is_named(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    if name == CONFIG:
        (folder / MANIFEST).unlink()
    with pytest.raises(FileError, match=name):
        hub.load(folder)


@pytest.mark.parametrize("field", ["files", "method", "base", "metrics"])
def test_manifest_without_a_field_is_named(folder: Path, field: str) -> None:
    document = json.loads((folder / MANIFEST).read_text())
    del document[field]
    (folder / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(FileError, match=f"hub.json lacks what it must say: '{field}'"):
        hub.load(folder)


def test_newer_manifest_says_upgrade(folder: Path) -> None:
    document = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**document, "format": 9}))
    with pytest.raises(FileError, match="has format 9, this pefthub reads 1; upgrade"):
        hub.load(folder)


def test_unknown_method_names_those_installed(folder: Path) -> None:
    document = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**document, "method": "vera"}))
    with pytest.raises(
        MethodError, match=r"no method 'vera'; installed: .*lora, .*; install the plugin"
    ):
        hub.load(folder)


def test_unknown_peft_type_names_those_installed(foreign: Path) -> None:
    edit_config(foreign, peft_type="VERA")
    with pytest.raises(MethodError, match="no installed method reads peft_type 'VERA'") as caught:
        hub.load(foreign)
    assert str(caught.value).startswith(f"{foreign}: ")
    assert str(caught.value).endswith("install a plugin that does, or load the adapter with peft")


def test_field_that_is_not_known_names_the_folder(foreign: Path) -> None:
    edit_config(foreign, bias="all")
    with pytest.raises(MethodError, match=r"adapter_config.json has bias='all'") as caught:
        hub.load(foreign)
    assert str(caught.value).startswith(f"{foreign}: ")


def rename_first(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{FIRST}.lora_C.weight"] = tensors.pop(f"{FIRST}.lora_A.weight")


def drop_half(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if "lora_B" in name]:
        del tensors[name]


def drop_one(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[f"{FIRST}.lora_B.weight"]


def add_strange(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 32)


def add_base_weight(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.embed_tokens.weight"] = torch.zeros(99, 32)


def reshape_one(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{FIRST}.lora_A.weight"] = torch.zeros(8, 32)


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (rename_first, r"lacks .*q_proj.lora_A.weight; it has .*lora_C.weight with no place"),
        (drop_half, r"lacks .*lora_B.weight, .* and 11 more"),
        (drop_one, r"lacks model\.layers\.0\.self_attn\.q_proj\.lora_B\.weight"),
        (add_strange, r"has model\.layers\.7\..* with no place in it"),
        (add_base_weight, r"has model\.embed_tokens\.weight with no place in it"),
        (reshape_one, r"lora_A\.weight \(8, 32\) instead of \(4, 32\)"),
    ],
)
def test_wrong_keys_are_named_and_the_base_stays(
    model: Any, foreign: Path, edit: Callable[[dict[str, torch.Tensor]], None], text: str
) -> None:
    before = take_snapshot(model)
    edit_tensors(foreign, edit)
    with pytest.raises(AttachError, match=text):
        hub.attach(model, str(foreign))
    assert take_snapshot(model) == before


def test_key_without_the_prefix_is_refused(foreign: Path) -> None:
    edit_tensors(foreign, lambda t: t.update({"lm_head.weight": torch.zeros(99, 32)}))
    with pytest.raises(
        FileError, match=r"the tensor 'lm_head\.weight' is named unlike an adapter's"
    ):
        hub.load(foreign)


def test_wrong_base_is_refused_from_a_folder(folder: Path) -> None:
    other = build_tiny("llama", seed=9)
    before = take_snapshot(other)
    with pytest.raises(BaseMismatch, match="was made for"):
        hub.attach(other, str(folder))
    assert take_snapshot(other) == before


def test_full_disk_leaves_what_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    adapter = shake_adapter(hub.load(folder), seed=8)
    import os

    real, synced = os.fsync, []

    def fsync(handle: int) -> None:
        synced.append(handle)
        if len(synced) == 2:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(FileError, match="No space left on device; choose a folder that"):
        adapter.save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_every_fault_is_one_line(foreign: Path) -> None:
    edit_tensors(foreign, drop_half)
    with pytest.raises(HubError) as caught:
        hub.attach(build_tiny("llama"), str(foreign))
    assert "\n" not in str(caught.value)


def test_manifest_says_the_digests_of_both_files(folder: Path) -> None:
    document = json.loads((folder / MANIFEST).read_text())
    for name in (CONFIG, TENSORS):
        data = (folder / name).read_bytes()
        assert document["files"][name] == {
            "sha256": hashlib.sha256(data).hexdigest(),
            "size": len(data),
        }
