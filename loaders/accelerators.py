"""What a variant may run on: a table of common cards, `--gpu` as people write it, and this machine.

A card's memory is what its driver reports, which is less than its name says where error correction
takes a part: an A10G is sold with 24 GB and has 22.5 GiB. Makers' GB are 2^30 bytes here, as they
are on the box. Nothing here needs a GPU, a driver or PyTorch.
"""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from loaders.errors import InvalidDeviceError
from loaders.memory import cpu_free_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DeviceKind = Literal["cuda", "cpu"]

MIB, GIB = 1024**2, 1024**3
MAX_DEVICES = 64
MAX_MEMORY_BYTES = 1024**5
_UNITS = {"mb": MIB, "mib": MIB, "m": MIB, "gb": GIB, "gib": GIB, "g": GIB, "": GIB, "tb": 1024**4}
_DEVICES = re.compile(
    r"(?:(?P<count>\d{1,4})\s*[x×]\s*)?(?P<name>[^:]{1,80}?)(?::(?P<size>.{0,40}))?"
)
_FORMS = "use A10G, 2xA10G:24GB, NAME:SIZE for a card that is not in the table, cpu, cpu:16GB, auto"


@dataclass(frozen=True, slots=True)
class Card:
    """One model of card."""

    name: str
    sold_gib: int  # as it is sold
    memory_mib: int  # as its driver reports
    compute_capability: tuple[int, int]
    bandwidth: int  # 10^9 bytes a second, the maker's figure


@dataclass(frozen=True, slots=True)
class Devices:
    """What a variant shall run on: one device, or several alike."""

    kind: DeviceKind
    name: str  # of the card; "cpu"
    count: int
    memory_bytes: int  # of each; of this machine's CPU what is free
    bandwidth: int | None = None  # 10^9 bytes a second; None where it is not known
    compute_capability: tuple[int, int] | None = None

    @property
    def one(self) -> Devices:
        """One of them: what an engine runs on."""
        return replace(self, count=1)

    def __str__(self) -> str:
        times = f"{self.count} x " if self.count > 1 else ""
        return f"{times}{self.name} with {self.memory_bytes / GIB:.1f} GiB"


# Memory: what nvidia-smi prints as the total of such a card (public logs, read 2026-11). Compute
# capability: NVIDIA's list of CUDA GPUs. Bandwidth: NVIDIA's data sheet of each card.
_REPORTED = (
    Card("A10", 24, 23028, (8, 6), 600),
    Card("A10G", 24, 23028, (8, 6), 600),
    Card("A40", 48, 46068, (8, 6), 696),
    Card("RTX A6000", 48, 49140, (8, 6), 768),
    Card("L4", 24, 23034, (8, 9), 300),
    Card("L40", 48, 46068, (8, 9), 864),
    Card("L40S", 48, 46068, (8, 9), 864),
    Card("RTX 4090", 24, 24564, (8, 9), 1008),
    Card("RTX 6000 Ada", 48, 49140, (8, 9), 960),
    Card("RTX 5090", 32, 32607, (12, 0), 1792),
    Card("RTX PRO 6000", 96, 97887, (12, 0), 1792),
    Card("H100", 80, 81559, (9, 0), 3350),
    Card("H100 NVL", 94, 95830, (9, 0), 3900),
    Card("H200", 141, 143771, (9, 0), 4800),
    Card("B200", 180, 183359, (10, 0), 8000),
    Card("T4", 16, 15360, (7, 5), 320),
    Card("P40", 24, 22919, (6, 1), 346),
)
# Memory: the data sheet's GB as GiB, which these cards' drivers report but for a few MiB.
_NOMINAL = (
    Card("V100-16", 16, 16 * 1024, (7, 0), 900),
    Card("V100-32", 32, 32 * 1024, (7, 0), 900),
    Card("RTX 2080 Ti", 11, 11 * 1024, (7, 5), 616),
    Card("RTX 3060-12", 12, 12 * 1024, (8, 6), 360),
    Card("RTX 3090", 24, 24 * 1024, (8, 6), 936),
    Card("RTX 4060 Ti-16", 16, 16 * 1024, (8, 9), 288),
    Card("RTX 4070", 12, 12 * 1024, (8, 9), 504),
    Card("RTX 4080", 16, 16 * 1024, (8, 9), 717),
    Card("A30", 24, 24 * 1024, (8, 0), 933),
    Card("A100-40", 40, 40 * 1024, (8, 0), 1555),
    Card("A100-80", 80, 80 * 1024, (8, 0), 1935),
    # Error correction takes a sixteenth of these two's GDDR6, as it does of an A10's.
    Card("A2", 16, 15 * 1024, (8, 6), 200),
    Card("A16", 16, 15 * 1024, (8, 6), 200),
)
CARDS = (*_REPORTED, *_NOMINAL)


@dataclass(frozen=True, slots=True)
class FoundDevice:
    """A GPU of this machine, as its driver tells."""

    name: str
    memory_bytes: int


