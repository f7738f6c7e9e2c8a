"""Loading onto CUDA devices, with both kernels that run there, against float32 on the CPU."""

import pytest
import torch

from loaders.load import load
from loaders.model.packed_linear import packed_layers
from tests.dequantize import dequantized_model
from tests.models import CARD_BRANCHES, TinyRepositories

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# Half-precision residual and sums; not measured on a device yet.
MAX_LOGIT_ERROR = 0.05


@pytest.mark.parametrize(("asked", "taken"), [("auto", "triton"), ("reference", "reference")])
@pytest.mark.parametrize("number", range(len(CARD_BRANCHES) + 1))
def test_every_branch_loads_onto_cuda_and_is_right(
    tiny_repo: TinyRepositories, number, asked, taken
):
    loaded = load(
        tiny_repo.specs()[number],
        device="cuda:0",
        backend=asked,
        self_test=True,
        cache_dir=tiny_repo.cache_dir,
        local_files_only=True,
    )
    assert loaded.self_test.passed
    assert loaded.provenance.backend == taken
    assert {p.device.type for p in loaded.model.parameters()} == {"cuda"}
    assert all(layer.kernel is not None for layer in packed_layers(loaded.model).values())
    ids = torch.randint(5, 500, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = dequantized_model(loaded.provenance.folder)(ids).logits
        found = loaded.model(ids.cuda()).logits.float().cpu()
    assert float((found - expected).abs().max() / expected.std()) < MAX_LOGIT_ERROR


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_auto_spreads_over_several_devices(tiny_repo: TinyRepositories):
    loaded = load(
        tiny_repo.specs()[0],
        device="auto",
        cache_dir=tiny_repo.cache_dir,
        local_files_only=True,
    )
    assert len({p.device for p in loaded.model.parameters()}) > 1
