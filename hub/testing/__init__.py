"""The contract of a method, for those who write one.

    from hub.testing import MethodContract

    class TestShift(MethodContract):
        method = "shift"
        options = {"role": "value"}

Every promise in docs/plugins.md is then tested on tiny models of several architectures, on a CPU
and offline. pytest runs it; nothing here imports it.

contract    the class
subject     a method on a model, and how a promise is broken
learning    training, seeds, checkpointing, half precision
acting      every site that is claimed
serving     shapes, padding, rows, generation, company
keeping     files, configuration, what is refused
leaving     detaching and merging
combining   several in one
models      the tiny models
snapshots   what must be left as it was
"""

from hub.testing.contract import MODELS, MethodContract
from hub.testing.models import SMALL, build_tiny, make_inputs
from hub.testing.subject import BrokenPromise, Subject

__all__ = [
    "MODELS",
    "SMALL",
    "BrokenPromise",
    "MethodContract",
    "Subject",
    "build_tiny",
    "make_inputs",
]
