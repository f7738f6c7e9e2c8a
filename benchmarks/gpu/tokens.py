"""Part "tokens": a small act-order model on the engine says what its files say.

What the files say is told by a stock Transformers model on the CPU in float32, with weights that
the tests' own reader unpacked: no code of the loaders or the engine. Half precision may pick
another token where the two leading logits all but tie, so every token is judged by the reference's
logits after the very tokens before it. Then which kernels a step launches, and a whole start as the
server makes it, with the tests that it makes of layers and steps.
"""

from __future__ import annotations

import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu.context import CheckFailedError
from benchmarks.gpu.launched import differences, expected_launches, launches_by_step
from benchmarks.gpu.streams import greedy, run_mixed, run_to_the_end
from engine.config import EngineConfig
from engine.core import Engine
from engine.execution.device_faults import find_fault
from engine.execution.path import resolve_path
from loaders.load import load
from loaders.quantization.kernel_rules import DeviceFacts
from service.settings import WorkerSettings
from service.worker.build import build_engine
from service.worker_protocol.load_attempt import LoadRequest
from service.worker_protocol.model_description import ModelDescription
from tests.dequantize import dequantized_model
from tests.greedy import MAX_LOGIT_ERROR
from tests.models import VOCAB_SIZE, tiny_llama, tiny_tokenizer, write_gptq_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.gpu.context import Context
    from engine.sampling_params import SamplingParams

NUM_PROMPTS, DRY_NUM_PROMPTS = 24, 3
NUM_TOKENS, DRY_NUM_TOKENS = 24, 6
# Either of two logits may be off by so much of their spread.
NEAR = 2 * MAX_LOGIT_ERROR


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a model's tokens compare with the reference's logits."""

    equal: int  # the reference's own choice
    near: int  # not that, but all but tied with it
    wrong: int

    def __str__(self) -> str:
        return f"{self.equal} equal, {self.near} near ties, {self.wrong} wrong"


# How the engine may run the model; all must say what the files say. The first is what users get.
WAYS: dict[str, dict[str, Any]] = {
    "graphs": {"enforce_eager": False},
    "eager": {"enforce_eager": True},
    "torch step kernels": {"enforce_eager": True, "step_kernels": "torch"},
}
MIXED_STEPS, DRY_MIXED_STEPS = 200, 9
MIXED = {"mixed, overlapped": True, "mixed, one by one": False}
COUNTED_TOKENS = 4
# That a start makes of its steps, beside those of layers; graphs have more.
STEP_CHECKS = (
    *("add_norm", "silu_mul", "rotate_and_store", "decode_attention"),
    "first tokens of 2 layers",
)
# In a dry run kernels are interpreted, so a model of few numbers.
DRY_SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 256,
}
DRY_CAPABILITY = "9.0"


def run(context: Context) -> None:
    """Compare every way; raises `CheckFailedError` where a token is wrong or a way cannot run."""
    found: dict[str, Any] = {}
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="gpu-tokens-") as name:
        folder = write_gptq_checkpoint(
            Path(name, "model"), tiny_llama(), desc_act=True, tokenizer=tiny_tokenizer()
        )
        comparison = Comparison(folder, dequantized_model(folder), context)
        checks = {way: partial(comparison.of_way, options) for way, options in WAYS.items()} | {
            way: partial(comparison.of_mixed_steps, is_on) for way, is_on in MIXED.items()
        }
        small = folder
        if context.is_dry:
            small = write_gptq_checkpoint(
                Path(name, "small"),
                tiny_llama(**DRY_SHAPE),
                group_size=32,
                desc_act=True,
                tokenizer=tiny_tokenizer(),
            )
        checks["launches"] = partial(_count_launches, small, context)
        checks["whole start"] = partial(_start_as_served, small, context)
        for way, check in checks.items():
            context.tell(way)
            found[way] = _outcome(check)
            problems += [f"{way}: {problem}" for problem in found[way]["problems"]]
            context.save(**found, summary="; ".join(f"{key}: {_told(found[key])}" for key in found))
            if found[way].get("is_fatal"):
                break
    if problems:
        raise CheckFailedError("; ".join(problems)[:600])


def _outcome(check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run a check; one that cannot run leaves the others to theirs, unless the device is lost."""
    began = time.perf_counter()
    try:
        found = {"problems": [], **check()}
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"[:500]
        found = {"problems": [reason], "is_fatal": find_fault(error) is not None}
    return {**found, "seconds": round(time.perf_counter() - began, 1)}


def _told(found: dict[str, Any]) -> str:
    return str(found.get("told") or "went wrong")


@dataclass(frozen=True, slots=True)
class Comparison:
    """A checkpoint, and what its weights say."""

    folder: Path
    reference: Any
    context: Context

    @property
    def prompts(self) -> list[list[int]]:
        """The prompts of every way."""
        return make_prompts(DRY_NUM_PROMPTS if self.context.is_dry else NUM_PROMPTS)

    @property
    def params(self) -> SamplingParams:
        """How every way answers them."""
        return greedy(DRY_NUM_TOKENS if self.context.is_dry else NUM_TOKENS)

    def of_way(self, options: dict[str, Any]) -> dict[str, Any]:
        """Compare the answers of an engine with such options."""
        engine, backend = make_engine(self.folder, self.context, **options)
        answers = run_to_the_end(engine, self.prompts, self.params)
        return _found(backend, judge(self.reference, self.prompts, answers))

    def of_mixed_steps(self, is_overlapped: bool) -> dict[str, Any]:
        """Compare answers that began at different times."""
        engine, backend = make_engine(self.folder, self.context, is_overlapped=is_overlapped)
        num_steps = DRY_MIXED_STEPS if self.context.is_dry else MIXED_STEPS
        asked, answers = run_mixed(engine, self.prompts, self.params, num_steps)
        return _found(backend, judge(self.reference, asked, answers))