def parse_gpus(text: str, *, probe: Callable[[], Sequence[FoundDevice]] | None = None) -> Devices:
    """Read what `--gpu` says; `probe` lists this machine's GPUs, for `auto`.

    Raises InvalidDeviceError, with near matches, for what cannot be understood.
    """
    match = _DEVICES.fullmatch(text.strip())
    if match is None:
        raise InvalidDeviceError(f"{text!r} names no device; {_FORMS}")
    name, size = match["name"].strip(), match["size"]
    if name.lower() == "auto":
        if size is not None or match["count"]:
            raise InvalidDeviceError(f"auto is what this machine has, {text!r} says more; {_FORMS}")
        return this_machine(probe or found_by_driver)
    count = _count(match["count"], text)
    if name.lower() == "cpu":
        if count != 1:
            raise InvalidDeviceError(f"a machine has one memory, {text!r} names {count}; {_FORMS}")
        return Devices("cpu", "cpu", 1, cpu_free_bytes() if size is None else _size(size, text))
    return _named(name, None if size is None else _size(size, text), count)


def this_machine(probe: Callable[[], Sequence[FoundDevice]]) -> Devices:
    """Describe what this machine has: its GPUs, else the memory that is free for its CPU.

    Of unlike GPUs every one counts as the smallest, since each gets an equal share.
    """
    found = probe()
    if not found:
        return Devices("cpu", "cpu", 1, cpu_free_bytes())
    smallest = min(found, key=lambda device: device.memory_bytes)
    card = find_card(smallest.name, smallest.memory_bytes)
    return Devices(
        "cuda",
        smallest.name,
        len(found),
        smallest.memory_bytes,
        card.bandwidth if card else None,
        card.compute_capability if card else None,
    )


def found_by_driver() -> list[FoundDevice]:
    """List this machine's GPUs as nvidia-smi prints them; none where there is no driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return _read_query(answer.stdout)


def _read_query(answer: str) -> list[FoundDevice]:
    found = []
    for line in answer.splitlines():
        name, _, mib = line.rpartition(",")
        if mib.strip().isdecimal():
            found.append(FoundDevice(name.strip(), int(mib) * MIB))
    return found


def find_card(name: str, memory_bytes: int | None = None) -> Card | None:
    """Find a card by its name, however it is spelt; by its memory where one name is sold in two.

    "NVIDIA A100-SXM4-80GB" is an A100-80, "GeForce RTX 4090" an RTX 4090.
    """
    wanted = _key(name)
    exact = [card for card in CARDS if wanted in (_key(card.name), _key(f"{card.name}GB"))]
    found = exact or [card for card in CARDS if _family(card) == wanted]
    if not found:
        # A driver's own names say more than the model, such as the form and the memory.
        words = set(re.split(r"[\s-]+", name.lower()))
        named = [card for card in CARDS if set(_words(card)) <= words]
        longest = max((len(_words(card)) for card in named), default=0)
        found = [card for card in named if len(_words(card)) == longest]
    if memory_bytes is not None:
        found.sort(key=lambda card: abs(card.memory_mib * MIB - memory_bytes))
    return found[0] if found else None


def _named(name: str, size: int | None, count: int) -> Devices:
    card = find_card(name, size)
    if card is None and size is None:
        near = difflib.get_close_matches(name.upper(), [c.name for c in CARDS], n=3, cutoff=0.4)
        known = f"like it: {', '.join(near)}" if near else "see docs/planning.md for the table"
        raise InvalidDeviceError(
            f"the card {name!r} is not in the table ({known}); say how much memory it has, as in"
            f" {name}:24GB"
        )
    if card is None or (size is not None and size != card.sold_gib * GIB):
        memory = size or 0
    else:  # a size that is the one it is sold with says nothing new
        memory = card.memory_mib * MIB
    return Devices(
        "cuda",
        card.name if card else name,
        count,
        memory,
        card.bandwidth if card else None,
        card.compute_capability if card else None,
    )


def _count(text: str | None, whole: str) -> int:
    count = int(text) if text else 1
    if not 1 <= count <= MAX_DEVICES:
        raise InvalidDeviceError(
            f"{whole!r} asks for {count} devices; 1 to {MAX_DEVICES} can be planned for"
        )
    return count


def _size(text: str, whole: str) -> int:
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)\s*([a-z]*)", text.strip().lower())
    unit = _UNITS.get(match[2]) if match else None
    if match is None or unit is None:
        raise InvalidDeviceError(f"{text!r} in {whole!r} is no size; write it as 24GB or 8192MiB")
    size = int(float(match[1]) * unit)
    if not 0 < size <= MAX_MEMORY_BYTES:
        raise InvalidDeviceError(f"{text!r} in {whole!r} is no card's memory; write it as 24GB")
    return size


def _key(name: str) -> str:
    letters = re.sub(r"[^a-z0-9]", "", name.lower())
    return re.sub(r"^(nvidia|geforce|tesla|rtx)+", "", letters)


def _family(card: Card) -> str:
    return _key(re.sub(r"-\d+$", "", card.name))


def _words(card: Card) -> list[str]:
    return re.sub(r"-\d+$", "", card.name).lower().split()
