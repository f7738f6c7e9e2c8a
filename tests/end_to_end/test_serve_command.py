"""The whole of it in a process of its own: `tetrad serve` on a random two-layer model."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx2 as httpx
import openai
import pytest

from tests.service.fakes import wait_until
from tests.watching import whole_lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.models import TinyRepositories

KEY = "sk-end-to-end"


@contextlib.contextmanager
def serving(
    folder: Path, variant: str, **settings: object
) -> Iterator[tuple[str, subprocess.Popen]]:
    """Run `tetrad serve`, its key in a file, its settings in another; give its address."""
    (folder / "key").write_text(KEY + "\n")
    (folder / "tetrad.yaml").write_text(
        json.dumps({"api_key_file": str(folder / "key"), "log_format": "json", **settings})
    )
    log = (folder / "log").open("w+")
    process = subprocess.Popen(
        [sys.executable, "-c", "from service.cli import main; main()", "serve", variant],
        env={**os.environ, "TETRAD_CONFIG": str(folder / "tetrad.yaml"), "TETRAD_PORT": "0"},
        stderr=log,
    )

    def lines() -> list[dict[str, object]]:
        return [json.loads(line) for line in whole_lines(folder / "log")]

    def url() -> str:
        return next((str(line["url"]) for line in lines() if line["event"] == "listening"), "")

    try:
        wait_until(lambda: bool(url()) or process.poll() is not None, limit_s=60)
        ready = f"{url()}/health/ready"
        wait_until(lambda: httpx.get(ready).status_code == 200, limit_s=60)
        yield url(), process
    finally:
        process.kill()
        process.wait()
        log.close()


def connect(url: str, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


@pytest.mark.smoke
@pytest.mark.slow
def test_variant_is_served_from_its_name_to_its_tokens(tmp_path, tiny_repo: TinyRepositories):
    variant = tiny_repo.specs()[1]
    settings = {
        "cache_dir": str(tiny_repo.cache_dir),
        "local_files_only": True,
        "backend": "reference",
        "max_num_seqs": 4,
        "num_threads": 1,
    }
    with serving(tmp_path, variant, **settings) as (url, process), connect(url) as client:
        (model,) = client.models.list()
        assert model.id == variant
        described = client.models.retrieve(variant)
        assert described.provenance["kernel"] == "reference"
        assert described.self_test["passed"]
        assert "model.layers.1.mlp.down_proj" in str(described.self_test["checks"])
        (told,) = httpx.get(f"{url}/health/ready").json()["variants"]
        assert told["self_test"]["passed"]

        messages = [{"role": "user", "content": "hi"}]
        asked = {"model": variant, "messages": messages, "temperature": 0, "max_tokens": 12}
        whole = client.chat.completions.create(**asked)
        stream = client.chat.completions.create(**asked, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert text == whole.choices[0].message.content
        assert whole.usage.completion_tokens == 12
        assert whole.system_fingerprint.startswith("fp_")

        with connect(url, "sk-wrong") as stranger, pytest.raises(openai.AuthenticationError):
            stranger.models.list()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert KEY not in (tmp_path / "log").read_text()
