import pytest
import torch

from loaders.errors import NotEnoughMemoryError
from loaders.memory import check_fits


@pytest.mark.parametrize(
    ("device", "helps"), [("cpu", "a smaller variant, free memory"), ("cuda:1", "--cpu-offload")]
)
def test_weights_that_do_not_fit_are_told_with_the_arithmetic(monkeypatch, device, helps):
    monkeypatch.setattr("loaders.memory.free_bytes", lambda device: 11_400_000_000)
    numbers = rf"need 13\.25 GB on {device}, 11\.40 GB are free, 1\.85 GB are missing.*{helps}"
    with pytest.raises(NotEnoughMemoryError, match=numbers):
        check_fits(13_250_000_000, torch.device(device))
    check_fits(11_400_000_000, torch.device(device))
