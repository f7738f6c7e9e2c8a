"""Gives memory back while a checkpoint is turned into kernels: a GPU's, and on Linux the system's.

A checkpoint's tensors are pages of its mapped files. Once a layer is prepared its pages are not
needed again, but they would stay counted as the process's until the last tensor of the file is
gone, and the embedding never goes. Dropping them keeps the peak near what the prepared model
takes.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

_MADV_DONTNEED = 4
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# glibc's range: it begins at the smaller and moves towards the larger as large blocks are freed.
_SMALLEST_LARGE_BLOCK, _LARGEST_LARGE_BLOCK = 128 * 1024, 32 * 1024**2


@dataclass(frozen=True, slots=True)
class MappedFiles:
    """Where this process has certain files mapped; only there may pages be dropped unseen."""

    ranges: tuple[tuple[int, int], ...]  # start and end addresses

    @classmethod
    def find(cls, paths: Iterable[Path]) -> MappedFiles:
        """Look the files up in the process's memory map."""
        names = {str(path.resolve()) for path in paths}
        maps = Path("/proc/self/maps")
        if not maps.exists():
            return cls(())
        ranges = []
        for line in maps.read_text().splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5] in names:
                start, end = fields[0].split("-")
                ranges.append((int(start, 16), int(end, 16)))
        return cls(tuple(ranges))

    def release(self, tensors: Iterable[Tensor | None]) -> None:
        """Drop the tensors' whole pages; reading them again would bring them back from the file."""
        for tensor in tensors:
            if tensor is None or tensor.device.type != "cpu":
                continue
            start, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
            if any(low <= start and start + size <= high for low, high in self.ranges):
                _drop_pages(start, size)


def _drop_pages(start: int, size: int) -> None:
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (start + size) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        # A refusal only means that the pages stay; there is nothing to do about it.
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_DONTNEED
        )


@contextmanager
def large_blocks_returned() -> Iterator[None]:
    """Have large blocks go back to the system as soon as they are freed.

    Otherwise what is left of one layer's tensors lies between the kernels of the next: SmolLM2-135M
    (8-bit, groups of 64) peaked at 272 MB and not at 251, and differently every time; loading took
    1.4 s and not 2.1 (two cores, 2026-11).
    """
    _set_allocator(_M_MMAP_THRESHOLD, _SMALLEST_LARGE_BLOCK)
    try:
        yield
    finally:
        _set_allocator(_M_MMAP_THRESHOLD, _LARGEST_LARGE_BLOCK)
        _set_allocator(_M_TRIM_THRESHOLD, 2 * _LARGEST_LARGE_BLOCK)


def _set_allocator(parameter: int, value: int) -> None:
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(parameter, value)


def return_freed_memory() -> None:
    """Hand back what allocators hold unused: glibc's to the system, PyTorch's to the GPU.

    A checkpoint's tensors lie on the GPU before they are packed. What they took would count as used
    when the KV cache is sized by what the driver says is free: up to the weights once more.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
    torch: Any = sys.modules.get("torch")  # takes seconds, and a plan does without
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
