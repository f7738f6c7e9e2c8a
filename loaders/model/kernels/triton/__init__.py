"""Products with packed weights in Triton: byte planes, few rows at once, dequantising for many.

`pack` is plain PyTorch; the other modules hold kernels, import Triton, and are imported only where
it is used (`loaders.model.kernels.triton_linear`). Each kernel has a `reference` beside it.
"""
