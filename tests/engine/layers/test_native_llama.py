from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from structlog.testing import capture_logs
from transformers import LlamaConfig

from engine.config import EngineConfig, KVDtype
from engine.core import Engine
from engine.errors import EngineStartError
from engine.execution.model_runner import ModelRunner
from engine.layers import native_llama
from engine.layers.llama import LlamaDecoder
from engine.layers.native_llama import NativeLlamaDecoder, RowsAtOnce, refusal
from engine.layers.weights import weights_in_use
from engine.outputs import PromptLogprobs, SequenceFailure
from engine.request import SequenceRequest
from engine.sampling_params import SamplingParams
from native import llama_layers, rows
from tests.engine.native_models import (
    PANELS,
    SMALL,
    TILES,
    WAYS,
    WIDE,
    Answer,
    BlockLinear,
    answers,
    check_alike,
    make_packed,
    use,
)
from tests.engine.tiny_models import FUSED, UNFUSED, make_model, make_prompts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedModel

TOLD = SamplingParams(max_tokens=16, temperature=0, logprobs=2)
LENGTHS = (1, 5, 15, 16, 17, 40, 64, 23)
# Of logprobs, where prompts attend in bfloat16 and float32 sums of another order round to other
# numbers of bfloat16; measured 0.11 at most (2026-11).
MAX_ERROR = 0.25
# The same of models in float32.
MAX_EXACT_ERROR = 1e-4


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use(monkeypatch, request.param)
    return str(request.param)


@pytest.fixture(
    params=[(TILES, 24), (PANELS, 24), (PANELS, 0)],
    ids=["tiles from 25 rows", "panels from 25 rows", "panels always"],
)
def packed(request: pytest.FixtureRequest) -> Callable[[], PreTrainedModel]:
    """Makes small models whose weights multiply many rows in a way of their own."""
    many, most_few_rows = request.param
    return partial(make_packed, SMALL, many=many, most_few_rows=most_few_rows)


def make_engine(model: PreTrainedModel, **changes: Any) -> Engine:
    sizes = {
        "max_num_seqs": 16,
        "max_num_batched_tokens": 256,
        "max_model_len": 128,
        "num_blocks": 80,
    }
    return Engine(model, EngineConfig(**(sizes | changes)))


def decoder_of(engine: Engine) -> object:
    assert isinstance(engine._runner, ModelRunner)
    return engine._runner._decoder


def native_engine(model: PreTrainedModel, **changes: Any) -> Engine:
    engine = make_engine(model, cpu_kernels="native", **changes)
    assert isinstance(decoder_of(engine), NativeLlamaDecoder)
    return engine


def torch_engine(model: PreTrainedModel, **changes: Any) -> Engine:
    engine = make_engine(model, cpu_kernels="torch", **changes)
    assert isinstance(decoder_of(engine), LlamaDecoder)
    return engine


def requests(
    *lengths: int, params: SamplingParams = TOLD
) -> list[tuple[list[int], SamplingParams]]:
    return [(prompt, params) for prompt in make_prompts(*lengths)]


def alone(model: PreTrainedModel, asked: Sequence[Any], **changes: Any) -> list[Answer]:
    """Answer each by itself, in an engine of its own kind, without what others left cached."""
    engine = native_engine(model, has_prefix_cache=False, **changes)
    return [answers(engine, [each])[0] for each in asked]


