"""Measures the perplexity of every branch and writes it down: `python -m loaders.demo.record`.

For developers, after a change to the rounding or to the text. Takes some minutes.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from loaders.demo.branches import BRANCHES
from loaders.demo.checkpoint import WEIGHTS_FILE, write_branch
from loaders.demo.perplexity import measure_checkpoint, measure_source, write_record
from loaders.demo.source import find_gguf, read_source
from loaders.repository.manifest import sha256_of_file


def main() -> None:
    """Build each branch in a temporary folder and record what it measures."""
    source = read_source()
    perplexities = {sha256_of_file(find_gguf()): measure_source(source)}
    for branch in BRANCHES:
        with TemporaryDirectory() as folder:
            write_branch(Path(folder), source, branch)
            perplexity = measure_checkpoint(Path(folder))
            perplexities[sha256_of_file(Path(folder) / WEIGHTS_FILE)] = perplexity
            print(f"{branch}: {perplexity:.4f}")
    write_record(perplexities)


if __name__ == "__main__":
    main()
