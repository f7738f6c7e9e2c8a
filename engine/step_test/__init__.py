"""The test of a whole step on a GPU, before an engine serves: its kernels, its graphs, its tokens.

What linear layers compute was compared with the files when the model was loaded; here is what the
engine does between and around them. Each check names the part that a failure speaks against.
What is done without then is decided by whoever loads.
"""
