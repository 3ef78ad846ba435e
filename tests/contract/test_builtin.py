"""Every method that comes with the hub passes its contract."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import ClassVar

from hub.testing import MethodContract

NO_BIAS = "this base has no biases to train"
# What all keys of a query have in common, its softmax takes away again.
SAME = "the softmax over keys ignores what is added to all of them"
KEY_BIAS = {r"bert\..*\.key\.bias\b": SAME}


class Contract(MethodContract):
    """On fewer models than a plugin's author gets: all methods together take minutes otherwise."""

    models: ClassVar[Sequence[str]] = ("llama", "gpt2", "bert/classification", "t5", "mixtral")
    combines: ClassVar[bool | None] = True


class PromptContract(Contract):
    options = {"tokens": 3}
    merges = False


class TestLoRA(Contract):
    method = "lora"
    merges = True


class TestDoRA(Contract):
    method = "lora"
    options = {"dora": True}
    models = ("llama", "gpt2")


class TestHoulsby(Contract):
    method = "houlsby"
    options = {"size": 4, "layer_norms": True}
    merges = False


class TestIA3(Contract):
    method = "ia3"
    merges = True


class TestBitFit(Contract):
    method = "bitfit"
    refuses = {"llama": NO_BIAS, "t5": NO_BIAS, "mixtral": NO_BIAS}
    models = ("gpt2", "bert/classification", "bloom", "llama", "t5", "mixtral")
    inert = {**KEY_BIAS, r"bert\..*\.key$": SAME}


class TestPfeiffer(Contract):
    method = "pfeiffer"
    options = {"size": 4}
    merges = False


class TestParallel(Contract):
    method = "parallel"
    options = {"size": 4}
    merges = False


class TestPrefix(Contract):
    method = "prefix"
    options = {"tokens": 3}
    models = (*Contract.models, "bert", "bloom")
    merges = False


class TestPrefixProjection(Contract):
    method = "prefix"
    options = {"tokens": 3, "projection": True, "hidden_size": 8}
    models = ("llama", "t5")


class TestPrompt(PromptContract):
    method = "prompt"
    models = (*Contract.models, "bert", "bloom")


class TestPTuning(PromptContract):
    method = "ptuning"


class TestPTuningLSTM(PromptContract):
    method = "ptuning"
    options = {"tokens": 3, "encoder": "lstm", "hidden_size": 8}
    models = ("llama", "t5")


class TestLLaMAAdapter(Contract):
    method = "llama_adapter"
    options = {"tokens": 3, "layers": 2}
    refuses = {"gpt2": "not from a projection each"}
    merges = False


class TestFull(Contract):
    method = "full"
    merges = True
    inert = KEY_BIAS


class TestDiff(Contract):
    method = "diff"
    options = {"density": 0.5}  # so that something is left of every weight
    models = ("llama", "gpt2", "bert/classification")
    inert = {**KEY_BIAS, r".*\.(gate|group)$": "most gates are open, which has no slope"}
    shake = 0.001  # gates move 500 times as fast as weights


# What chooses among what others give is attached inside hub.Fuse alone, so it is no subject of a
# contract that attaches each adapter as it is; its promises are in tests/methods/test_fusion.py.
LEADERS = {"fusion"}


def test_no_method_is_left_out() -> None:
    here = [kind for kind in globals().values() if isinstance(kind, type)]
    tried = {kind.method for kind in here if issubclass(kind, Contract) and hasattr(kind, "method")}
    installed = {
        entry.name
        for entry in entry_points(group="hub")
        if entry.dist is not None and entry.dist.name == "pefthub"
    }
    assert tried == installed - LEADERS
    assert installed >= LEADERS
