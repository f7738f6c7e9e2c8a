"""Compiles every Triton kernel without a card, and says what each takes of one.

    python -m benchmarks.gpu.kernel_table            compile, and compare with the committed table
    python -m benchmarks.gpu.kernel_table --write    compile, and write the table

The table holds for one version of Triton and lies beside this file, under that version. No kernel
may spill, or ask for more shared memory than a card has: Triton does not look at that before a
kernel is loaded. Registers and spills are read from the machine code by Triton's own cuobjdump.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOMS = ("engine.kernels", "loaders.model.kernels.triton")
# What one program may have of shared memory (CUDA C++ Programming Guide, "Technical
# Specifications per Compute Capability"), by compute capability without its point.
MAX_SHARED_BYTES = {
    80: 163 * 1024,
    86: 99 * 1024,
    89: 99 * 1024,
    90: 227 * 1024,
    100: 227 * 1024,
    120: 99 * 1024,
}
UP_TO_DATE, WRONG, WRONG_USE = 0, 1, 2
_NUM_PROCESSES = 2


class CompileCase(Protocol):
    """What each room with kernels has of its own: neither may import the other."""

    name: str  # begins with the name under which its launches are counted
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, int]
    # Where a room has them, too: `least_capability: int`, the first that has what the kernel uses;
    # `aligned: tuple[str, ...]`, numbers that are multiples of 16, where no ":16" says so.


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a case takes on one architecture."""

    registers: int  # of each thread
    shared_bytes: int  # of each program
    spilled_bytes: int  # of each thread, in slow memory
    cubin_bytes: int

    def __str__(self) -> str:
        spilled = f" / spills {self.spilled_bytes}" if self.spilled_bytes else ""
        return f"{self.registers} / {self.shared_bytes} / {self.cubin_bytes}{spilled}"


@dataclass(frozen=True, slots=True)
class Row:
    """One case on all architectures."""

    name: str
    num_warps: int
    compiled: dict[int, Compiled]  # by compute capability, of those that it is for


def main(arguments: Sequence[str]) -> int:
    """Compile everything, then write or compare; return the exit code."""
    if list(arguments) not in ([], ["--write"]):
        sys.stderr.write(f"usage: python -m {__spec__.name} [--write]\n")
        return WRONG_USE
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        sys.stderr.write("TRITON_INTERPRET is set: Triton would compile nothing; unset it\n")
        return WRONG_USE
    version, rows = compile_all()
    table = table_path(version)
    if arguments:
        table.write_text(render(version, rows), encoding="utf-8")
    found = faults(rows) + differences(table, render(version, rows))
    sys.stderr.writelines(f"{fault}\n" for fault in found)
    return WRONG if found else UP_TO_DATE


def table_path(version: str) -> Path:
    """Where the table of a version of Triton lies."""
    return Path(__file__).with_name(f"kernels-triton-{version}.md")


def compile_all() -> tuple[str, list[Row]]:
    """Compile every case for every architecture; return Triton's version and the rows."""
    # Set for the processes below, before they import Triton. A cubin tells where its source lies,
    # which is not the kernel's size. An empty cache, so that what is in the table was compiled.
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        with ProcessPoolExecutor(_NUM_PROCESSES, mp_context=get_context("spawn")) as processes:
            version, uses = processes.submit(_list_uses).result()
            rows = list(processes.map(_compile_use, uses))
    return version, rows


def kernel_names() -> set[str]:
    """Name the kernels that have cases, as their launches are counted."""
    _, uses = _list_uses()
    return {_cases(module)[number].name.split()[0] for module, number in uses}


def faults(rows: Sequence[Row]) -> list[str]:
    """Say which kernels no card would run well, or at all."""
    found = []
    for row in rows:
        for architecture, compiled in row.compiled.items():
            where = f"{row.name} on sm_{architecture}"
            if compiled.spilled_bytes:
                found.append(f"{where} spills {compiled.spilled_bytes} bytes a thread")
            most = MAX_SHARED_BYTES[architecture]
            if compiled.shared_bytes > most:
                found.append(
                    f"{where} needs {compiled.shared_bytes} bytes of shared memory of {most}"
                )
    return found


