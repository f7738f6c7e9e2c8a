"""The path on a GPU, rehearsed on the CPU by the real server, with each part forced to fail."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from engine.sampling_params import SamplingParams
from loaders.load import load
from loaders.repository.spec import parse_spec
from tests import models
from tests.dequantize import dequantized_model
from tests.engine.tiny_models import make_engine, run_engine
from tests.greedy import may_say
from tests.service.real_server import serving

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.service.real_server import RealServer

pytest.importorskip("triton")
pytestmark = pytest.mark.slow

PROMPT, NUM_TOKENS = "def", 4
DIALOG: Any = [{"role": "user", "content": "a"}]
SMALL = {"max_model_len": 40, "kv_cache_size": 2**20, "max_num_seqs": 2}
FAILED = 1  # exit code where no variant can serve


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two layers with act order and fewer key than query heads."""
    return models.write_gptq_checkpoint(
        tmp_path_factory.mktemp("rehearsed") / "rehearsed",
        models.tiny_llama(
            hidden_size=64,  # as few programs as there can be: the interpreter takes 10 ms for each
            intermediate_size=64,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
            max_position_embeddings=48,
        ),
        group_size=32,
        desc_act=True,
        tokenizer=models.tiny_tokenizer(),
    )


def rehearsing(
    tmp_path: Path,
    folder: Path,
    faults: dict[str, str],
    *,
    capability: str = "9.0",
    flags: tuple[str, ...] = (),
    **settings: object,
) -> AbstractContextManager[RealServer]:
    return serving(
        tmp_path,
        str(folder),
        worker="tests.service.rehearsal_worker",
        environment={"FAULTS": json.dumps(faults), "TRITON_INTERPRET": "1"},
        flags=flags,
        gpu_rehearsal=capability,
        **{**SMALL, **settings},
    )


def check_answer(server: RealServer, folder: Path) -> None:
    """The model's answer is the one that its files' weights give."""
    answer = server.complete("rehearsed", PROMPT, NUM_TOKENS)
    assert may_say(dequantized_model(folder), models.tiny_tokenizer(), PROMPT, answer, NUM_TOKENS)


def test_what_is_right_serves_and_gives_nothing_up(tmp_path: Path, folder: Path):
    with rehearsing(tmp_path, folder, {}) as server:
        model = server.model("rehearsed")
        assert model["state"] == "serving", server.log()
        assert model["degraded"] is None
        provenance = model["provenance"]
        assert provenance["device"] == "cpu (rehearsing a GPU of 9.0)"
        assert provenance["kernel"] == "triton"
        checks = {check["name"]: check["passed"] for check in model["self_test"]["checks"]}
        tested = ("add_norm", "silu_mul", "rotate_and_store", "decode_attention")
        rows = ("graph of 1 rows", "graph of 2 rows")
        for name in (*tested, "first tokens of 2 layers", *rows):
            assert checks[name] is True, name
        path = server.line("execution_path")
        assert (path["kernels"], path["graphs"]) == ("triton", True)
        text = server.complete("rehearsed", PROMPT, NUM_TOKENS)
        message = chat(server)
    assert [text, message] == answers_of_a_cpu(folder)


def chat(server: RealServer) -> str | None:
    answer = server.openai.chat.completions.create(
        model="rehearsed", messages=DIALOG, max_tokens=NUM_TOKENS, temperature=0
    )
    return answer.choices[0].message.content


def answers_of_a_cpu(folder: Path) -> list[str]:
    """What the same prompt and dialog get by the path that CPUs have of their own."""
    tokenizer = models.tiny_tokenizer()
    prompts = [
        tokenizer(PROMPT).input_ids,
        tokenizer.apply_chat_template(DIALOG, add_generation_prompt=True, return_dict=False),
    ]
    prompts[1] = tokenizer(tokenizer.decode(prompts[1])).input_ids  # begins with `<s>`, as texts do
    engine = make_engine(load(parse_spec(str(folder)), device="cpu").model)
    greedy = SamplingParams(max_tokens=NUM_TOKENS, temperature=0)
    answers = run_engine(engine, [(prompt, greedy) for prompt in prompts])
    return [tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]


