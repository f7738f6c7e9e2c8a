"""What kernels' compilers and drivers say when they fail, in words an operator can act on."""

from __future__ import annotations

import subprocess

from engine.errors import EngineError

# What is found in a message → what it means, and what to do.
_MEANINGS = (
    (
        "Failed to find C compiler",
        "Triton found no C compiler, which starting a kernel takes; install gcc (a C compiler)",
    ),
    (
        "unsupported toolchain",
        "the GPU's driver is older than the kernels' compiler; update the driver",
    ),
    (
        "no kernel image is available",
        "the kernels cannot be built for this GPU; another release of Triton may know it",
    ),
    (
        "kernel image is invalid",
        "the GPU's driver refuses the kernels' code; update the driver",
    ),
    ("out of resource", "a kernel needs more of the GPU than it has"),
    ("PTXAS error", "a kernel could not be assembled for this GPU"),
)
_MAX_WORDS = 160  # characters of what a library says that are passed on


def explain(error: Exception) -> str:
    """Say what an error means."""
    if isinstance(error, EngineError):
        return str(error)
    if isinstance(error, (subprocess.CalledProcessError, FileNotFoundError)):
        return (
            f"a compiler that Triton starts failed ({_first_line(str(error))}); install gcc (a C"
            " compiler) and Python's development headers"
        )
    return explain_words(str(error)) or _unknown(error)


def explain_words(words: str) -> str | None:
    """Say what a message means; None for one that is not known."""
    for found, meaning in _MEANINGS:
        if found in words:
            return meaning
    return None


def _unknown(error: Exception) -> str:
    name = type(error).__name__
    if type(error).__module__.startswith("triton.compiler"):
        # The source comes first, what is wrong with it last.
        return f"a kernel does not compile: {_last_line(str(error)) or name}"
    return f"{name}: {_first_line(str(error))}" if str(error).strip() else name


def _first_line(words: str) -> str:
    return words.strip().partition("\n")[0][:_MAX_WORDS]


def _last_line(words: str) -> str:
    return words.strip().rpartition("\n")[2].strip()[:_MAX_WORDS]
