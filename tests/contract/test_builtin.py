"""Every method that comes with the hub passes its contract."""

from hub.testing import MethodContract


class TestLoRA(MethodContract):
    method = "lora"
    merges = True


class TestHoulsby(MethodContract):
    method = "houlsby"
    options = {"size": 4, "layer_norms": True}
    merges = False
