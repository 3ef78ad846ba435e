"""The tiny models of `hub.testing`, as our own tests use them."""

from hub.testing.models import CLASSES, DEFAULT, SMALL, SPECIAL, build_tiny, make_inputs

__all__ = ["CLASSES", "DEFAULT", "SMALL", "SPECIAL", "build_tiny", "make_inputs"]
