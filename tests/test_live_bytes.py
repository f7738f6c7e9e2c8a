"""What is counted of tensors that come and go."""

import pytest
import torch

from tests.live_bytes import LiveBytes


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_storage_counts_once_and_as_long_as_anybody_holds_it(device):
    known = torch.empty(100, dtype=torch.uint8, device=device)
    with LiveBytes([known]) as bytes_held:
        first = torch.empty(1000, dtype=torch.float16, device=device)
        view = first[:10]
        assert bytes_held.held == 2100
        del first
        assert bytes_held.held == 2100
        del view
        assert bytes_held.held == 100
        (torch.empty(300, dtype=torch.uint8, device=device) + 1).sum()
        del known
        assert bytes_held.held == 0
    assert bytes_held.peak == 2100


def test_what_was_there_before_does_not_count_unless_it_is_named():
    table = torch.zeros(1000, device="meta")
    with LiveBytes() as bytes_held:
        view = table[:10].add_(1)
        assert bytes_held.held == 0
        del view, table
        made = torch.zeros(1000, device="meta")  # perhaps in the same place
        assert bytes_held.held == made.nbytes
