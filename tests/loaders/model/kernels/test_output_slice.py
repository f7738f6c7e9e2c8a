"""Layers of a joined kernel: each as if it stood alone, all together as the whole."""

import torch
from torch.nn.functional import linear

from loaders.model.kernels.output_slice import JoinedKernel, whole_of

WEIGHT = torch.arange(24.0).view(6, 4)  # of two layers with three outputs each
ORDER = torch.tensor([2, 0, 1])
INPUTS = torch.tensor([3, 1, 0, 2])
X = torch.arange(20.0).view(5, 4).fmod(7)  # whole numbers, so that sums are exact in any order


class Dense:
    """Multiplies by a weight and adds a bias, as a kernel does that takes biases."""

    num_invariant_rows = 3
    unit_roundoff = 0.5
    input_permutation = INPUTS

    def __init__(self, weight, bias):
        self.weight, self.bias = weight, bias

    def __call__(self, x):
        return linear(x, self.weight, self.bias)

    def dequantize(self):
        return self.weight

    def fuse(self, others):
        return None


def joined_in(order):
    places = torch.arange(6) if order is None else torch.cat([order, order + 3])
    return JoinedKernel(Dense(WEIGHT[places], places.float()), [3, 3], order)


def test_each_slice_gives_its_outputs_in_their_natural_order():
    for order in (None, ORDER):
        first, second = joined_in(order).slices()
        wanted = linear(X, WEIGHT, torch.arange(6.0))
        assert torch.equal(first(X), wanted[:, :3])
        assert torch.equal(second(X), wanted[:, 3:])
        assert torch.equal(first.dequantize(), WEIGHT[:3])
        assert torch.equal(second.dequantize(), WEIGHT[3:])
        assert first(X).is_contiguous()


def test_a_slice_says_of_itself_what_the_joined_kernel_says():
    slice_ = joined_in(ORDER).slices()[1]
    assert (slice_.num_invariant_rows, slice_.unit_roundoff) == (3, 0.5)
    assert slice_.input_permutation is INPUTS


def test_what_a_slice_gives_may_be_overwritten():
    kernel = joined_in(None)
    given = WEIGHT.clone()
    kernel.slices()[0].dequantize().zero_()
    assert torch.equal(kernel.kernel.dequantize(), given)


def test_all_slices_in_order_are_the_whole_and_nothing_else_is():
    joined, other = joined_in(ORDER), joined_in(ORDER)
    first, second = joined.slices()
    assert whole_of([first, second]) is joined
    assert joined.output_permutation.tolist() == [2, 0, 1, 5, 3, 4]
    assert joined_in(None).output_permutation is None
    for kernels in ([first], [second, first], [first, other.slices()[1]], [first, joined.kernel]):
        assert whole_of(kernels) is None
    assert whole_of([joined.kernel, joined.kernel]) is None
    assert first.fuse([second]) is None
