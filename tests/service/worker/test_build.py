"""The engine's composition root: what "auto" comes to, and a real tiny model."""

from __future__ import annotations

import dataclasses
import os
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch
from structlog.testing import capture_logs

from engine.attention.kv_cache import kv_block_bytes, resolve_kv_dtype
from engine.config import KVDtype
from engine.core import Engine
from engine.errors import EngineStartError, NotEnoughBlocksError, OutOfMemoryError
from engine.execution import cpu_kernels
from engine.execution.path import computes_natively
from loaders.checkpoint.generation_defaults import GenerationDefaults
from loaders.errors import NotEnoughMemoryError
from loaders.load import LoadedModel, Provenance, load
from loaders.model.kernels import resolve
from loaders.model.kernels.int4pack import Int4PackBackend
from loaders.records import Records
from loaders.reports.suspicion import Suspicion
from loaders.repository.spec import parse_spec
from native import library
from service.errors import SettingsError
from service.settings import WorkerSettings
from service.worker import build as worker
from service.worker import sizing
from service.worker.build import (
    build_engine,
    failure_of,
    keep_threads,
    reason_of,
    resolve_num_threads,
    self_test,
)
from service.worker.sizing import BLOCK_SIZE, resolve_engine_config, resolve_kv_cache_bytes
from service.worker_protocol.load_attempt import FailureKind, LoadAttempt, LoadRequest, StartFailure
from service.worker_protocol.model_description import ModelDescription
from tests.models import tiny_llama

if TYPE_CHECKING:
    from tests.models import TinyRepositories

LEFT_BYTES = 300_000_000


@pytest.fixture(scope="module")
def loaded(tmp_path_factory, tiny_tokenizer) -> LoadedModel:
    return LoadedModel(
        model=tiny_llama(dtype=torch.float32),
        tokenizer=tiny_tokenizer,
        generation=GenerationDefaults(None, None, None, frozenset({1})),
        quantization=None,
        spec=parse_spec("owner/name"),
        tensors={},
        provenance=Provenance(
            repo="owner/name",
            revision="main",
            commit="0123abc",
            file=None,
            folder=tmp_path_factory.mktemp("empty"),
            backend="dense",
            dtype="float32",
            device="cpu",
        ),
    )


def test_threads_are_as_asked_or_the_physical_cores(monkeypatch, tmp_path):
    monkeypatch.setattr("loaders.memory.cgroup.CGROUP", tmp_path)
    assert resolve_num_threads(WorkerSettings(num_threads=3)) == 3
    monkeypatch.setattr(worker.psutil, "cpu_count", lambda logical: 4)
    monkeypatch.setattr(worker.os, "sched_getaffinity", lambda pid: set(range(8)))
    assert resolve_num_threads(WorkerSettings()) == 4
    monkeypatch.setattr(worker.os, "sched_getaffinity", lambda pid: {0, 1, 2})
    assert resolve_num_threads(WorkerSettings()) == 3
    for limit, threads in (("max 100000", 3), ("250000 100000", 2), ("50000 100000", 1)):
        (tmp_path / "cpu.max").write_text(limit)
        assert resolve_num_threads(WorkerSettings()) == threads


class EveryReader:
    is_possible = True


class NoReader:
    is_possible = False


@pytest.mark.parametrize(
    ("settings", "device", "reader", "adapts"),
    [
        ({}, "cpu", EveryReader, True),
        ({"num_threads": 2}, "cpu", EveryReader, False),
        ({"batch_invariant": True}, "cpu", EveryReader, False),
        ({}, "cuda:0", EveryReader, False),
        ({}, "cpu", NoReader, False),
    ],
)
def test_threads_adapt_where_nothing_fixes_them(monkeypatch, settings, device, reader, adapts):
    monkeypatch.setattr(worker, "CpuUseReader", reader)
    monkeypatch.setattr(worker.torch, "get_num_threads", lambda: 2)
    assert (keep_threads(WorkerSettings(**settings), device) is not None) == adapts


@pytest.mark.parametrize(
    ("reader", "told"), [(NoReader, [("threads_fixed", 2)]), (EveryReader, [])]
)
def test_the_log_says_where_threads_cannot_adapt(monkeypatch, reader, told):
    monkeypatch.setattr(worker, "CpuUseReader", reader)
    monkeypatch.setattr(worker.torch, "get_num_threads", lambda: 2)
    with capture_logs() as lines:
        keep_threads(WorkerSettings(), "cpu")
    assert [(line["event"], line["threads"]) for line in lines] == told


