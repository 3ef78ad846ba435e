"""The tokenizer that every test here shares."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from tests.training.tasks import make_tokenizer


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()
