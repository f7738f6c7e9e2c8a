"""Attention of prompts' pieces on a CPU, in windows: rows that begin at fixed positions.

    positions | 0 … 63    | 64 … 127  | 128 … 191 |
    a piece   |       48 … 63 | 64 … 127 | 128 … 143
    computed  | strips of | the whole | strips of |

What a window is multiplied by follows from its position alone, and so a row comes out to the last
bit wherever its piece begins and ends. There are several ways, of which `ways_to_attend` gives
those that a processor has; which is fastest differs between processors and is for others to
measure. All take softmax and sums in float32.

* float32 windows: `scaled_dot_product_attention`, which multiplies by the BLAS.
* bfloat16 windows: the same with operands in bfloat16.
* float32 products: scores, softmax and values one after another, multiplied by oneDNN.
* bfloat16 products: so, with probabilities and values in bfloat16; on AMX scores' operands, too.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn import functional

from native.masks import mask_of_bfloat16, mask_of_tiles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

# Rows of a window: with 32 a prompt of 512 tokens took as many products again, with 128 a short
# one computes rows that it has not.
WINDOW_ROWS = 64
# Rows of a window that attention on a CPU takes at a time, whether others are asked for or not.
STRIP_ROWS = 32
# Of the scores that are computed at a time, in float32. They are read twice more, so they should
# lie in the cache: 512 tokens after 3 584 took 33 ms a layer with one key head at a time (2.8 MB),
# 41 with all three (8.3 MB); 1 024 tokens 11.1 with one (0.8 MB), 9.9 with three (2.4 MB). One
# thread, L2 of 1 MB, L3 of 32, 2026-11.
MAX_SCORES_BYTES = 4 * 2**20


class AttendPiece(Protocol):
    """A way to attend with a piece of a prompt."""

    def __call__(
        self, query: Tensor, seen: Tensor, start: int, scale: float, window: int | None
    ) -> Tensor:
        """Attend with tokens from position `start` on to all up to them.

        query: [rows, heads, head_dim]; seen: [start + rows, 2, kv_heads, head_dim]; window: how
        many tokens back each row sees, itself included; None for all. Returns the query's like.
        """


def ways_to_attend() -> dict[str, AttendPiece]:
    """Return the ways that this processor has, by name; the one to take unasked comes first."""
    ways: dict[str, AttendPiece] = {"float32 windows": attend_in_windows}
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return ways
    if not rounds_float32():
        ways["float32 products"] = partial(attend_by_products, values_as=torch.float32)
    if multiplies_bfloat16():
        ways["bfloat16 windows"] = partial(attend_in_windows, operands_as=torch.bfloat16)
        ways["bfloat16 products"] = partial(attend_by_products, values_as=torch.bfloat16)
    return ways


def rounds_float32() -> bool:
    """Whether oneDNN rounds float32 operands where it may: on AMX, which PyTorch cannot mask."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16")) and mask_of_tiles(os.environ) is None


def multiplies_bfloat16() -> bool:
    """Whether instructions for products of bfloat16 are here, and masked from nobody."""
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):  # or masked from PyTorch
        return False
    has = torch.cpu.get_capabilities()
    is_there = bool(has.get("avx512_bf16") or has.get("amx_bf16"))
    return is_there and mask_of_bfloat16(os.environ) is None


def attend_in_windows(
    query: Tensor,
    seen: Tensor,
    start: int,
    scale: float,
    window: int | None,
    *,
    operands_as: torch.dtype | None = None,
) -> Tensor:
    """Attend window by window in `scaled_dot_product_attention`; see `AttendPiece`.

    Strips of a window that the query does not touch are left out, and one that it fills in part is
    filled up with zeros, which change no other row. operands_as: None for the query's own type.
    """
    given, stop = query.dtype, start + query.shape[0]
    first, last = start - start % STRIP_ROWS, stop + -stop % STRIP_ROWS
    end = stop + -stop % WINDOW_ROWS
    query = _filled_up(query.to(operands_as or given), start - first, last - stop)
    seen = _filled_up(seen.to(query.dtype), 0, end - stop)
    parts: list[Tensor] = []
    for begin in range(first - first % WINDOW_ROWS, end, WINDOW_ROWS):
        num_seen = begin + WINDOW_ROWS
        low, high = max(begin, first), min(num_seen, last)
        mask = _window_mask(num_seen, window, query.dtype)[low - begin : high - begin]
        parts.append(attend_masked(query[low - first : high - first], seen[:num_seen], scale, mask))
    return torch.cat(parts)[start - first : stop - first].to(given)


