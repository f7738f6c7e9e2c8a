"""A layer damaged in the memory of a real engine: found, told, and its kernel replaced."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any

import openai
import pytest
import torch

from loaders.demo import DEMO_REPO
from tests import models
from tests.dequantize import dequantized_model
from tests.greedy import may_say
from tests.service.fakes import wait_until
from tests.service.real_server import serving

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.service.real_server import RealServer

pytestmark = pytest.mark.slow

PROMPT, NUM_TOKENS = "def reverse(text):", 12
SMALL = {"max_model_len": 256, "kv_cache_size": 2**22}
GIVEN_UP = "without kernel int4pack: differed from the files while it was serving"
LAYER = "model.layers.1.mlp.down_proj"
# Of an idle demo, from the damage until the next kernel serves.
REPLACED_WITHIN_S = 30


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory) -> Path:
    return models.write_gptq_checkpoint(
        tmp_path_factory.mktemp("tiny") / "tiny-model",
        models.tiny_llama(max_position_embeddings=512),
        tokenizer=models.tiny_tokenizer(),
    )


def serving_with(
    folder: Path, variant: str, damage: dict[str, Any], **settings: Any
) -> AbstractContextManager[RealServer]:
    damage = {"when": str(folder / "now"), "layer": LAYER, "factor": 2.0, **damage}
    return serving(
        folder,
        variant,
        worker="tests.service.damaged_worker",
        environment={"DAMAGE": json.dumps(damage)},
        **{**SMALL, **settings},
    )


def wait_replaced(server: RealServer, name: str, limit_s: float) -> float:
    """Wait until another kernel serves; return how long that took."""

    def is_replaced() -> bool:
        model = server.model(name)
        return model["degraded"] is not None and model["state"] == "serving"

    return wait_until(is_replaced, limit_s)


def test_an_idle_engine_finds_the_layer_and_serves_with_the_next_kernel(
    tmp_path: Path, tiny_model: Path
):
    with serving_with(tmp_path, str(tiny_model), {}) as server:
        assert server.model("tiny-model")["degraded"] is None
        wait_until(lambda: server.model("tiny-model").get("live_check") is not None, 60)
        (tmp_path / "now").touch()
        wait_replaced(server, "tiny-model", 120)
        model = server.model("tiny-model")
        assert model["degraded"] == GIVEN_UP
        assert model["provenance"]["kernel"] != "int4pack"
        assert model["self_test"]["passed"]
        (health,) = server.health()
        assert health["degraded"]
        line = server.line("live_check_failed")
        assert line["level"] == "error"
        assert line["found"].startswith(f"{LAYER} differs from its files")
        assert "int4pack" in line["found"]
        step = server.line("degraded")
        assert step["reason"].endswith(f"trying {GIVEN_UP}")
        answer = server.complete("tiny-model", PROMPT, NUM_TOKENS)
        expected = dequantized_model(tiny_model)
        assert may_say(expected, models.tiny_tokenizer(), PROMPT, answer, NUM_TOKENS)


def test_logits_that_are_no_numbers_have_the_layer_looked_for_at_once(
    tmp_path: Path, tiny_model: Path
):
    damage = {"factor": torch.nan, "quiet": True}
    with serving_with(tmp_path, str(tiny_model), damage) as server:
        assert server.complete("tiny-model", PROMPT, NUM_TOKENS)
        (tmp_path / "now").touch()
        time.sleep(0.2)
        with pytest.raises(openai.APIError):
            server.complete("tiny-model", PROMPT, NUM_TOKENS)
        wait_replaced(server, "tiny-model", 120)
        line = server.line("live_check_at_once")
        assert line["reason"] == "logits were NaN or infinite"
        assert server.model("tiny-model")["degraded"] == GIVEN_UP
        assert server.complete("tiny-model", PROMPT, NUM_TOKENS)


def test_one_token_for_every_caller_has_the_layer_looked_for_at_once_and_open_streams_end(
    tmp_path: Path,
):
    """The model means to repeat itself, which alone is no fault; a layer is damaged besides."""
    model = models.tiny_llama(max_position_embeddings=512)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[9] = 1.0
        model.lm_head.weight[10] = -1.0
        model.model.norm.weight.fill_(1.0)
        model.model.embed_tokens.weight.fill_(50.0)
    folder = models.write_gptq_checkpoint(
        tmp_path / "steady-model", model, tokenizer=models.tiny_tokenizer()
    )
    with serving_with(tmp_path / "server", str(folder), {"quiet": True}) as server:
        (tmp_path / "server" / "now").touch()
        time.sleep(0.2)
        failures: list[openai.APIError] = []

        def ask(number: int) -> None:
            try:
                server.openai.completions.create(
                    model="steady-model",
                    prompt=PROMPT,
                    max_tokens=200,
                    temperature=0,
                    user=f"user {number % 3}",
                )
            except openai.APIError as error:
                failures.append(error)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_replaced(server, "steady-model", 120)
        line = server.line("live_check_at_once")
        assert line["reason"] == "requests of several callers repeat token 9"
        assert server.model("steady-model")["degraded"] == GIVEN_UP
        assert all(isinstance(error, openai.InternalServerError) for error in failures)


@pytest.mark.alone
def test_on_an_idle_demo_a_damaged_layer_is_replaced_within_half_a_minute(
    tmp_path: Path, demo_cache: Path
):
    name = f"{DEMO_REPO}:main"
    damage = {"layer": "model.layers.17.self_attn.k_proj"}
    own = {"cache_dir": str(demo_cache), "kv_cache_size": 2**25}
    with serving_with(tmp_path, name, damage, **own) as server:
        time.sleep(2)
        (tmp_path / "now").touch()
        assert wait_replaced(server, name, 300) < REPLACED_WITHIN_S, server.log()
        assert server.model(name)["degraded"] == GIVEN_UP
        assert server.complete(name, PROMPT, NUM_TOKENS)
