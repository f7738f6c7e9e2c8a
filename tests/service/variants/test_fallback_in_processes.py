"""The fallback policy with real engines: broken kernels, and memory that does not suffice."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from safetensors.torch import load_file, save_file

from loaders.demo.repository import commit_branch
from loaders.repository.opening import open_snapshot
from loaders.repository.spec import parse_spec
from tests import models
from tests.dequantize import dequantized_model
from tests.greedy import may_say
from tests.service.real_server import serving

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.models import TinyRepositories
    from tests.service.real_server import RealServer

pytestmark = pytest.mark.slow

PROMPT, NUM_TOKENS = "def reverse(text):", 12
SMALL = {"max_model_len": 128, "kv_cache_size": 2**20}
FAILED = 1  # exit code where no variant can serve


def serving_with(
    folder: Path,
    variant: str,
    faults: dict[str, Any],
    *,
    flags: tuple[str, ...] = (),
    **settings: object,
) -> AbstractContextManager[RealServer]:
    return serving(
        folder,
        variant,
        worker="tests.service.faulty_worker",
        environment={"FAULTS": json.dumps(faults)},
        flags=flags,
        **settings,
    )


def check_answer(server: RealServer, name: str, folder: Path) -> None:
    """The model's answer is the one that its files' weights give."""
    answer = server.complete(name, PROMPT, NUM_TOKENS)
    expected = dequantized_model(folder)
    assert may_say(expected, models.tiny_tokenizer(), PROMPT, answer, NUM_TOKENS)


def folder_of(variant: str, cache_dir: Path) -> Path:
    return open_snapshot(parse_spec(variant), cache_dir=cache_dir, local_files_only=True).folder


@pytest.mark.smoke
def test_a_broken_kernel_is_caught_and_the_next_one_serves(
    tmp_path: Path, tiny_repo: TinyRepositories
):
    variant, cache_dir = tiny_repo.specs()[0], tiny_repo.cache_dir
    faults = {"kernels": {"int4pack": [4]}}
    with serving_with(tmp_path, variant, faults, cache_dir=str(cache_dir), **SMALL) as server:
        model = server.model(variant)
        assert model["state"] == "serving", server.log()
        assert model["degraded"] == "without kernel int4pack: failed its self-test"
        assert model["self_test"]["passed"]
        assert model["self_test"]["backend"] == model["provenance"]["kernel"] != "int4pack"
        (health,) = server.health()
        assert (health["degraded"], health["self_test"]["passed"]) == (True, True)

        caught = server.lines("self_test_failed", at_least=1)
        assert caught[0]["check"] == "model.layers.0.self_attn.q_proj"
        assert {line["backend"] for line in caught} == {"int4pack"}
        step = server.line("degraded")
        assert step["reason"].endswith("trying without kernel int4pack: failed its self-test")
        tests = [
            (line["backend"], line["passed"]) for line in server.lines("self_test", at_least=2)
        ]
        assert tests == [("int4pack", False), (model["provenance"]["kernel"], True)]
        assert server.lines("engine_restarting") == []
        check_answer(server, variant, folder_of(variant, cache_dir))


@pytest.mark.parametrize("name", ["SIGILL", "SIGSEGV"])
def test_kernels_in_cpp_that_end_the_process_are_left_out_at_once(
    tmp_path: Path, tiny_repo: TinyRepositories, name: str
):
    variant, cache_dir = tiny_repo.specs()[0], tiny_repo.cache_dir
    own = {"cache_dir": str(cache_dir), **SMALL}
    with serving_with(tmp_path, variant, {"native": name}, **own) as server:
        model = server.model(variant)
        given_up = "without the C++ kernels: ended the engine's process when first tried"
        assert (model["state"], model["degraded"]) == ("serving", given_up), server.log()
        assert server.line("degraded")["reason"].endswith(f"trying {given_up}")
        assert server.lines("engine_restarting") == []
        assert model["provenance"]["kernel"] == "int4pack"
        check_answer(server, variant, folder_of(variant, cache_dir))


def test_strict_gives_up_and_says_what_was_wrong_by_how_much(
    tmp_path: Path, tiny_repo: TinyRepositories
):
    variant = tiny_repo.specs()[0]
    own = {"cache_dir": str(tiny_repo.cache_dir), "flags": ("--strict",), **SMALL}
    with serving_with(tmp_path, variant, {"kernels": {"int4pack": [4]}}, **own) as server:
        assert server.popen.wait(10) == FAILED
    end = server.line("variant_failed")
    assert "model.layers.0.self_attn.q_proj: int4pack: all outputs are off by 1." in end["reason"]
    assert "e-03 allowed)" in end["reason"]
    assert server.lines("degraded") == []


def test_what_is_suspect_serves_and_says_so_or_where_strict_does_not(tmp_path: Path):
    """Every row of scales has moved to the next group, as no settings could tell."""
    model = models.tiny_llama(hidden_size=256, intermediate_size=512)
    folder = models.write_gptq_checkpoint(
        tmp_path / "model", model, group_size=32, tokenizer=models.tiny_tokenizer()
    )
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(".scales")]:
        tensors[name] = tensors[name].roll(1, 0).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with serving_with(tmp_path, str(folder), {}, **SMALL) as server:
        (variant,) = server.client.get("/health/ready").json()["variants"]
        assert variant["suspect"] is True
        (shown,) = server.client.get("/v1/models").json()["data"]
        (reason,) = shown["suspect"]
        assert reason.startswith("scales_elsewhere: ")
        warning = server.line("suspect")
        assert warning["reason"] in reason
        check_answer(server, shown["id"], folder)
    with serving_with(tmp_path, str(folder), {}, flags=("--strict",), **SMALL) as server:
        assert server.popen.wait(20) == FAILED
        end = server.line("variant_failed")
    assert "scales_elsewhere" in end["reason"]
    assert "--strict" in end["reason"]


def test_where_no_kernel_computes_the_chosen_branch_the_next_branch_serves(tmp_path: Path):
    """The one kernel for 8 bits, which the plan prefers, is wrong; the other is for 4 bits."""
    cache_dir, name = tmp_path / "cache", "tetrad/Two-Branches-GPTQ"
    for bits in (8, 4):
        folder = models.write_gptq_checkpoint(
            tmp_path / f"{bits}",
            models.tiny_llama(hidden_size=256, intermediate_size=512),
            tokenizer=models.tiny_tokenizer(),
            bits=bits,
        )
        commit_branch(cache_dir, name, "main" if bits == 4 else "8bit", folder)
    faults = {"backends": ["int4pack", "int4planes"], "kernels": {"int4planes": [8]}}
    own = {"cache_dir": str(cache_dir), **SMALL}
    with serving_with(tmp_path, name, faults, **own) as server:
        model = server.model(name)
        assert model["state"] == "serving", server.log()
        assert model["provenance"]["revision"] == "main"
        assert model["degraded"] == f"another branch than {name}:8bit: failed its self-test"
        chosen = [line["variant"] for line in server.lines("variant_chosen", at_least=2)]
        assert chosen == [f"{name}:8bit", f"{name}:main"]
        given_up = [
            line["reason"].rsplit("; trying ")[-1] for line in server.lines("degraded", at_least=1)
        ]
        assert given_up == [
            "without kernel int4planes: failed its self-test",
            f"another branch than {name}:8bit: failed its self-test",
        ]
        check_answer(server, name, folder_of(f"{name}:main", cache_dir))


@pytest.fixture(scope="module")
def long_model(tmp_path_factory) -> Path:
    """A model of 16 384 tokens: 32 MiB of keys and values a sequence."""
    return models.write_gptq_checkpoint(
        tmp_path_factory.mktemp("long") / "long-model",
        models.tiny_llama(max_position_embeddings=16_384),
        tokenizer=models.tiny_tokenizer(),
    )


ROOM = 2**30  # for weights, buffers and a cache that would take twice as much
CROWD = {"max_num_seqs": 512}  # that cache


@pytest.mark.skipif(psutil.virtual_memory().available < 6e9, reason="needs 6 GB of free memory")
def test_a_cache_that_the_process_cannot_have_becomes_smaller(tmp_path: Path, long_model: Path):
    """As much memory is free as the cache takes; a limit of the process's own forbids it."""
    with serving_with(tmp_path, str(long_model), {"room": ROOM}, **CROWD) as server:
        model = server.model("long-model")
        assert model["state"] == "serving", server.log()
        assert model["degraded"] == (
            "context 8192 instead of 16384 tokens: out of memory;"
            " context 4096 instead of 8192 tokens: out of memory"
        )
        assert model["max_model_len"] == 4096
        assert all("can't allocate memory" in one["reason"] for one in server.lines("degraded"))
        check_answer(server, "long-model", long_model)


@pytest.mark.skipif(psutil.virtual_memory().available < 6e9, reason="needs 6 GB of free memory")
def test_and_with_a_context_that_was_asked_for_it_says_what_is_missing(
    tmp_path: Path, long_model: Path
):
    own = {"max_model_len": 16_384, **CROWD}
    with serving_with(tmp_path, str(long_model), {"room": ROOM}, **own) as server:
        assert server.popen.wait(10) == FAILED
    end = server.line("variant_failed")
    assert end["reason"].startswith("there is not enough memory: DefaultCPUAllocator: can't alloc")
    assert "lower kv_cache_size or max_model_len" in end["reason"]
    assert "Traceback" not in server.log()


def test_weights_that_do_not_fit_are_no_kernels_fault(tmp_path: Path, long_model: Path):
    """The self-test is what first lacks memory: nobody is told that a kernel is wrong."""
    with serving_with(tmp_path, str(long_model), {"room": 40 * 2**20}, **SMALL) as server:
        assert server.popen.wait(10) == FAILED
    end = server.line("variant_failed")
    assert end["reason"].startswith("there is not enough memory: ")
    assert "kernel" not in "".join(line["reason"] for line in server.lines("degraded"))
