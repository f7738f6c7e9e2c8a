"""The layer around a kernel."""

import torch

from loaders.model.packed_linear import PackedLinear


class JoinedKernel:
    """A kernel that joins with any other."""

    def fuse(self, others):
        return self


def layer(bias):
    return PackedLinear.from_kernel(JoinedKernel(), 4, 3, bias=bias)


def test_layers_without_a_bias_join_with_those_that_have_one_where_that_lies():
    bias = torch.ones(3, device="meta", dtype=torch.float16)
    joined = layer(None).fuse_with([layer(bias), layer(None)])
    assert (joined.bias.shape, joined.bias.device.type, joined.bias.dtype) == (
        (9,),
        "meta",
        torch.float16,
    )
    known = layer(torch.tensor([1.0, 2.0, 3.0])).fuse_with([layer(None)])
    assert known.bias.tolist() == [1.0, 2.0, 3.0, 0.0, 0.0, 0.0]
    assert layer(None).fuse_with([layer(None)]).bias is None
