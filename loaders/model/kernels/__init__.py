"""Kernels that multiply by a packed weight, and the choice between them.

A backend turns a layer's tensors into a kernel once, at load. Which backend a layer gets is
decided in `resolve`; what each cannot do stands in `loaders.quantization.kernel_rules`.
"""
