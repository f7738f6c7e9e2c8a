"""What is compared before a model gets layers of C++ kernels, and what a wrong one brings about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from structlog.testing import capture_logs

from engine.config import EngineConfig, KVDtype
from engine.core import Engine
from engine.execution.model_runner import ModelRunner
from engine.layers.llama import LlamaDecoder
from engine.layers.native_check import refusal
from engine.sampling_params import SamplingParams
from native import attention, int4, llama_layers, rows
from tests.engine.native_models import SMALL, WAYS, WIDE, answers, make_packed, use
from tests.engine.tiny_models import FUSED, make_model, make_prompts

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(params=WAYS, autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use(monkeypatch, request.param)
    return str(request.param)


@pytest.mark.parametrize("family", WIDE)
@pytest.mark.parametrize("make", [make_model, make_packed])
def test_right_kernels_are_refused_for_no_family(family: str, make: Callable[..., Any]):
    assert refusal(make(WIDE[family]), KVDtype.FLOAT32) is None


@pytest.mark.parametrize("kept_as", [KVDtype.BFLOAT16, KVDtype.FLOAT16])
def test_right_kernels_are_refused_for_no_type_of_cache(kept_as: KVDtype):
    assert refusal(make_packed(SMALL), kept_as) is None


def test_what_kernels_are_not_for_is_not_even_tried():
    assert "heads are 16 wide" in str(refusal(make_model(FUSED["llama"]), KVDtype.FLOAT32))


def spoilt(right: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def wrong(*args: Any, **others: Any) -> torch.Tensor:
        return right(*args, **others) * 1.1

    return wrong


@pytest.mark.parametrize(
    ("module", "name", "told"),
    [
        (rows, "add_norm", "keys and values"),
        (rows, "silu_mul", "a prompt"),
        (attention, "attend_pieces", "attention of a prompt"),
        (attention, "attend_rows", "attention of rows"),
    ],
)
def test_a_wrong_kernel_is_told(module: Any, name: str, told: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, name, spoilt(getattr(module, name)))
    reason = str(refusal(make_packed(SMALL), KVDtype.FLOAT32))
    assert reason.startswith(f"C++ kernels compute {told} otherwise than PyTorch: off by")


def test_keys_that_are_kept_wrongly_are_told(monkeypatch: pytest.MonkeyPatch):
    right = rows.rotate_and_store

    def of_the_next_position(*args: Any, **others: Any) -> torch.Tensor:
        qkv, rotation, *rest = args
        return right(qkv, rotation.roll(1, 0).contiguous(), *rest, **others)

    monkeypatch.setattr(rows, "rotate_and_store", of_the_next_position)
    reason = str(refusal(make_packed(SMALL), KVDtype.FLOAT32))
    assert "compute keys and values otherwise" in reason


@pytest.mark.parametrize("are_many", [False, True])
def test_rows_through_all_layers_in_one_call_are_compared_both_ways(
    are_many: bool, monkeypatch: pytest.MonkeyPatch
):
    run = llama_layers.LlamaLayers.run

    def wrong(layers: Any, residual: torch.Tensor, *args: Any, **others: Any) -> None:
        run(layers, residual, *args, **others)
        if others["are_many"] == are_many:
            residual.mul_(1.1)

    monkeypatch.setattr(llama_layers.LlamaLayers, "run", wrong)
    reason = str(refusal(make_packed(SMALL), KVDtype.FLOAT32))
    assert "rows, all layers in one call" in reason
    assert ("by the way of many" in reason) == are_many


def test_so_are_those_by_tile_registers_where_they_may_be_used(monkeypatch: pytest.MonkeyPatch):
    run = llama_layers.LlamaLayers.run

    def wrong(*args: Any, has_tiles: bool = False, **others: Any) -> None:
        run(*args, **others)  # by what every CPU has
        if has_tiles:
            args[1].mul_(1.1)

    monkeypatch.setattr(llama_layers.LlamaLayers, "run", wrong)
    monkeypatch.setattr(int4, "may_use_tiles", lambda: False)
    assert refusal(make_packed(SMALL), KVDtype.FLOAT32) is None
    monkeypatch.setattr(int4, "may_use_tiles", lambda: True)
    reason = str(refusal(make_packed(SMALL), KVDtype.FLOAT32))
    assert "rows, all layers in one call by tile registers" in reason


@pytest.mark.parametrize("fault", ["wrong", "no number", "fails"])
def test_an_engine_then_has_the_layers_of_pytorch_and_answers_as_they_do(
    fault: str, monkeypatch: pytest.MonkeyPatch
):
    def wrong(gate_up: torch.Tensor) -> torch.Tensor:
        if fault == "fails":
            raise RuntimeError("no such instruction")
        return gate_up[:, : gate_up.shape[1] // 2] * (2 if fault == "wrong" else torch.nan)

    params = SamplingParams(max_tokens=4, temperature=0, logprobs=1)
    asked = [(prompt, params) for prompt in make_prompts(20, 3)]
    expected = answers(engine_of(cpu_kernels="torch"), asked)
    monkeypatch.setattr(rows, "silu_mul", wrong)
    with capture_logs() as logs:
        engine = engine_of()
    assert isinstance(engine._runner, ModelRunner)
    assert isinstance(engine._runner._decoder, LlamaDecoder)
    (line,) = [line for line in logs if line["event"] == "native_layers_refused"]
    told = "no such instruction" if fault == "fails" else "compute a prompt otherwise"
    assert told in line["reason"]
    got = answers(engine, asked)
    assert [each.tokens for each in got] == [each.tokens for each in expected]


def engine_of(**changes: Any) -> Engine:
    sizes = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 64, "num_blocks": 16}
    return Engine(make_packed(SMALL), EngineConfig(**sizes, **changes))