class Calls:
    """Counts calls of all layers at once, and those of single operations."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows_at_once: list[int] = []
        self.were_many: set[bool] = set()
        self.types_of_norms: list[torch.dtype] = []
        run, add_norm = llama_layers.LlamaLayers.run, rows.add_norm

        def counted_run(layers: Any, residual: torch.Tensor, *args: Any, **others: Any) -> None:
            self.rows_at_once.append(residual.shape[0])
            self.were_many.add(others["are_many"])
            run(layers, residual, *args, **others)

        def counted_norm(*args: Any) -> torch.Tensor:
            self.types_of_norms.append(args[-1])
            return add_norm(*args)

        monkeypatch.setattr(llama_layers.LlamaLayers, "run", counted_run)
        monkeypatch.setattr(rows, "add_norm", counted_norm)


def test_what_the_kernels_are_not_for_is_said():
    wide = make_model(WIDE["llama"])
    for kept in (KVDtype.FLOAT32, KVDtype.BFLOAT16, KVDtype.FLOAT16):
        assert refusal(wide, kept) is None
    assert "kept as fp8" in str(refusal(wide, KVDtype.FP8))
    assert "heads are 16 wide" in str(refusal(make_model(FUSED["llama"]), KVDtype.FLOAT32))
    assert "Phi" in str(refusal(make_model(UNFUSED["phi"]), KVDtype.FLOAT32))
    shared = LlamaConfig(
        vocab_size=8, hidden_size=65, intermediate_size=8, num_hidden_layers=1, head_dim=64,
        num_attention_heads=65, num_key_value_heads=1, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    assert "64 query heads share" in str(refusal(make_model(shared), KVDtype.FLOAT32))


def test_other_models_keep_the_layers_of_pytorch_and_the_log_says_why(way: str):
    with capture_logs() as logs:
        engine = make_engine(make_model(FUSED["llama"]))
    assert isinstance(decoder_of(engine), LlamaDecoder)
    (refused,) = [line for line in logs if line["event"] == "native_layers_refused"]
    assert refused["reason"] == native_llama.refusal(make_model(FUSED["llama"]), KVDtype.FLOAT32)
    model = make_model(WIDE["llama"])
    assert isinstance(decoder_of(make_engine(model, kv_dtype=KVDtype.FP8)), LlamaDecoder)


@pytest.mark.parametrize(
    ("family", "changes", "told"),
    [
        (FUSED["llama"], {}, "heads are 16 wide"),
        (UNFUSED["phi"], {}, "none of the families"),
        (WIDE["llama"], {"kv_dtype": KVDtype.FP8}, "kept as fp8"),
    ],
    ids=["width", "family", "cache"],
)
def test_layers_that_were_asked_for_by_name_are_refused_with_the_reason(way, family, changes, told):
    with pytest.raises(EngineStartError, match=f"cpu_kernels is 'native': .*{told}.*'auto' takes"):
        make_engine(make_model(family), cpu_kernels="native", **changes)


def test_batch_invariant_steps_and_those_of_a_gpus_kind_take_none_of_these_kernels(way: str):
    for changes in ({"is_batch_invariant": True}, {"cpu_kernels": "torch"}):
        engine = make_engine(make_model(WIDE["llama"]), **changes)
        assert isinstance(decoder_of(engine), LlamaDecoder)
    recorded = make_engine(make_model(WIDE["llama"]), enforce_eager=False)
    assert not isinstance(decoder_of(recorded), NativeLlamaDecoder)


@pytest.mark.parametrize("family", WIDE)
def test_every_known_family_says_what_pytorchs_decoder_says(family: str, way: str):
    model = make_model(WIDE[family])
    asked = requests(*LENGTHS)
    got = answers(native_engine(model), asked)
    wanted = answers(torch_engine(make_model(WIDE[family])), asked)
    for mine, theirs in zip(got, wanted, strict=True):
        assert check_alike(mine, theirs, max_error=MAX_EXACT_ERROR) == TOLD.max_tokens


@pytest.mark.parametrize("family", WIDE)
def test_weights_in_int4_blocks_go_through_all_layers_at_once(
    family: str, way: str, monkeypatch: pytest.MonkeyPatch
):
    asked = requests(*LENGTHS)
    wanted = answers(torch_engine(make_packed(WIDE[family])), asked)
    engine = native_engine(make_packed(WIDE[family]))
    calls = Calls(monkeypatch)
    got = answers(engine, asked)
    assert calls.rows_at_once == [len(LENGTHS)] * (TOLD.max_tokens - 1)
    agreeing = [
        check_alike(mine, theirs, max_error=MAX_ERROR)
        for mine, theirs in zip(got, wanted, strict=True)
    ]
    assert sum(agreeing) >= 0.7 * len(asked) * TOLD.max_tokens


@pytest.mark.parametrize("kv_dtype", [KVDtype.FLOAT32, KVDtype.BFLOAT16, KVDtype.FLOAT16])
def test_keys_and_values_may_be_kept_in_fewer_bits(kv_dtype: KVDtype, way: str):
    asked = requests(5, 40)
    got = answers(native_engine(make_packed(SMALL), kv_dtype=kv_dtype), asked)
    wanted = answers(torch_engine(make_packed(SMALL), kv_dtype=kv_dtype), asked)
    for mine, theirs in zip(got, wanted, strict=True):
        assert check_alike(mine, theirs, max_error=MAX_ERROR) > 0


def test_weights_take_the_ways_of_the_kernels(way: str, packed: Callable[[], PreTrainedModel]):
    engine = native_engine(packed())
    assert isinstance(engine._runner, ModelRunner)
    weights = list(weights_in_use(engine._runner.linears()))
    told = [weight for weight in weights if isinstance(weight, BlockLinear)]
    assert len(told) == len(weights) > 0
    for weight in told:
        assert weight.ways_taken == ("native", weight.many, weight.most_few_rows + 1)


def test_an_answer_has_the_same_bits_alone_and_among_seven_others(
    way: str, packed: Callable[[], PreTrainedModel]
):
    asked = requests(*LENGTHS)
    assert answers(native_engine(packed()), asked) == alone(packed(), asked)


def test_prompts_that_come_while_others_are_answered_change_nothing(
    way: str, packed: Callable[[], PreTrainedModel]
):
    asked = requests(40, 3, 17, 64, 33, 5)
    engine = native_engine(packed(), max_num_batched_tokens=48)
    assert answers(engine, asked, every=3) == alone(packed(), asked)


@pytest.mark.parametrize("many", [TILES, PANELS])
def test_more_rows_than_few_go_in_one_call_only_where_cpp_has_their_way(
    way: str, many: str, monkeypatch: pytest.MonkeyPatch
):
    asked = requests(*LENGTHS)
    wanted = answers(torch_engine(make_packed(SMALL, most_few_rows=7)), asked)
    engine = native_engine(make_packed(SMALL, most_few_rows=7, many=many))
    calls = Calls(monkeypatch)
    got = answers(engine, asked)
    at_once = [] if many == TILES else [len(LENGTHS)] * (TOLD.max_tokens - 1)
    assert calls.rows_at_once == at_once
    assert calls.were_many == ({True} if at_once else set())
    for mine, theirs in zip(got, wanted, strict=True):
        assert check_alike(mine, theirs, max_error=MAX_ERROR) > 0


def test_a_prompt_that_was_cached_is_answered_with_the_same_bits(
    way: str, packed: Callable[[], PreTrainedModel]
):
    engine = native_engine(packed())
    shared, tails = make_prompts(48)[0], make_prompts(3, 20, seed=4)
    asked = [(shared + tail, TOLD) for tail in tails]
    found = [answers(engine, [each])[0] for each in (*asked, *asked)]
    assert engine.statistics().prefix_cache_hits > 0
    assert found[:2] == found[2:]
    assert found[:2] == alone(packed(), asked)


def test_drafts_change_no_bit_of_an_answer(way: str, packed: Callable[[], PreTrainedModel]):
    words = frozenset({3, 4})  # few to say make for repetition, and drafts
    params = SamplingParams(max_tokens=24, temperature=0, logprobs=1, allowed_token_ids=words)
    asked = requests(12, 30, params=params)
    engine = native_engine(packed(), num_speculative_tokens=4)
    got = answers(engine, asked)
    statistics = engine.statistics()
    assert statistics.num_accepted_tokens > 0
    assert got == alone(packed(), asked)


def test_a_sequence_that_was_preempted_goes_on_where_it_stopped(
    way: str, packed: Callable[[], PreTrainedModel]
):
    params = SamplingParams(max_tokens=30, temperature=0, logprobs=2)
    asked = requests(30, 28, 33, params=params)
    engine = native_engine(packed(), num_blocks=9)
    got = answers(engine, asked)
    assert engine.statistics().num_preemptions > 0
    for mine, theirs in zip(got, alone(packed(), asked), strict=True):
        # What it had said is computed again as a prompt, which rounds otherwise.
        assert check_alike(mine, theirs, max_error=MAX_ERROR) > 0


def test_logprobs_of_prompts_are_told(way: str):
    params = SamplingParams(max_tokens=2, temperature=0, prompt_logprobs=1, logprobs=2)
    asked = requests(40, params=params)
    native, ordinary = native_engine(make_packed(SMALL)), torch_engine(make_packed(SMALL))
    told = [prompt_logprobs(engine, asked[0]) for engine in (native, ordinary)]
    assert len(told[0]) == len(told[1]) == 39
    errors = [abs(mine - theirs) for mine, theirs in zip(*told, strict=True)]
    assert max(errors) < 2 * MAX_ERROR  # unlikely tokens' are off by more
    assert sum(errors) / len(errors) < MAX_ERROR / 2


def prompt_logprobs(engine: Engine, asked: tuple[list[int], SamplingParams]) -> list[float]:
    engine.add(SequenceRequest(sequence_id=1, prompt_token_ids=tuple(asked[0]), params=asked[1]))
    found: list[float] = []
    while engine.has_work:
        for output in engine.step():
            if isinstance(output, PromptLogprobs):
                found += [token.logprob for token in output.tokens]
    return found


def test_rows_of_prompts_are_rounded_where_their_products_round_them(
    way: str, monkeypatch: pytest.MonkeyPatch
):
    engine = native_engine(make_packed(SMALL))
    calls = Calls(monkeypatch)
    asked = requests(40, params=SamplingParams(max_tokens=1, temperature=0))
    answers(engine, asked)
    rounded, wide = torch.bfloat16, torch.float32
    # The last layer goes on with one row after attention, and the last norm is before the head.
    assert calls.types_of_norms == [rounded] * 5 + [wide, wide]

    engine = native_engine(make_model(SMALL))
    calls.types_of_norms.clear()
    answers(engine, asked)
    assert calls.types_of_norms == [wide] * 7


def test_the_first_layers_run_alone_as_pytorchs_do(way: str, monkeypatch: pytest.MonkeyPatch):
    (prompt,) = make_prompts(20)
    asked = [(prompt, SamplingParams(max_tokens=6, temperature=0, logprobs=2))]
    found: list[Answer] = []
    whole: list[Answer] = []
    engines = [make(make_packed(SMALL)) for make in (native_engine, torch_engine)]
    calls = Calls(monkeypatch)
    for engine in engines:
        assert isinstance(engine._runner, ModelRunner)
        with engine._runner.first_layers(1):
            found += answers(engine, asked)
            assert len(list(engine._runner.linears())) == 5
        whole += answers(engine, [(make_prompts(21)[0], asked[0][1])])
        assert len(list(engine._runner.linears())) == 13
    assert calls.rows_at_once == [1] * 10
    assert check_alike(found[0], found[1], max_error=MAX_ERROR) > 0
    assert check_alike(whole[0], whole[1], max_error=MAX_ERROR) > 0
    assert found[0].tokens != whole[0].tokens


def test_linear_layers_are_named_and_multiply_as_pytorchs_do(way: str):
    named = []
    for make in (native_engine, torch_engine):
        runner = make(make_packed(SMALL))._runner
        assert isinstance(runner, ModelRunner)
        named.append(list(runner.linears()))
    for mine, theirs in zip(*named, strict=True):
        assert (mine.names, mine.sizes) == (theirs.names, theirs.sizes)
        weight = mine.names[-1].rpartition(".")[2]
        width = {"o_proj": 256, "down_proj": 192}.get(weight, 128)
        x = torch.randn(3, width)
        torch.testing.assert_close(mine.multiply(x), theirs.multiply(x), rtol=1e-5, atol=1e-4)


def test_linear_layers_multiply_by_the_way_of_prompts_as_pieces_do(way: str):
    engine = native_engine(make_packed(SMALL))
    assert isinstance(engine._runner, ModelRunner)
    *linears, head = engine._runner.linears()
    assert head.multiply_pieces is None  # no piece reaches it
    for each in linears:
        (weight,) = weights_in_use([each])
        x = torch.randn(3, weight.in_features)
        assert each.multiply_pieces is not None
        assert isinstance(weight, BlockLinear)
        assert torch.equal(each.multiply_pieces(x), weight.ways_of_many()[PANELS]()(x))
        assert not torch.equal(each.multiply_pieces(x), each.multiply(x))


def test_one_layer_that_the_kernels_do_not_know_makes_all_go_one_by_one(
    way: str, monkeypatch: pytest.MonkeyPatch
):
    model, other = make_packed(SMALL), make_model(SMALL)
    model.model.layers[1].mlp.down_proj = other.model.layers[1].mlp.down_proj
    engine = native_engine(model)
    calls = Calls(monkeypatch)
    asked = requests(5, 40)
    got = answers(engine, asked)
    assert calls.rows_at_once == []
    model, other = make_packed(SMALL), make_model(SMALL)
    model.model.layers[1].mlp.down_proj = other.model.layers[1].mlp.down_proj
    for mine, theirs in zip(got, answers(torch_engine(model), asked), strict=True):
        assert check_alike(mine, theirs, max_error=MAX_ERROR) > 0


def test_a_greedy_answer_is_repeated_to_the_last_bit(way: str):
    engine = native_engine(make_packed(SMALL), has_prefix_cache=False)
    asked = requests(40)
    first, *others = [answers(engine, asked) for _ in range(3)]
    assert all(each == first for each in others)


def test_nan_of_one_sequence_is_told_of_it_alone(way: str):
    """A row that goes wrong fails; those beside it say what they would have said."""
    model = make_packed(SMALL)
    model.model.embed_tokens.weight.data[7] = torch.nan
    wrong, right = [5] * 20 + [7], [6] * 21
    engine = native_engine(model)
    for number, prompt in enumerate((wrong, right)):
        engine.add(SequenceRequest(sequence_id=number, prompt_token_ids=tuple(prompt), params=TOLD))
    failed: set[int] = set()
    tokens = 0
    while engine.has_work:
        for output in engine.step():
            if isinstance(output, SequenceFailure):
                failed.add(output.sequence_id)
            tokens += output.sequence_id == 1
    assert failed == {0}
    assert tokens >= TOLD.max_tokens


@dataclass
class Taken:
    """Linear layers whose ways are chosen."""

    ways_taken: tuple[str, str, int | None] | None
    most_few_rows: int | None = 63


REGISTERS = "native registers"


@pytest.mark.parametrize(
    ("ways", "expected"),
    [
        ([("native", PANELS, 96), ("native", PANELS, 24)], RowsAtOnce(95, has_many=True)),
        ([("native", PANELS, 96), ("native", PANELS, None)], RowsAtOnce(95, has_many=True)),
        ([("native", REGISTERS, 8)], RowsAtOnce(7, has_many=True, has_tiles=True)),
        # What C++ has no way of many for goes layer by layer.
        ([("native", PANELS, 96), ("native", REGISTERS, 8)], RowsAtOnce(63)),
        ([("native", "native tiles", 64)], RowsAtOnce(63)),
        ([("native", PANELS, 96), None], RowsAtOnce(63)),
        # A way that was refused, or is slower than PyTorch's, is not taken by another door.
        ([("native", PANELS, 96), ("int4pack", PANELS, 96)], RowsAtOnce(0)),
    ],
)
def test_rows_go_in_one_call_by_the_ways_that_were_chosen(
    ways: list[tuple[str, str, int | None] | None], expected: RowsAtOnce
):
    assert RowsAtOnce.of([Taken(each) for each in ways]) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "told"),
    [({}, "any number"), ({"many": TILES}, 24), ({"most_few_rows": 0, "many": TILES}, 0)],
)
def test_the_log_says_once_how_many_rows_go_in_one_call(
    way: str, changes: dict[str, Any], told: object
):
    engine = native_engine(make_packed(SMALL, **changes))
    with capture_logs() as logs:
        answers(engine, requests(5, 7))
    lines = [line for line in logs if line["event"] == "rows_through_all_layers_in_one_call"]
    assert [line["at_most"] for line in lines] == [told]


def test_rows_of_a_step_go_in_one_call_where_their_way_is_in_c():
    both = RowsAtOnce(7, has_many=True)
    assert [both.takes(7), both.takes(8)] == [True, True]
    assert [both.are_many(7), both.are_many(8)] == [False, True]
    few = RowsAtOnce(7)
    assert [few.takes(7), few.takes(8)] == [True, False]
    assert not RowsAtOnce(0).takes(1)
    any_number = RowsAtOnce(None)
    assert (any_number.takes(5000), any_number.are_many(5000)) == (True, False)
