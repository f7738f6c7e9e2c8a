"""Tetrad as it is in another checkout, as a runner: an older commit, to be measured in turns.

This file runs in both: here as the runner, and as a script with that checkout's packages.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


class CheckoutProcess:
    """A script of ours that imports everything else from a checkout; it is told and tells lines."""

    def __init__(self, checkout: Path, script: str, *arguments: str) -> None:
        root = str(checkout.resolve())
        self._process = subprocess.Popen(
            [sys.executable, "-P", script, *arguments],
            cwd=root,
            env={**os.environ, "PYTHONPATH": root},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, question: object) -> Any:
        """Tell it one thing as JSON; return what it says of that."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self.hear()

    def hear(self) -> Any:
        """Return what it says next."""
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.communicate("")


class CheckoutRunner:
    """Passes calls on to `benchmarks.tetrad` of a checkout."""

    def __init__(self, checkout: Path, spec: str, cache_dir: Path, max_num_seqs: int) -> None:
        arguments = (spec, str(cache_dir), str(max_num_seqs))
        self._process = CheckoutProcess(checkout, __file__, *arguments)
        self.name = f"{self._process.hear()}, before"

    def decode(self, prompts: list[list[int]], num_tokens: int) -> float:
        """Return generated tokens a second, all prompts together."""
        return float(self._process.ask(["decode", [prompts, num_tokens]]))

    def prefill(self, prompt: list[int]) -> float:
        """Return prompt tokens a second until the first token."""
        return float(self._process.ask(["prefill", [prompt]]))

    def close(self) -> None:
        """End the process."""
        self._process.close()


def answer_calls(spec: str, cache_dir: Path, max_num_seqs: int) -> None:
    """Make the runner of the checkout that is imported from, and call it as told."""
    import structlog

    from benchmarks.tetrad import Tetrad

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    runner = Tetrad(spec, cache_dir, max_num_seqs)
    print(json.dumps(runner.name), flush=True)
    for line in sys.stdin:
        method, arguments = json.loads(line)
        print(json.dumps(getattr(runner, method)(*arguments)), flush=True)
    # Not by the interpreter's way out, which would wait for the runner's own threads.
    os._exit(0)


if __name__ == "__main__":
    answer_calls(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