STEP_KERNELS, LINEARS = "without step kernels triton: ", "without kernel triton: "
STEP_KERNEL_FAULTS = {"silu_mul", "rotate_and_store", "decode_attention"}
CASES = {
    "a linear kernel is wrong": ({"linear": "wrong"}, LINEARS + "failed its self-test"),
    "linear kernels find no compiler": (
        {"linear": "without compiler"},
        LINEARS + "failed its self-test (Triton found no C compiler, which starting a kernel takes;"
        " install gcc (a C compiler))",
    ),
    "linear kernels are wrong where rows are many": (
        {"many rows": "wrong"},
        LINEARS + "failed its self-test",
    ),
    "a step kernel is wrong": (
        {"silu_mul": "wrong"},
        STEP_KERNELS + "failed the test of its steps (silu_mul: triton: off by ",
    ),
    "a step kernel does not compile": (
        {"rotate_and_store": "uncompiled"},
        STEP_KERNELS + "cannot run here (a kernel does not compile: cannot convert",
    ),
    "a step kernel ends the process": (
        {"decode_attention": "crash"},
        STEP_KERNELS + "ended the engine's process when first tried",
    ),
    "flash attention is wrong": (
        {"flash": "wrong"},
        "without flash attention: failed the test of its steps (flash attention: off by ",
    ),
    "a replayed graph leaves stale results": (
        {"replay": "stale"},
        "without graphs: failed the test of its steps (graph of 1 rows: ",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_fails_is_left_out_and_said_and_the_next_serves(
    case: str, tmp_path: Path, folder: Path
):
    faults, given_up = CASES[case]
    # What the case is not about runs without the interpreter, in a tenth of the time.
    others: dict[str, str] = {}
    if not faults.keys() & {"linear", "many rows"}:
        others["backend"] = "reference"
    if not faults.keys() & STEP_KERNEL_FAULTS:
        others["step_kernels"] = "torch"
    with rehearsing(tmp_path, folder, faults, **others) as server:
        model = server.model("rehearsed")
        assert model["state"] == "serving", server.log()
        assert model["degraded"].startswith(given_up), model["degraded"]
        assert model["degraded"].count("without ") == 1  # nothing else
        assert model["self_test"]["passed"]
        (health,) = server.health()
        assert health["degraded"] is True
        assert len(server.lines("degraded")) == 1
        assert server.lines("engine_restarting") == []
        check_answer(server, folder)


def test_a_gpu_that_is_too_old_for_the_kernels_serves_without_them_and_says_so(
    tmp_path: Path, folder: Path
):
    with rehearsing(tmp_path, folder, {}, capability="7.5") as server:
        model = server.model("rehearsed")
        assert model["state"] == "serving", server.log()
        assert model["degraded"] == (
            "without kernel triton and step kernels triton: needs compute capability 8.0, this GPU"
            " has 7.5"
        )
        assert model["provenance"]["kernel"] == "reference"
        path = server.line("execution_path")
        assert (path["kernels"], path["graphs"]) == ("torch", True)
        assert server.lines("degraded") == []  # no engine had to fail for it
        check_answer(server, folder)


def test_step_kernels_that_were_asked_for_are_not_exchanged(tmp_path: Path, folder: Path):
    asked = {"step_kernels": "triton", "backend": "reference"}
    with rehearsing(tmp_path, folder, {"silu_mul": "wrong"}, **asked) as server:
        assert server.popen.wait(20) == FAILED
    end = server.line("variant_failed")
    assert "the test of its steps failed: silu_mul: triton: off by " in end["reason"]


def test_a_rehearsal_without_the_interpreter_is_refused_by_name(tmp_path: Path, folder: Path):
    named = {"TRITON_INTERPRET": "0"}
    with serving(tmp_path, str(folder), environment=named, gpu_rehearsal="9.0", **SMALL) as server:
        assert server.popen.wait(20) == FAILED
    end = server.line("variant_failed")
    assert end["reason"].startswith("gpu_rehearsal runs Triton's kernels in its interpreter")
