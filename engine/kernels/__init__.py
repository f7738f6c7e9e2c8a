"""What a step computes between its linear layers, on a GPU: Triton kernels beside their references.

One module a kernel. Each holds `reference`, plain PyTorch and right on any device, and a launcher
of the Triton kernel with the same arguments. Modules with kernels import Triton, so they are
imported only where it is to be used (`engine.kernels.choice`).
"""