def test_a_single_thread_is_never_given_up(monkeypatch):
    monkeypatch.setattr(worker, "CpuUseReader", EveryReader)
    monkeypatch.setattr(worker.torch, "get_num_threads", lambda: 1)
    assert keep_threads(WorkerSettings(), "cpu") is None


def test_kv_cache_is_as_asked_or_a_share_of_what_is_free(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    monkeypatch.setattr(sizing, "free_device_bytes", lambda device: 1000)
    monkeypatch.setattr(sizing, "CPU_KV_BYTES", 300)
    assert resolve_kv_cache_bytes(WorkerSettings(kv_cache_size=7), cpu, sequence_bytes=10) == 7
    assert resolve_kv_cache_bytes(WorkerSettings(), cpu, sequence_bytes=10) == 300
    assert resolve_kv_cache_bytes(WorkerSettings(), cpu, sequence_bytes=400) == 400
    assert resolve_kv_cache_bytes(WorkerSettings(), cpu, sequence_bytes=600) == 500
    # Half of the GPU's 2000 bytes are taken by the weights; 90 % may be taken in all.
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=2000)
    )
    assert resolve_kv_cache_bytes(WorkerSettings(), cuda, sequence_bytes=10) == 800
    assert resolve_kv_cache_bytes(WorkerSettings(gpu_memory_utilization=0.4), cuda, 10) == 0


def test_context_is_what_the_model_was_made_for(loaded):
    made_for = loaded.model.config.max_position_embeddings
    config = resolve_engine_config(WorkerSettings(), loaded)
    assert config.max_model_len == made_for
    assert config.num_blocks * config.block_size >= made_for
    assert config.max_num_seqs == 32