def attend_by_products(
    query: Tensor,
    seen: Tensor,
    start: int,
    scale: float,
    window: int | None,
    *,
    values_as: torch.dtype,
) -> Tensor:
    """Attend window by window, one product for scores and one for values; see `AttendPiece`.

    Windows are whole, as how many rows are multiplied may change a row's bits: what the query lacks
    of one is filled up with zeros. values_as: what probabilities and values are multiplied in.
    """
    stop = start + query.shape[0]
    first, end = start - start % WINDOW_ROWS, stop + -stop % WINDOW_ROWS
    query = _filled_up(query, start - first, end - stop)
    seen = _filled_up(seen, 0, _last_multiplied(end, window) - stop)
    num_kv_heads = seen.shape[2]
    # The query heads of a key head lie in one product, below each other within each token.
    laid_out = (-1, WINDOW_ROWS, num_kv_heads, query.shape[1] // num_kv_heads, query.shape[2])
    rows = (query * scale).view(laid_out).permute(0, 2, 1, 3, 4).flatten(2, 3)
    keys = seen[:, 0].permute(1, 2, 0).contiguous()
    # As tokens lie, so that between them there is as much however many are seen.
    values = seen[:, 1].to(values_as).transpose(0, 1)
    attended = query.new_empty(query.shape)
    by_window = attended.view(laid_out)
    scratch = query.new_empty(_num_scores(rows, seen.shape[0]))
    with _operands_may_be_rounded():
        for index in range(rows.shape[0]):
            num_seen = first + (index + 1) * WINDOW_ROWS
            _attend_window(
                rows[index],
                keys,
                values,
                num_seen,
                window,
                scratch=scratch,
                out=by_window[index],
            )
    return attended[start - first : stop - first]


def _multiplied(num_seen: int) -> int:
    """With how many tokens a window is multiplied that sees so many; the rest is hidden from it.

    oneDNN keeps what it compiles for each number. Up to 4 096 tokens that left 92 MB of the 64
    where windows end, 28 of the 21 that these are (2026-11). Where they are large they are odd
    multiples of a window: lines a power of two apart meet in the cache, and took a third longer.
    """
    before = num_seen - WINDOW_ROWS
    step = max(WINDOW_ROWS, 1 << max(0, before.bit_length() - 3))
    return num_seen + -before % step


def _first_multiplied(num_seen: int, window: int | None) -> int:
    """How many tokens a window leaves out, since none of its rows sees them."""
    if window is None:
        return 0
    return max(0, num_seen - WINDOW_ROWS + 1 - window) // WINDOW_ROWS * WINDOW_ROWS


def _last_multiplied(num_seen: int, window: int | None) -> int:
    """Where the tokens end that a window, and each before it, is multiplied with."""
    first = _first_multiplied(num_seen, window)
    return first + _multiplied(num_seen - first)


def _num_scores(rows: Tensor, num_seen: int) -> int:
    """How many scores a window's rows have at most at a time; rows: [windows, kv_heads, n, …]."""
    _, num_kv_heads, num_rows, _ = rows.shape
    of_head = num_rows * num_seen
    return min(num_kv_heads * of_head, max(of_head, MAX_SCORES_BYTES // torch.float32.itemsize))


def _attend_window(
    rows: Tensor,
    keys: Tensor,
    values: Tensor,
    num_seen: int,
    window: int | None,
    *,
    scratch: Tensor,
    out: Tensor,
) -> None:
    """Attend with a whole window, some key heads at a time, to the tokens up to its last.

    rows: [kv_heads, rows * shared heads, head_dim], scaled; keys: [kv_heads, head_dim, tokens];
    values: [kv_heads, tokens, head_dim]; num_seen: of these tokens, those up to the window's last;
    scratch: room for the scores; out: [rows, kv_heads, shared heads, head_dim].
    """
    num_kv_heads, num_rows, _ = rows.shape
    first, last = _first_multiplied(num_seen, window), _last_multiplied(num_seen, window)
    mask = _window_mask(num_seen, window, rows.dtype)[:, None, first:]
    if window is None:  # of the tokens before these rows all are seen
        mask = mask[..., -WINDOW_ROWS:]
    # Copied, so that its lines lie as far apart however many tokens are seen by others.
    keys, values = keys[:, :, first:last].contiguous(), values[:, first:last]
    hidden, width = last - num_seen, last - first
    at_once = _heads_at_once(num_kv_heads, num_rows, width)
    for head in range(0, num_kv_heads, at_once):
        asking = rows[head : head + at_once]
        shape = (*asking.shape[:2], width)
        scores = scratch[: shape[0] * shape[1] * shape[2]].view(shape)
        torch.bmm(asking, keys[head : head + at_once], out=scores)
        by_row = scores.view(shape[0], WINDOW_ROWS, -1, width)[..., : width - hidden]
        by_row[..., -mask.shape[-1] :].add_(mask)
        scores[..., width - hidden :].fill_(float("-inf"))
        # In place: each number is read before it is written.
        torch.softmax(scores, -1, out=scores)
        found = torch.bmm(scores.to(values.dtype), values[head : head + at_once])
        by_row = found.view(shape[0], WINDOW_ROWS, -1, found.shape[2])
        out[:, head : head + at_once] = by_row.transpose(0, 1)


def _heads_at_once(num_kv_heads: int, num_rows: int, num_seen: int) -> int:
    """Of how many key heads scores are computed at a time."""
    head_bytes = num_rows * num_seen * torch.float32.itemsize
    return min(num_kv_heads, max(1, MAX_SCORES_BYTES // head_bytes))


@contextmanager
def _operands_may_be_rounded() -> Iterator[None]:
    """Have products of float32 matrices go to oneDNN, which may round operands to bfloat16.

    It does on AMX, where it sums in float32, and nowhere else; but nothing else makes PyTorch
    call it for such products. Its own float32 kernels take half the time of MKL's on an AMD.
    """
    _ROUNDING.begin()
    try:
        yield
    finally:
        _ROUNDING.end()


class _Rounding:
    """The setting of a whole process, which several threads may want at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_within = 0
        self._before = ""

    def begin(self) -> None:
        """Allow it, unless another thread has."""
        with self._lock:
            if not self._num_within:
                setting = _matmul_setting()
                self._before = setting.fp32_precision
                setting.fp32_precision = "bf16"
            self._num_within += 1

    def end(self) -> None:
        """Leave it as it was before, unless another thread still wants it."""
        with self._lock:
            self._num_within -= 1
            if not self._num_within:
                _matmul_setting().fp32_precision = self._before


_ROUNDING = _Rounding()


def _matmul_setting() -> Any:
    return torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


def _filled_up(tokens: Tensor, before: int, after: int) -> Tensor:
    """Put tokens of zeros before and after tokens [n, …]."""
    if not before and not after:
        return tokens
    return functional.pad(tokens, (0, 0) * (tokens.dim() - 1) + (before, after))


def _window_mask(num_tokens: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """Hide from a window's rows, the last of so many tokens, what is behind each of them."""
    width = 1 << (num_tokens - 1).bit_length()
    # Where a row stands is counted from the end, so that one mask serves all up to its width.
    return _widest_window_mask(width, window, dtype)[:, width - num_tokens :]


@lru_cache(maxsize=8)
def _widest_window_mask(width: int, window: int | None, dtype: torch.dtype) -> Tensor:
    position = torch.arange(width)
    return mask_of(position, position[-WINDOW_ROWS:, None] + 1, window, dtype)


def attend_masked(query: Tensor, seen: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """query: [tokens, heads, head_dim]; seen: [tokens, 2, kv_heads, head_dim]; causal unmasked."""
    attended = functional.scaled_dot_product_attention(
        query.transpose(0, 1).unsqueeze(0),
        seen[:, 0].transpose(0, 1).unsqueeze(0),
        seen[:, 1].transpose(0, 1).unsqueeze(0),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=True,
    )
    return attended.squeeze(0).transpose(0, 1)


def mask_of(position: Tensor, num_tokens: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """0 at the positions that are seen, the last `window` before `num_tokens`; -inf elsewhere."""
    hidden = position >= num_tokens
    if window is not None:
        hidden |= position < num_tokens - window
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, float("-inf"))
