"""The program that reads a checkpoint's tokenizer first, in a process of its own.

Run by `tokenizer_trial`. What breaks on the files breaks here: a stack that overflows, memory
without end, an expression that takes years on a long word. Arguments: the folder, and the list of
folders with modules as JSON. Answers in lines of JSON: {"begun": true} once all is imported, else
{"not_begun": why}; then {"ok": true}, or {"failed": why}; with no second one where it was killed.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenizers import Tokenizer

MAX_MEMORY_BYTES = 2 << 30  # the largest vocabularies (256 000 pieces) take half of that
MAX_FILE_BYTES = 64 << 20  # a tokenizer.model is converted into a file for a moment
# PyTorch and Transformers: 2 to 3 s, 5 s uncompiled, more on slow machines; no fault of the files.
IMPORT_CPU_S = 60.0
READ_CPU_S = 6.0  # the largest take 2 s
# Of one text of a kind that slows expressions down. Real tokenizers take milliseconds.
TEXT_CPU_S = 2.0
TEXT_CHARACTERS = 4_096
MAX_ADDED = 32_768  # known ones: some thousands; 400 000 kept Transformers busy for minutes
MAX_GROWTH = 32  # ids, or characters once they are normalised, for each of a text's characters
# Expressions that only pick characters take time in proportion to a text; what counts or chooses
# may not. Decoders run between the tokens of an answer, where nothing could stop them.
COUNTS_OR_CHOOSES = re.compile(r"[*+?{|]")


def main() -> None:
    """Read and try the tokenizer; say what came of it."""
    folder, sys.path[:] = Path(sys.argv[1]), json.loads(sys.argv[2])
    limit_cpu(IMPORT_CPU_S)
    try:
        read = import_reader(folder)
    except BaseException as error:
        answer(not_begun=words_of(error))
        return
    limit_resources()
    answer(begun=True)
    try:
        tokenizer = read()
        failed = check_size(tokenizer) or check_decoder(tokenizer) or try_texts(tokenizer)
    except BaseException as error:  # panics of the library derive from no other
        failed = words_of(error)
    if failed is None:
        answer(ok=True)
    else:
        answer(failed=failed)


def answer(**parts: object) -> None:
    """Write a line; at once, as the next step may end the process."""
    sys.stdout.write(json.dumps(parts) + "\n")
    sys.stdout.flush()


def words_of(error: BaseException) -> str:
    """Say in a line what was raised."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def limit_resources() -> None:
    """Bound memory and processor time, and forbid core dumps and files of any size."""
    # Not of the address space: PyTorch's libraries, which Transformers imports, take more of it.
    limit(resource.RLIMIT_DATA, MAX_MEMORY_BYTES)
    limit(resource.RLIMIT_FSIZE, MAX_FILE_BYTES)
    limit(resource.RLIMIT_CORE, 0)
    limit_cpu(READ_CPU_S)


def limit(kind: int, most: int) -> None:
    """Set a limit, if there is no lower one: no process may raise what was forbidden to it."""
    _, highest = resource.getrlimit(kind)
    allowed = most if highest == resource.RLIM_INFINITY else min(most, highest)
    resource.setrlimit(kind, (allowed, allowed))


def limit_cpu(seconds: float) -> None:
    """Have the kernel end this process after so much more processor time.

    By SIGPROF, also within an expression, where Python could not be interrupted.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)


def import_reader(folder: Path) -> Callable[[], Tokenizer]:
    """Import what the folder's files need; what is given back reads them, as they will be read."""
    own_file = folder / "tokenizer.json"
    if own_file.exists():
        from tokenizers import Tokenizer

        def read_own_file() -> Tokenizer:
            # Nothing else is imported, so little more than it needs of the address space is taken.
            limit(resource.RLIMIT_AS, MAX_MEMORY_BYTES)
            return Tokenizer.from_file(str(own_file))

        return read_own_file
    from loaders.checkpoint.tokenizer import import_for, load_tokenizer

    import_for(folder)
    return lambda: load_tokenizer(folder, is_tried=True).backend_tokenizer


def try_texts(tokenizer: Tokenizer) -> str | None:
    """Encode texts of the kinds that break or slow tokenizers; say which one grew too much."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for name, text in texts().items():
        limit_cpu(TEXT_CPU_S)
        ids = tokenizer.encode(text).ids
        if len(ids) > MAX_GROWTH * (len(text) + MAX_GROWTH):
            return f"it makes {len(ids)} ids of {len(text)} characters ({name})"
        tokenizer.decode(ids)
    return None


def check_size(tokenizer: Tokenizer) -> str | None:
    """Say where more pieces were added beside the vocabulary than Transformers can take in."""
    num_added = len(tokenizer.get_added_tokens_decoder())
    if num_added > MAX_ADDED:
        return f"it adds {num_added} pieces to its vocabulary, at most {MAX_ADDED} are read"
    return None


def check_decoder(tokenizer: Tokenizer) -> str | None:
    """Say which expression of the decoder might take any time."""
    decoder: Any = tokenizer.decoder
    for expression in expressions(None if decoder is None else json.loads(decoder.__getstate__())):
        if COUNTS_OR_CHOOSES.search(expression):
            return f"its decoder replaces by the expression {expression[:80]!r}, not by a text"
    return None


def expressions(part: Any) -> Iterator[str]:
    """Give every regular expression in a part of a tokenizer.json."""
    if isinstance(part, dict) and isinstance(part.get("Regex"), str):
        yield part["Regex"]
    elif isinstance(part, dict | list):
        for inner in part.values() if isinstance(part, dict) else part:
            yield from expressions(inner)


def texts() -> dict[str, str]:
    """Give texts by what they are; short ones first, which show what grows exponentially."""
    short = {
        "words": "Hello, world! 123 äöü 漢字 \U0001f600\r\n\tdef f(x):  return x",
        "one letter 40 times": "a" * 40 + "!",
        "spaces 40 times": " " * 40 + "!",
    }
    units = {
        "letters": "a",
        "spaces": " ",
        "lines": "\n",
        "digits": "1",
        "marks": "!",
        "kanji": "漢",
    }
    units |= {"words": "ab ", "numbers": "1a", "mixed": "aA1 !\n"}
    long = {
        f"a long run of {name}": (unit * TEXT_CHARACTERS)[:TEXT_CHARACTERS] + end
        for name, unit in units.items()
        for end in ("", "\x01")
    }
    return short | long


if __name__ == "__main__":
    main()
