"""VeRA keeps every promise of a method."""

from hub.testing import MethodContract


class TestVeRA(MethodContract):
    method = "vera"
    merges = True
