"""Gathers the wheels that a GPU machine without a network needs for `benchmarks/gpu/run`.

    benchmarks/gpu/wheels [FOLDER]

Downloads what wheels.txt lists, for Python 3.12 on x86-64 Linux, whatever runs this; checks that
nothing they need is missing; and refuses a set that, together with the tree, is more than such a
machine takes in.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROOT = Path(__file__).parents[2]
LOCK = Path(__file__).with_name("wheels.txt")
DEFAULT_FOLDER = ROOT / "build" / "wheels"  # git ignores it
MAX_BYTES = 64 * 2**20  # of wheels and tree
PYTHON = "3.12"
# pip matches each exactly; a wheel names the oldest system that it runs on.
PLATFORMS = (
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
)
# PyTorch brings what it needs itself; of that, whatever others need too is carried nevertheless.
ON_THE_MACHINE = frozenset({"torch", "triton", "numpy"})
ENVIRONMENT = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": f"{PYTHON}.0",
    "python_version": PYTHON,
    "sys_platform": "linux",
}


@dataclass(frozen=True, slots=True)
class Wheel:
    """What a wheel says of itself."""

    name: str  # as package indexes compare names
    version: str
    requirements: tuple[Requirement, ...]


def main() -> int:
    """Download, check and weigh; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu/wheels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, nargs="?", default=DEFAULT_FOLDER)
    folder: Path = parser.parse_args().folder
    download(read_lock(LOCK.read_text()), folder)
    files = sorted(folder.glob("*.whl"))
    lacking = missing([read_wheel(file) for file in files])
    for line in lacking:
        print(line, file=sys.stderr)
    wheels_bytes, tree_bytes = (sum(f.stat().st_size for f in of) for of in (files, tree_files()))
    print(
        f"{len(files)} wheels in {folder}: {wheels_bytes / 2**20:.1f} MiB; the tree:"
        f" {tree_bytes / 2**20:.1f} MiB; together {(wheels_bytes + tree_bytes) / 2**20:.1f} of"
        f" {MAX_BYTES / 2**20:.0f} MiB"
    )
    is_too_large = wheels_bytes + tree_bytes > MAX_BYTES
    if is_too_large:
        print("that is too much; carry fewer packages", file=sys.stderr)
    return 1 if lacking or is_too_large else 0


def read_lock(text: str) -> list[str]:
    """Return the entries, `name==version`, of a list with comments."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def download(pins: Sequence[str], folder: Path) -> None:
    """Download one wheel for each entry; raises where there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):  # two versions of a package would stop the installation
        old.unlink()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--python-version", PYTHON]
    command += ["--implementation", "cp", "--dest", str(folder)]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    subprocess.run([*command, *pins], check=True)


def read_wheel(file: Path) -> Wheel:
    """Read a wheel's name, version and requirements."""
    with zipfile.ZipFile(file) as archive:
        name = next(
            name
            for name in archive.namelist()
            if name.endswith(".dist-info/METADATA") and name.count("/") == 1
        )
        headers = HeaderParser().parsestr(archive.read(name).decode())
    return Wheel(
        canonicalize_name(headers["Name"]),
        headers["Version"],
        tuple(map(Requirement, headers.get_all("Requires-Dist") or ())),
    )


def missing(wheels: Iterable[Wheel]) -> list[str]:
    """Say of each requirement that no wheel and not the machine meets who has it."""
    by_name = {wheel.name: wheel for wheel in wheels}
    return [
        f"{wheel.name} needs {requirement}, "
        + (f"{found.version} is here" if found else "which is not here")
        for wheel in by_name.values()
        for requirement in _all_requirements(wheel, by_name)
        if canonicalize_name(requirement.name) not in ON_THE_MACHINE
        and not _is_met(requirement, found := by_name.get(canonicalize_name(requirement.name)))
    ]


def _is_met(requirement: Requirement, found: Wheel | None) -> bool:
    return found is not None and requirement.specifier.contains(found.version, prereleases=True)


def _all_requirements(wheel: Wheel, by_name: dict[str, Wheel]) -> list[Requirement]:
    """Return what a wheel needs here, as it is, and with the extras that others ask of it."""
    extras = {""} | {
        extra
        for other in by_name.values()
        for requirement in other.requirements
        if canonicalize_name(requirement.name) == wheel.name and _applies(requirement, {""})
        for extra in requirement.extras
    }
    return [requirement for requirement in wheel.requirements if _applies(requirement, extras)]


def _applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate(ENVIRONMENT | {"extra": each}) for each in extras)


def tree_files() -> list[Path]:
    """List the files that git tracks or would: what a copy of the tree holds."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others"]
    done = subprocess.run(
        [*command, "--exclude-standard"], capture_output=True, text=True, check=True
    )
    files = (ROOT / name for name in done.stdout.split("\0") if name)
    return [file for file in files if file.is_file()]


if __name__ == "__main__":
    sys.exit(main())
