"""Has a checkpoint's tokenizer read in a process of its own first, and tries it on hard texts.

A stranger's tokenizer.json can end a process (a stack that overflows in the library, memory without
end) or hold it for years (an expression that tries every way to cut a long word). The trial ends by
itself, by the kernel's limits; only what came through it is read here.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

from loaders.errors import CheckpointError, TokenizerNotTriedError

_WORKER = Path(__file__).with_name("tokenizer_trial_worker.py")
_PACKAGES = Path(__file__).parents[2]
# The trial ends itself by its processor time, so only a stopped or starved machine gets here.
_WALL_S = 600.0
# Where an installation is found; no more, as keys and tokens lie in the environment as well.
_KEPT = ("HOME", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONHOME", "TMPDIR")
# Each thread of these takes memory, and so many cores more of what is allowed.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


def try_tokenizer(folder: Path) -> None:
    """Raise CheckpointError for a tokenizer that breaks, or takes too long, on some text.

    Raises TokenizerNotTriedError where that could not be found out.
    """
    used_before = _seconds_of_children()
    try:
        done = subprocess.run(
            # Neither working directory nor user's packages count, unless they do in this process.
            [sys.executable, "-P", "-s", "-B", str(_WORKER), str(folder.absolute()), _paths()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            start_new_session=True,
            timeout=_WALL_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        used = _seconds_of_children() - used_before
        raise TokenizerNotTriedError(
            f"the tokenizer in {folder} could not be tried: the process that reads it got"
            f" {used:.1f} s of processor time within {_WALL_S:.0f} s, so the machine is overloaded"
            " or its disk does not answer; load the model again when it is not"
        ) from error
    answer = _read_answers(done.stdout)
    if "begun" not in answer:
        reason = answer.get("not_begun") or _end_of(done.returncode)
        raise TokenizerNotTriedError(
            f"the tokenizer in {folder} could not be tried: the process for it could not import"
            f" the libraries ({reason}); this installation of Python is at fault, not the tokenizer"
        )
    if "failed" in answer:
        raise _unusable(folder, str(answer["failed"]))
    if "ok" not in answer:
        raise _unusable(folder, _end_of(done.returncode))


def _paths() -> str:
    """Say where this process finds modules, as the other one is to find the same."""
    paths = [path for path in sys.path if path]  # an empty one is the working directory
    packages = str(_PACKAGES)
    return json.dumps(paths if packages in paths else [*paths, packages])


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {**kept, **dict.fromkeys(_ONE_THREAD, "1"), "HF_HUB_OFFLINE": "1"}


def _seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _read_answers(output: bytes) -> dict[str, object]:
    """Join the lines that it wrote; what is none of its own is skipped."""
    answers: dict[str, object] = {}
    for line in output.splitlines():
        try:
            answer = json.loads(line)
        except ValueError:
            continue
        if isinstance(answer, dict):
            answers |= answer
    return answers


def _end_of(status: int) -> str:
    if status == -signal.SIGPROF:
        return "it took more processor time than it should ever need"
    if status < 0:
        return f"the library broke down ({signal.Signals(-status).name})"
    return f"the process ended with status {status}"


def _unusable(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"the tokenizer in {folder} is not used: {reason}; take it from the model's own repository"
    )
