"""What tests share: models, each made once a session, and the same random numbers every time."""

from __future__ import annotations

import os
import signal
import tempfile
from typing import TYPE_CHECKING

import pytest
import torch

# Triton reads it once, when it is first imported, which libraries do. Without a GPU the tests of
# kernels run in its interpreter; nothing else here launches any.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from loaders.cache import default_cache_dir
from loaders.demo import DemoRepositories, build_demo
from loaders.repository.download import RetryPolicy
from tests import models

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast


def pytest_configure() -> None:
    """Let Ctrl-C work in the programs that tests start, also where the tests run in the background.

    A shell lets what it starts with "&" ignore SIGINT, and programs inherit that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # What somebody left on this machine to be answered later is not the tests' to answer.
    os.environ["XDG_STATE_HOME"] = f"{tempfile.gettempdir()}/tetrad-tests-{os.getpid()}"
    # What servers would measure beside other tests says nothing, and would make each start longer.
    os.environ["TETRAD_CPU_KERNEL_CHOICE"] = "fixed"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no process is left alone with one."""
    long_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long_files)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed what fixtures draw; the next one seeds the test, whichever fixtures were made for it."""
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """What fails once fails again; tests that want many draws say so, and seed them."""
    torch.manual_seed(0)


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a catalogue wait milliseconds only before it asks a hub again."""
    retry_policy = RetryPolicy(
        max_tries=5, first_wait_s=0.001, longest_wait_s=0.002, logged_from_s=5.0
    )
    monkeypatch.setattr("loaders.repository.hub.repository.RETRY_POLICY", retry_policy)


@pytest.fixture(scope="session")
def demo() -> DemoRepositories:
    """The demo's repositories, built in the user's cache unless they lie there already."""
    return build_demo(default_cache_dir(), on_progress=print)


@pytest.fixture(scope="session")
def demo_cache(demo: DemoRepositories) -> Path:
    """The hub cache that holds the demo."""
    return demo.cache_dir


@pytest.fixture(scope="session")
def tiny_repo(tmp_path_factory: pytest.TempPathFactory) -> models.TinyRepositories:
    """A hub cache with the random two-layer model: the first card's six branches, and AWQ 128g."""
    return models.write_tiny_repositories(tmp_path_factory.mktemp("tiny-cache"))


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """The random model's byte-level tokenizer: `<s>` before every text, a ChatML template."""
    return models.tiny_tokenizer()
