"""Has a checkpoint's tokenizer read in a process of its own first, and tries it on hard texts.

A stranger's tokenizer.json can end a process (a stack that overflows in the library, memory without
end) or hold it for years (an expression that tries every way to cut a long word). The trial ends by
itself, by the kernel's limits; only what came through it is read here.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from loaders.errors import CheckpointError

_WORKER = Path(__file__).with_name("tokenizer_trial_worker.py")
_PACKAGES = Path(__file__).parents[2]
# Only a stopped or starved machine gets here: the trial ends itself by its processor time.
_WALL_S = 60.0


def try_tokenizer(folder: Path) -> None:
    """Raise CheckpointError for a tokenizer that breaks, or takes too long, on some text."""
    try:
        done = subprocess.run(
            # Isolated: environment, working directory and the user's packages don't count.
            [sys.executable, "-I", "-B", str(_WORKER), str(folder.absolute()), str(_PACKAGES)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"RAYON_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            start_new_session=True,
            timeout=_WALL_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _unusable(folder, f"no answer within {_WALL_S:.0f} s") from error
    answer = _read_answer(done.stdout)
    if answer is None:
        raise _unusable(folder, _end_of(done.returncode))
    if "failed" in answer:
        raise _unusable(folder, str(answer["failed"]))


def _read_answer(output: bytes) -> dict[str, object] | None:
    try:
        answer = json.loads(output)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _end_of(status: int) -> str:
    if status == -signal.SIGPROF:
        return "reading and trying it took more processor time than any tokenizer needs"
    if status < 0:
        return f"the library that reads it broke down ({signal.Signals(-status).name})"
    return f"the process that reads it ended with status {status}"


def _unusable(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"the tokenizer in {folder} is not used: {reason}; take it from the model's own repository"
    )