def _count_launches(folder: Path, context: Context) -> dict[str, Any]:
    """Count what steps launch; on a GPU also that graphs are replayed, which launch nothing."""
    engine, backend = make_engine(folder, context, is_gpu_path=True, enforce_eager=True)
    (prompt,) = make_prompts(1)
    prompted, decoded = launches_by_step(engine, prompt, COUNTED_TOKENS)
    problems = differences(decoded, expected_launches(tiny_llama().config.num_hidden_layers))
    attention = f"prompt_attention_{'sdpa' if context.is_dry else 'flash'}"
    if not prompted[attention]:
        problems.append(f"a prompt was read without {attention}: {dict(prompted)}")
    replayed: Counter[str] = Counter()
    if not context.is_dry:
        recorded, _ = make_engine(folder, context)
        _, replayed = launches_by_step(recorded, prompt, COUNTED_TOKENS)
        # The only steps that launched are those of the prompt.
        if replayed["paged_decode"]:
            problems.append(f"decode steps were not replayed: {dict(replayed)}")
    return {
        "told": f"{sum(decoded.values())} launches a decode step",
        "backend": backend,
        "problems": problems,
        "decode_step": dict(decoded),
        "prompt_step": dict(prompted),
    }


def _start_as_served(folder: Path, context: Context) -> dict[str, Any]:
    """Build the engine as the server does, its self-test and the test of its steps included."""
    wanted = "reference" if context.is_dry else "auto"
    settings = WorkerSettings(
        variant=str(folder),
        device=context.device,
        cache_dir=folder.parent,
        local_files_only=True,
        # Linear kernels take nine tenths of the time where they are interpreted.
        backend=wanted,
        enforce_eager=True if context.is_dry else "auto",
        max_num_seqs=1 if context.is_dry else 8,
        max_model_len=96 if context.is_dry else 1024,
        kv_cache_size=2**20 if context.is_dry else 2**26,
        gpu_rehearsal=DRY_CAPABILITY if context.is_dry else None,
    )
    built = build_engine(settings, LoadRequest(), _ignore_progress)
    described = ModelDescription.decode(built.model_description)
    report = described.self_test
    checks = () if report is None else report.checks
    failed = [f"{check.name}: {check.detail}" for check in checks if check.passed is False]
    lacking = [name for name in STEP_CHECKS if not any(check.name == name for check in checks)]
    if not context.is_dry and described.backend != "triton":
        failed.append(f"backend {described.backend}, expected triton")
    return {
        "told": f"{len(checks)} checks",
        "backend": described.backend,
        "unsupported": described.unsupported,
        "problems": failed + [f"{name} was not tested" for name in lacking],
        "checks": [
            {
                "name": check.name,
                "passed": check.passed,
                "worst": check.worst,
                "detail": check.detail,
            }
            for check in checks
        ],
        "memory": repr(described.memory),
    }


def _ignore_progress(phase: str, percent: float | None = None, load_attempt: object = None) -> None:
    pass


def _found(backend: str, agreement: Agreement) -> dict[str, Any]:
    problems = (
        [f"{agreement.wrong} tokens are not what the weights give"] if agreement.wrong else []
    )
    return {"told": str(agreement), "backend": backend, "problems": problems}


def make_prompts(count: int) -> list[list[int]]:
    """Make random prompts of many lengths."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(5, VOCAB_SIZE, (5 + 7 * number,), generator=generator).tolist()
        for number in range(count)
    ]


def make_engine(
    folder: Path,
    context: Context,
    *,
    is_overlapped: bool | None = None,
    is_gpu_path: bool = False,
    **options: Any,
) -> tuple[Engine, str]:
    """Load the model onto an engine; return it and the backends in use.

    is_overlapped: whether a step is launched before the one before it was read; None is the
    device's own way. is_gpu_path: also in a dry run, where kernels are interpreted.
    """
    facts = None
    if context.is_dry and is_gpu_path:
        facts, options = DeviceFacts("cuda", (9, 0)), {**options, "step_kernels": "triton"}
    loaded = load(str(folder), device=context.device, cache_dir=folder.parent, device_facts=facts)
    config = EngineConfig(
        max_num_seqs=NUM_PROMPTS,
        max_num_batched_tokens=256,  # long prompts come in chunks
        max_model_len=512,
        num_blocks=512,
        **options,
    )
    path = resolve_path(torch.device(context.device), config)
    if is_overlapped is not None:
        path = replace(path, is_overlapped=is_overlapped)
    return Engine(loaded.model, config, path=path), loaded.provenance.backend


@torch.inference_mode()
def judge(reference: Any, prompts: list[list[int]], answers: list[list[int]]) -> Agreement:
    """Compare each token with the reference's logits after those before it."""
    equal = near = wrong = 0
    for prompt, tokens in zip(prompts, answers, strict=True):
        logits = reference(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        best = logits.max(dim=-1).values
        taken = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        behind = (best - taken) / logits.std(dim=-1)
        equal += int((behind == 0).sum())
        wrong += int((behind > NEAR).sum())
        near += int(((behind > 0) & (behind <= NEAR)).sum())
    return Agreement(equal, near, wrong)
