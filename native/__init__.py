"""Kernels for CPUs in C++: what PyTorch computes in several passes, in one.

They are optional. `native.build` compiles them where there is a compiler, `native.library` loads
them or says why not, and the other modules give each a name, types and checks. Everything that they
compute PyTorch computes, too; that is what they are tested against, and what runs without them.
"""