def differences(table: Path, text: str) -> list[str]:
    """Say in which lines the committed table is another than the text."""
    write = f"write it with: python -m {__spec__.name} --write"
    if not table.is_file():
        return [f"there is no {table.name}; {write}"]
    written = table.read_text(encoding="utf-8").splitlines()
    lines = text.splitlines()
    differing = [f"- {line}" for line in written if line not in lines]
    differing += [f"+ {line}" for line in lines if line not in written]
    if not differing and written != lines:
        differing = ["its lines are in another order"]
    return [f"{table.name} is not up to date; {write}", *differing] if differing else []


def render(version: str, rows: Sequence[Row]) -> str:
    """Write the table, a line for each case."""
    architectures = list(MAX_SHARED_BYTES)
    lines = [
        f"# Triton kernels as Triton {version} compiles them",
        "",
        "Registers a thread / bytes of shared memory a program / bytes of machine code; nothing"
        " spills unless it says so.",
        f"Written by `python -m {__spec__.name} --write`.",
        "",
        "| kernel | warps | " + " | ".join(f"sm_{number}" for number in architectures) + " |",
        "|---|---|" + "---|" * len(architectures),
    ]
    for row in rows:
        cells = [str(row.compiled.get(number, "")) for number in architectures]
        lines.append(f"| {row.name} | {row.num_warps} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def read_resources(cuobjdump: str) -> tuple[int, int]:
    """Return registers and spilled bytes of what `cuobjdump --dump-resource-usage` says."""
    found = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", cuobjdump)
    if found is None:
        raise ValueError(f"cuobjdump says nothing about registers: {cuobjdump!r}")
    registers, stack, local = (int(number) for number in found.groups())
    return registers, stack + local


def aligned(case: CompileCase) -> dict[tuple[int], list[list[object]]]:
    """Say which arguments are multiples of 16: all pointers, and numbers that are said to be."""
    numbers: tuple[str, ...] = getattr(case, "aligned", ())
    return {
        (index,): [["tt.divisibility", 16]]
        for index, (name, kind) in enumerate(case.signature.items())
        if kind.startswith("*") or kind.endswith(":16") or name in numbers
    }


def _list_uses() -> tuple[str, list[tuple[str, int]]]:
    """Find every case, as a module's name and a number: what Triton decorates can't be sent."""
    import triton

    uses = []
    for room in ROOMS:
        try:
            package = importlib.import_module(room)
        except ModuleNotFoundError:
            continue
        for module in pkgutil.iter_modules(package.__path__, f"{room}."):
            uses += [(module.name, number) for number in range(len(_cases(module.name)))]
    return triton.__version__, uses


def _cases(module: str) -> list[CompileCase]:
    list_cases = getattr(importlib.import_module(module), "compile_cases", list)
    cases: list[CompileCase] = list_cases()
    return cases


def _compile_use(use: tuple[str, int]) -> Row:
    module, number = use
    case = _cases(module)[number]
    least = getattr(case, "least_capability", 0)
    compiled = {
        architecture: _compile(case, architecture)
        for architecture in MAX_SHARED_BYTES
        if architecture >= least
    }
    return Row(case.name, case.options["num_warps"], compiled)


def _compile(case: CompileCase, architecture: int) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(
        fn=case.kernel,
        signature={name: kind.removesuffix(":16") for name, kind in case.signature.items()},
        constexprs=case.constants,
        attrs=aligned(case),
    )
    try:
        kernel = triton.compile(
            source, target=GPUTarget("cuda", architecture, 32), options=case.options
        )
    except Exception as error:
        error.add_note(f"while compiling {case.name} for sm_{architecture}")
        raise
    cubin = kernel.asm["cubin"]
    registers, spilled = read_resources(_dump(cubin))
    return Compiled(registers, kernel.metadata.shared, spilled, len(cubin))


def _dump(cubin: bytes) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
