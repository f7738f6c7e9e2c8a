"""Models that many tests share, each made once a session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import models

if TYPE_CHECKING:
    from tests.models import TinyRepositories


@pytest.fixture(scope="session")
def tiny_repo(tmp_path_factory: pytest.TempPathFactory) -> TinyRepositories:
    """A hub cache with the random two-layer model: the first card's six branches, and AWQ 128g."""
    return models.write_tiny_repositories(tmp_path_factory.mktemp("tiny-cache"))


@pytest.fixture(scope="session")
def tiny_tokenizer() -> models.PreTrainedTokenizerFast:
    """The random model's byte-level tokenizer: `<s>` before every text, a ChatML template."""
    return models.tiny_tokenizer()
