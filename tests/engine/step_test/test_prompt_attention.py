"""Flash attention judged before an engine serves: here by stand-ins, right and wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.attention import prompt
from engine.step_test.prompt_attention import CHUNKS, check_flash, takes_flash
from engine.step_test.run import check_prompt_attention
from engine.step_test.step_check import Part
from engine.step_test.step_sizes import StepSizes

SIZES = StepSizes(
    hidden=64,
    intermediate=96,
    num_heads=6,
    num_kv_heads=2,
    head_dim=16,
    eps=1e-5,
    windows=(None, 9),
    has_head_norm=False,
    dtype=torch.float16,
    kept_as=torch.float16,
    is_scaled=False,
    block_size=16,
    max_model_len=256,
    max_num_seqs=4,
    device=torch.device("cpu"),
)
right = prompt.attend_by_sdpa


def no_window(query, seen, group, *, scale, window):
    return right(query, seen, group, scale=scale, window=None)


def first_row_sees_the_first_key(query, seen, group, *, scale, window):
    """Causal from the top left, as some take it, and not from the bottom right."""
    own = zip(
        query.split_with_sizes(list(group.num_rows)),
        seen.split_with_sizes(list(group.num_keys)),
        strict=True,
    )
    parts = []
    for rows, keys in own:
        alone = replace(group, num_rows=(len(rows),), num_keys=(len(rows),))
        parts.append(right(rows, keys[: len(rows)], alone, scale=scale, window=window))
    return torch.cat(parts)


def keys_of_the_next_head(query, seen, group, *, scale, window):
    return right(query, seen.roll(1, dims=2), group, scale=scale, window=window)


def no_numbers(query, *_, **__):
    return torch.full_like(query, torch.nan)


def check_with(monkeypatch, flash, sizes=SIZES):
    monkeypatch.setattr(prompt, "attend_by_flash", flash)
    (found,) = check_flash(sizes)
    return found


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_is_right_passes_with_the_roundings_of_its_own_dtype(monkeypatch, dtype):
    found = check_with(monkeypatch, right, replace(SIZES, dtype=dtype))
    assert (found.name, found.part, found.passed) == ("flash attention", Part.FLASH, True)
    assert 0 < found.worst < 0.5


@pytest.mark.parametrize(
    "flash", [no_window, first_row_sees_the_first_key, keys_of_the_next_head, no_numbers]
)
def test_what_is_wrong_fails_clearly(monkeypatch, flash):
    found = check_with(monkeypatch, flash)
    assert found.passed is False
    assert found.worst > 3
    assert found.detail.startswith("off by ")


def test_chunks_go_on_behind_what_is_cached_or_begin_and_none_is_longer_than_the_context(
    monkeypatch,
):
    assert {rows < keys for rows, keys in CHUNKS} == {True, False}
    seen = []

    def noting(query, keys, group, *, scale, window):
        seen.append((group.num_rows, group.num_keys, group.row_ends.tolist()))
        return right(query, keys, group, scale=scale, window=window)

    assert check_with(monkeypatch, noting, replace(SIZES, max_model_len=24, windows=(None,))).passed
    assert seen == [((24, 1, 20), (24, 24, 20), [0, 24, 25, 45])]


def test_where_prompts_do_without_nothing_is_checked(monkeypatch):
    assert not takes_flash(SIZES)  # no CPU has it
    assert list(check_prompt_attention(SIZES)) == []
    monkeypatch.setattr(prompt, "takes_flash", lambda *_: True)
    monkeypatch.setattr(prompt, "attend_by_flash", right)
    assert [check.passed for check in check_prompt_attention(SIZES)] == [True]
