"""What the kernels are compiled from, and the file that holds what came of it.

The file's name has a hash of the sources and of how they are compiled, so that one of other sources
is never taken for theirs. Nothing here needs PyTorch.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parent / "src"
COMPILED = Path(__file__).parent / "compiled"

# One library for PyTorch 2.11 and whatever is newer: only what is stable since then is declared.
OLDEST_TORCH = (2, 11)
_TARGET = f"{OLDEST_TORCH[0] << 56 | OLDEST_TORCH[1] << 48:#018x}"
# What the kernels take of a CPU, as PyTorch names it. Nothing depends on the CPU at hand.
INSTRUCTIONS = (*("avx512_f", "avx512_bw", "avx512_dq", "avx512_vl", "avx512_vbmi", "avx512_bf16"),)
# What they take where it is there, and only when they are told to; it needs GCC 11 or newer.
_ASKED_FOR = ("-mamx-tile", "-mamx-bf16")
COMPILE_FLAGS = (
    # What is contracted is written so: else compilers would differ in roundings.
    *("-O3", "-std=c++17", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden"),
    *(f"-m{name.replace('_', '')}" for name in INSTRUCTIONS),
    *_ASKED_FOR,
    f"-DTORCH_TARGET_VERSION={_TARGET}",
)
LINK_FLAGS = ("-shared", "-Wl,--no-undefined")
LIBRARIES = ("-ltorch_cpu",)


@cache
def source_hash(folder: Path = SOURCE) -> str:
    """Return 16 hexadecimal digits that stand for the sources and how they are compiled."""
    digest = hashlib.sha256("\0".join((*COMPILE_FLAGS, *LINK_FLAGS, *LIBRARIES)).encode())
    for path in sorted([*folder.glob("*.h"), *folder.glob("*.cpp")]):
        content = path.read_bytes()
        digest.update(f"\0{path.name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def library_path(folder: Path = COMPILED, *, source: Path = SOURCE) -> Path:
    """Return where the sources' library lies once it is compiled."""
    return folder / f"kernels-{source_hash(source)}.so"
