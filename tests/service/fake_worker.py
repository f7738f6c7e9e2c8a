"""A worker's process with a fake engine: everything is real but the model.

`FAKE_ENGINE` in the environment holds its options as JSON: folder (of a tokenizer), step_s, load_s,
load_fails (a message), most_context (tokens; a longer one is out of memory), killed_above (tokens;
a longer context has the process killed), breaks_loading, vocab_size, answer_ids_end. A request's
`user` may carry an ailment.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from typing import TYPE_CHECKING

import structlog

from engine.errors import EngineStartError
from engine.process.loop import BuiltEngine
from loaders.checkpoint.generation_defaults import GenerationDefaults
from service.worker.process import main
from service.worker_protocol.load_attempt import FailureKind, LoadAttempt, StartFailure
from service.worker_protocol.model_description import ModelDescription
from tests.engine.fake_engine import FakeEngine

if TYPE_CHECKING:
    from engine.process.loop import ReportProgress
    from engine.request import SequenceRequest
    from service.settings import WorkerSettings
    from service.worker_protocol.load_attempt import LoadRequest

log = structlog.get_logger(__name__)

MODEL = "fake/model"
MAX_MODEL_LEN = 100_000
VOCAB_SIZE = 260  # of a byte tokenizer
ASCII_END = 98  # its ids below, but for the special ones, are ASCII characters


class HangsWhenFreed:
    """Never comes back from being freed, and lets no other thread run meanwhile."""

    def __del__(self) -> None:
        ctypes.PyDLL(None).sleep(1000)


def fall_ill(request: SequenceRequest, token: int) -> None:
    """Fail as the request's caller wants it."""
    if request.caller == "hang":
        time.sleep(1000)
    if request.caller == "illegal access":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if request.caller == "illegal access, and a clean-up that hangs":
        holds_on = HangsWhenFreed()
        raise RuntimeError("CUDA error: device-side assert triggered", holds_on)
    if request.caller == "chatty":
        for number in range(1000):
            log.warning("chatty", number=number, more="x" * 200)
    if request.caller == "raise":
        raise ZeroDivisionError("/a/path that is nobody's business")
    if request.caller == "exit":
        os._exit(3)
    if request.caller == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)


def build(
    settings: WorkerSettings, load_request: LoadRequest, report_progress: ReportProgress
) -> BuiltEngine:
    options = json.loads(os.environ["FAKE_ENGINE"])
    report_progress("pretending", 50)
    time.sleep(options.get("load_s", 0))
    if reason := options.get("load_fails"):
        log.info("self_test", passed=False)
        log.error("self_test_failed", reason=reason)  # right behind another, as in the real one
        raise EngineStartError(reason)
    max_model_len = load_request.max_model_len or MAX_MODEL_LEN
    report_progress(
        "pretending", load_attempt=LoadAttempt(variant=MODEL, max_model_len=max_model_len).encode()
    )
    if max_model_len > options.get("most_context", MAX_MODEL_LEN):
        raise EngineStartError("no room", start_failure=StartFailure(FailureKind.MEMORY).encode())
    if max_model_len > options.get("killed_above", MAX_MODEL_LEN):
        time.sleep(0.3)  # until what was told is on its way, as while weights are read
        os.kill(os.getpid(), signal.SIGKILL)
    if options.get("breaks_loading"):
        log.info("about_to_break")
        raise ZeroDivisionError
    if settings.variant == "fake/broken":
        raise EngineStartError("fake/broken cannot be loaded")
    engine = FakeEngine(
        max_num_seqs=settings.max_num_seqs,
        max_model_len=max_model_len,
        vocab_size=options.get("vocab_size", VOCAB_SIZE),
        answer_ids_end=options.get("answer_ids_end", ASCII_END),
        step_s=options.get("step_s", 0.0),
        fails=fall_ill,
    )
    description = ModelDescription(
        repo="fake/model",
        revision=settings.variant,
        commit=None,
        folder=options["folder"],
        quantization="none",
        backend="none",
        dtype="float32",
        device="cpu",
        is_batch_invariant=False,
        model_type="llama",
        vocab_size=options.get("vocab_size", VOCAB_SIZE),
        num_hidden_layers=1,
        defaults=GenerationDefaults(None, None, None, frozenset()),
    )
    return BuiltEngine(engine, description.encode())


if __name__ == "__main__":
    main(build)