def test_context_ends_where_the_rotary_embedding_would_look_at_the_batch(loaded, monkeypatch):
    made_for = loaded.model.config.max_position_embeddings
    monkeypatch.setattr(sizing, "longest_with_fixed_rope", lambda config: made_for // 2)
    assert resolve_engine_config(WorkerSettings(), loaded).max_model_len == made_for // 2


def test_an_engine_is_told_which_kernels_are_asked_for(loaded):
    for asked in ("auto", "native", "torch"):
        settings = WorkerSettings(cpu_kernels=asked)
        assert resolve_engine_config(settings, loaded).cpu_kernels == asked
        rehearsal = WorkerSettings(cpu_kernels=asked, gpu_rehearsal="9.0")
        assert resolve_engine_config(rehearsal, loaded).cpu_kernels == "torch"


def test_an_engine_measures_its_ways_to_multiply_unless_they_are_to_be_fixed(loaded, tmp_path):
    measured = resolve_engine_config(WorkerSettings(cache_dir=tmp_path), loaded)
    assert measured.kernel_choice == "measured"
    assert measured.kernel_choice_folder == tmp_path / "records"
    fixed = resolve_engine_config(WorkerSettings(cpu_kernel_choice="fixed"), loaded)
    assert fixed.kernel_choice == "fixed"


def test_layers_that_no_graph_can_hold_are_run_as_they_come(loaded):
    assert resolve_engine_config(WorkerSettings(), loaded).enforce_eager is None
    provenance = dataclasses.replace(loaded.provenance, num_offloaded=3)
    spread = dataclasses.replace(loaded, provenance=provenance)
    assert resolve_engine_config(WorkerSettings(), spread).enforce_eager is True
    asked = WorkerSettings(enforce_eager=False)
    assert resolve_engine_config(asked, spread).enforce_eager is True


@pytest.mark.parametrize("is_eager", [True, False])
def test_how_steps_run_is_what_the_settings_say(loaded, *, is_eager: bool):
    settings = WorkerSettings(enforce_eager=is_eager, step_kernels="torch")
    config = resolve_engine_config(settings, loaded)
    assert config.enforce_eager is is_eager
    assert config.step_kernels == "torch"
    assert resolve_engine_config(WorkerSettings(), loaded).step_kernels == "auto"


def test_context_shrinks_to_what_the_kv_cache_holds(loaded):
    roomy = resolve_engine_config(WorkerSettings(max_num_seqs=1), loaded)
    block_bytes = kv_block_bytes(
        loaded.model.config, BLOCK_SIZE, resolve_kv_dtype(loaded.model, None)
    )
    small = WorkerSettings(kv_cache_size=3 * block_bytes)
    config = resolve_engine_config(small, loaded)
    assert config.max_model_len == 2 * BLOCK_SIZE < roomy.max_model_len
    with pytest.raises(NotEnoughBlocksError):
        resolve_engine_config(
            WorkerSettings(kv_cache_size=3 * block_bytes, max_model_len=100), loaded
        )


def test_longer_context_than_the_model_was_made_for_is_refused(loaded):
    made_for = loaded.model.config.max_position_embeddings
    with pytest.raises(SettingsError, match=str(made_for)):
        resolve_engine_config(WorkerSettings(max_model_len=made_for + 1), loaded)


def test_a_step_computes_a_token_of_each_sequence_at_least(loaded):
    with pytest.raises(SettingsError, match="at least one token of each sequence"):
        resolve_engine_config(WorkerSettings(max_num_batched_tokens=4, max_num_seqs=5), loaded)
    assert resolve_engine_config(WorkerSettings(), loaded).max_num_batched_tokens == 512
    many = resolve_engine_config(WorkerSettings(max_num_seqs=600), loaded)
    assert many.max_num_batched_tokens == 600


def test_keys_and_values_are_kept_as_asked_and_take_less_memory(loaded):
    size = 40 * kv_block_bytes(loaded.model.config, BLOCK_SIZE, KVDtype.FLOAT32)
    blocks = {
        dtype: resolve_engine_config(
            WorkerSettings(kv_cache_dtype=dtype, kv_cache_size=size), loaded
        ).num_blocks
        for dtype in ("auto", "float16", "fp8")
    }
    assert blocks["auto"] == 39
    assert blocks["float16"] == 79
    assert blocks["fp8"] > 120


def silent(phase: str, percent: float | None = None, load_attempt: object = None) -> None:
    pass


def settings_of(tiny_repo: TinyRepositories, **settings: object) -> WorkerSettings:
    return WorkerSettings(
        **{
            "variant": tiny_repo.specs()[0],
            "cache_dir": tiny_repo.cache_dir,
            "local_files_only": True,
            "device": "cpu",
            "max_num_seqs": 2,
            "num_threads": torch.get_num_threads(),
            **settings,
        }
    )


def test_cpu_kernels_that_cannot_be_used_are_refused_before_anything_is_looked_for(
    tiny_repo: TinyRepositories, monkeypatch
):
    monkeypatch.setattr(cpu_kernels, "why_not", lambda: "this CPU lacks avx512_f")
    phases: list[str] = []
    with pytest.raises(EngineStartError, match="cpu_kernels is 'native': this CPU lacks avx512_f"):
        build_engine(
            settings_of(tiny_repo, cpu_kernels="native"),
            LoadRequest(),
            lambda phase, percent=None, load_attempt=None: phases.append(phase),
        )
    assert phases == []


def test_built_engine_is_whole_and_described(tiny_repo: TinyRepositories):
    reported: list[tuple[str, float | None]] = []
    built = build_engine(
        settings_of(tiny_repo, cpu_kernels="torch"),
        LoadRequest(),
        lambda phase, percent=None, load_attempt=None: reported.append((phase, percent)),
    )
    assert built.engine.limits.vocab_size == 512
    description = ModelDescription.decode(built.model_description)
    assert description.repo == tiny_repo.gptq_repo
    assert description.commit in description.folder
    assert description.quantization.startswith("gptq 4-bit")
    assert description.defaults.stop_token_ids == {1, 3}
    assert description.model_type == "llama"
    phases = [phase for phase, _ in reported]
    assert phases[:2] == ["choosing the variant", "finding the files"]
    assert "preparing kernels" in phases
    assert phases[-3:] == ["self-test", "building the engine", "self-test"]
    assert description.self_test.passed
    assert description.self_test.backend == "int4pack"


def fail(*_args: object, **_more: object) -> None:
    raise RuntimeError("no such tile")


def failing_natively(fault):
    """Make an engine that fails if it is to compute with kernels in C++."""

    def make(model, config, **more):
        if not computes_natively(model.device, config):
            return Engine(model, config, **more)
        if fault == "made":
            fail()
        plain = Engine(model, replace(config, cpu_kernels="torch"), **more)
        plain.step = fail
        return plain

    return make


@pytest.mark.parametrize("fault", ["made", "asked"])
def test_kernels_in_cpp_that_fail_are_blamed_alone_and_left_out_when_told(
    tiny_repo, monkeypatch, fault
):
    monkeypatch.setattr(cpu_kernels, "why_not", lambda: None)
    monkeypatch.setattr(worker, "Engine", failing_natively(fault))
    with pytest.raises(
        EngineStartError, match=r"trying the C\+\+ kernels: .*no such tile"
    ) as caught:
        build_engine(settings_of(tiny_repo), LoadRequest(), silent)
    failure = StartFailure.of(caught.value)
    assert (failure.native, failure.backends) == (True, ())
    assert failure.kind is FailureKind.CANNOT_RUN
    built = build_engine(settings_of(tiny_repo), LoadRequest(excludes_native=True), silent)
    assert ModelDescription.decode(built.model_description).backend == "int4pack"


def test_a_process_that_ends_while_kernels_in_cpp_are_tried_has_named_them(tiny_repo, monkeypatch):
    seen: dict[str, list[StartFailure | None]] = {"auto": [], "torch": []}

    def report(phase: str, percent: float | None = None, load_attempt: object = None) -> None:
        if load_attempt is not None:
            seen[asked].append(LoadAttempt.decode(load_attempt).sudden_end)

    def make(model, config, **more):
        during[asked] = seen[asked][-1]
        return Engine(model, replace(config, cpu_kernels="torch"), **more)

    during: dict[str, StartFailure | None] = {}
    monkeypatch.setattr(cpu_kernels, "why_not", lambda: None)
    monkeypatch.setattr(worker, "Engine", make)
    for asked in seen:
        build_engine(settings_of(tiny_repo, cpu_kernels=asked), LoadRequest(), report)
    assert during == {"auto": StartFailure(FailureKind.CRASH, native=True), "torch": None}
    assert [ends[-1] for ends in seen.values()] == [None, None]


def test_pytorchs_kernels_leave_the_library_out_of_the_process(tiny_repo, tmp_path, monkeypatch):
    def load_library() -> None:
        raise AssertionError("it was to be left out")

    monkeypatch.setattr(cpu_kernels, "why_not", load_library)
    monkeypatch.setattr(library, "why_not", load_library)
    cache = tmp_path / "cache"
    shutil.copytree(tiny_repo.cache_dir, cache, symlinks=True)
    asked = settings_of(tiny_repo, cache_dir=cache, cpu_kernels="torch")
    assert asked.cpu_kernel_choice == "measured"
    assert build_engine(asked, LoadRequest(), silent)


def test_ways_to_multiply_are_measured_once_and_told_and_never_where_rows_are_alone(
    tiny_repo, tmp_path, monkeypatch
):
    # However busy the machine is.
    monkeypatch.setattr("engine.measured.choices.BUDGET_S", 300)
    monkeypatch.setattr("engine.measured.choices._LEAST_CPU_SHARE", 0.0)
    cache = tmp_path / "cache"
    shutil.copytree(tiny_repo.cache_dir, cache, symlinks=True)

    def start(**settings):
        asked = settings_of(tiny_repo, cache_dir=cache, **settings)
        with capture_logs() as logs:
            built = build_engine(asked, LoadRequest(), silent)
        arithmetic = ModelDescription.decode(built.model_description).arithmetic
        (chosen,) = [line for line in logs if line["event"] == "kernel_ways_chosen"]
        assert f"kernels: {chosen['table']}" in arithmetic
        assert "int4pack" in chosen["table"]
        return chosen

    first, second = start(), start()
    assert (first["source"], second["source"]) == ("measured", "cached")
    assert first["table"] == second["table"]
    assert (cache / "records" / "kernel-choices.json").is_file()
    assert start(cpu_kernel_choice="fixed")["source"] == "fixed"
    alone = start(batch_invariant=True)
    assert alone["source"] == "fixed"
    assert "native" not in alone["table"]
    assert "from 64 rows" in alone["table"]


def test_what_is_suspect_is_described_and_where_strict_refused(tiny_repo, monkeypatch):
    suspicion = Suspicion("scales_elsewhere", "scales belong to other groups")

    def load_suspect(*args, **options):
        return replace(load(*args, **options), suspicions=(suspicion,))

    monkeypatch.setattr(worker, "load", load_suspect)
    built = build_engine(settings_of(tiny_repo), LoadRequest(), silent)
    assert ModelDescription.decode(built.model_description).suspicions == (suspicion,)
    with pytest.raises(EngineStartError, match="scales belong to other groups") as caught:
        build_engine(settings_of(tiny_repo, strict=True), LoadRequest(), silent)
    assert "--strict" in str(caught.value)
    assert StartFailure.of(caught.value) is None  # no kernel or branch would mend it


def test_a_failed_self_test_ends_the_start_with_its_report(tiny_repo, monkeypatch):
    class Doubling(Int4PackBackend):
        def prepare(self, packed):
            return super().prepare(
                replace(packed, stored={**packed.stored, "scales": packed.stored["scales"] * 2})
            )

    monkeypatch.setattr(resolve, "BACKENDS", (Doubling(),))
    with pytest.raises(EngineStartError, match="self-test of int4pack failed") as caught:
        build_engine(settings_of(tiny_repo), LoadRequest(), silent)
    failure = StartFailure.of(caught.value)
    assert (failure.kind, failure.backends) == (FailureKind.SELF_TEST, ("int4pack",))
    assert not failure.self_test.passed


def test_damaged_files_leave_nothing_else_to_try_and_never_passes_over_them(tiny_repo, tmp_path):
    cache = Path(shutil.copytree(tiny_repo.cache_dir, tmp_path / "cache", symlinks=True))
    for blob in {p.resolve() for p in cache.glob("models--*/snapshots/*/generation_config.json")}:
        blob.write_bytes(blob.read_bytes().replace(b"{", b" {", 1)[:-1])
    with pytest.raises(EngineStartError, match=r"generation_config\.json is damaged") as caught:
        build_engine(settings_of(tiny_repo, cache_dir=cache), LoadRequest(), silent)
    assert StartFailure.of(caught.value) is None
    assert build_engine(
        settings_of(tiny_repo, cache_dir=cache, verify="never"), LoadRequest(), silent
    )


@pytest.mark.parametrize("verify", ["changed", "never"])
def test_files_in_doubt_are_hashed_though_nothing_tells_of_a_change_unless_nobody_may(
    tiny_repo, tmp_path, verify
):
    cache = Path(shutil.copytree(tiny_repo.cache_dir, tmp_path / "cache", symlinks=True))
    settings = settings_of(tiny_repo, cache_dir=cache, verify=verify)
    assert build_engine(settings, LoadRequest(), silent)  # which notes that the files are whole
    for blob in {p.resolve() for p in cache.glob("models--*/snapshots/*/*.safetensors")}:
        rot(blob)
    request = LoadRequest(excluded_backends=("int4pack",), doubts_files=True)
    if verify == "never":
        with capture_logs() as lines:
            assert build_engine(settings, request, silent)
        assert "files_in_doubt" in [line["event"] for line in lines]
        return
    assert build_engine(settings, LoadRequest(), silent)  # what the notes cannot see
    with pytest.raises(EngineStartError, match=r"model\.safetensors is damaged") as caught:
        build_engine(settings, request, silent)
    assert StartFailure.of(caught.value) is None


def rot(path: Path) -> None:
    """Turn a bit of a file's last bytes round, and let nothing tell of it."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_attempt_without_a_backend_runs_on_the_next(tiny_repo):
    built = build_engine(
        settings_of(tiny_repo), LoadRequest(excluded_backends=("int4pack",)), silent
    )
    assert ModelDescription.decode(built.model_description).backend == "fp16pack"


def test_attempt_without_any_backend_says_that_none_is_left(tiny_repo):
    nothing = LoadRequest(excluded_backends=tuple(resolve.backend_names()))
    with pytest.raises(EngineStartError, match="no backend") as caught:
        build_engine(settings_of(tiny_repo), nothing, silent)
    assert StartFailure.of(caught.value).kind is FailureKind.SELF_TEST


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"backend": "fast"}, "backend is 'fast'; choose one of auto"),
        ({"dtype": "int4"}, "dtype is 'int4'; choose one of auto, float32"),
        ({"device": "tpu"}, "tpu"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"variant": "tetrad/nothing"}, "tetrad/nothing is not in the cache"),
        ({"max_model_len": 10**6}, "this model was made for"),
    ],
)
def test_what_cannot_be_loaded_is_told_as_a_reason(tiny_repo, settings, reason):
    with pytest.raises(EngineStartError, match=reason):
        build_engine(
            settings_of(tiny_repo, **settings),
            LoadRequest(),
            silent,
        )


def test_weights_that_give_no_numbers_are_found_before_anybody_asks(loaded):
    config = resolve_engine_config(WorkerSettings(max_num_seqs=2), loaded)
    engine = Engine(deepcopy(loaded.model), config)
    self_test(engine)
    assert not engine.has_work
    broken = deepcopy(loaded.model)
    broken.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(EngineStartError, match="self-test failed: the model gave NaN"):
        self_test(Engine(broken, config))


def test_memory_that_the_cpu_cannot_give_is_known_for_what_it_is():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60, dtype=torch.uint8)
    assert failure_of(refused.value, LoadRequest()).kind is FailureKind.MEMORY


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError(),
        OutOfMemoryError("a step"),
        NotEnoughBlocksError("no room for one sequence"),
        NotEnoughMemoryError("weights 4 GB, free 3 GB"),
    ],
)
def test_want_of_memory_is_told_apart_from_other_reasons(error):
    assert failure_of(error, LoadRequest()).kind is FailureKind.MEMORY
    assert failure_of(RuntimeError("shapes differ"), LoadRequest()) is None


def test_attempt_with_a_shorter_context_gets_it(tiny_repo):
    whole = build_engine(settings_of(tiny_repo), LoadRequest(), silent).engine.limits.max_model_len
    cut = build_engine(settings_of(tiny_repo), LoadRequest(max_model_len=whole // 2), silent)
    assert cut.engine.limits.max_model_len == whole // 2


def test_the_cache_shrinks_as_the_context_does(loaded, monkeypatch):
    """Where it was too large, one as large for a shorter context would be so, too."""
    monkeypatch.setattr(sizing, "free_device_bytes", lambda device: 16 * 2**20)
    settings = WorkerSettings(max_num_seqs=512)
    whole = resolve_engine_config(settings, loaded)
    halved = resolve_engine_config(settings, loaded, longest=whole.max_model_len // 2)
    assert abs(halved.num_blocks - whole.num_blocks // 2) <= 1
    shortest = resolve_engine_config(settings, loaded, longest=32)
    assert shortest.num_blocks * shortest.block_size >= 32  # one sequence, in any case
    asked = WorkerSettings(max_num_seqs=512, kv_cache_size=2**20)
    assert (
        resolve_engine_config(asked, loaded, longest=64).num_blocks
        == resolve_engine_config(asked, loaded).num_blocks
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "there is not enough memory: MemoryError; free memory"),
        (NotEnoughMemoryError("weights 4 GB, free 3 GB"), "weights 4 GB, free 3 GB"),
    ],
)
def test_what_a_library_says_of_memory_is_told_with_what_to_do(error, message):
    assert reason_of(error).startswith(message)


def test_attempt_at_a_chosen_branch_loads_that_one(tiny_repo):
    first, second, *_ = tiny_repo.specs()
    built = build_engine(settings_of(tiny_repo, variant=first), LoadRequest(variant=second), silent)
    assert second.endswith(f":{ModelDescription.decode(built.model_description).revision}")


def test_predicted_memory_is_told_beside_what_was_measured_and_kept_by_commit(tiny_repo, tmp_path):
    built = build_engine(settings_of(tiny_repo, kv_cache_size=50_000_000), LoadRequest(), silent)
    description = ModelDescription.decode(built.model_description)
    memory = description.memory
    assert memory.device == "cpu"
    assert sum(memory.breakdown.values()) == memory.predicted
    assert memory.kv_cache == memory.breakdown["kv_cache"] > 0
    assert 0.5 < memory.measured / memory.predicted < 2
    kept = Records(tiny_repo.cache_dir).read(description.commit, "memory:cpu:int4pack")
    assert kept["predicted"] == memory.predicted - memory.kv_cache
    assert kept["measured"] == memory.measured - memory.kv_cache


def test_what_building_the_demo_leaves_behind_is_not_counted_as_the_variants(
    tiny_repo, monkeypatch
):
    left: list[torch.Tensor] = []

    def build(spec, cache_dir, *, on_progress):
        left.append(torch.ones(LEFT_BYTES, dtype=torch.uint8))

    named = build_engine(settings_of(tiny_repo), LoadRequest(), silent)
    monkeypatch.setattr(worker, "build_named", build)
    demo = build_engine(settings_of(tiny_repo), LoadRequest(), silent)
    counted = [
        ModelDescription.decode(one.model_description).memory.measured for one in (named, demo)
    ]
    assert left
    assert counted[1] - counted[0] < LEFT_BYTES / 2


def test_a_worker_launches_its_kernels_on_the_gpu_that_was_chosen(monkeypatch):
    """Of several "auto" takes the emptiest, which need not be the first."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(worker, "resolve_device", lambda asked: "cuda:1")
    monkeypatch.setattr(worker, "work_on", chosen.append)
    monkeypatch.setattr(worker.torch, "set_num_threads", lambda number: None)
    worker.prepare(WorkerSettings(variant="owner/name"), LoadRequest())
    assert chosen == [torch.device("cuda", 1)]
