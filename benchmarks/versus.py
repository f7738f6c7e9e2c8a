"""Servers side by side over HTTP, in turns: Tetrad, vLLM, llama.cpp and `transformers serve`.

    TETRAD_VLLM_ENV=ENVIRONMENT .venv/bin/python -m benchmarks.versus [--minutes 25] [--record]

All servers of one variant stand ready at once, and all but the one that is measured are stopped
(SIGSTOP). A turn measures everything on each, one right after the other, with prompts that none has
seen and all get alike. *Streams*: tokens a second together, while all of them run. *Prompts*:
tokens a second until the first text. *Ready*: from the start to the first answered token, with
empty caches for what is compiled or measured, and again. *Memory*: of all processes, after the
turns; pages that several share count for a part in each, so that `tetrad` and `tetrad-before` lend
each other theirs. Ratios are ours ÷ theirs, turn by turn: the least, the median, the greatest.
Those that are wanted are judged only by all turns. The result is written after every turn. With
--minutes each variant has its share of them, and at least one turn unless the time was over before
it.

Servers: `tetrad`; `tetrad-before`, another checkout (--against); `vllm-bf16`, vLLM with bfloat16
activations (VLLM_CPU_INT4_W4A8=0), as ours; `vllm` as it comes; `llama.cpp`, on the demo's source;
`transformers`, on the same weights dequantised. The last two answer one request at a time, so that
only one stream of theirs is measured. Others' environments are named by TETRAD_VLLM_ENV,
TETRAD_LLAMA_CPP_ENV and TETRAD_TRANSFORMERS_ENV; without them they are looked for in this one. Each
that is not there is said, with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from benchmarks import record, versus_peers, versus_variants
from benchmarks.versus_load import (
    LoadError,
    Prompt,
    Prompts,
    Rate,
    Target,
    measure_prompt,
    measure_streams,
)
from benchmarks.versus_peers import Absent, Peer
from benchmarks.versus_results import (
    Asked,
    Result,
    cpu_has_amx,
    markdown_of,
    rows_of,
    table_of,
)
from benchmarks.versus_servers import HOST, ServerProcess, StartError, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from benchmarks.versus_variants import Variant

TURNS = 5
STREAMS = (1, 8, 32)
PROMPTS = (128, 1024, 4096)
STREAM_PROMPT_TOKENS = 64
STREAM_TOKENS = 128
WARM_UP_TOKENS = 8
SEED = 18
CONSOLE = Console(width=160)


@dataclass(frozen=True, slots=True)
class Measure:
    """One thing that is measured of each server in each turn."""

    name: str
    num_streams: int
    num_prompt_tokens: int
    num_tokens: int  # of each answer; 1 where the prompt is what is measured

    def take(self, target: Target, prompts: Sequence[Prompt], num_tokens: int) -> Rate:
        """Return how fast a server reads a prompt or answers streams."""
        if self.num_tokens == 1:
            return Rate(measure_prompt(target, prompts[0]))
        return measure_streams(target, prompts, num_tokens)


def measures_of(streams: Sequence[int], prompts: Sequence[int], num_tokens: int) -> list[Measure]:
    """Return what is measured, in its order."""
    running = [
        Measure(f"{n} stream{'s' * (n > 1)}", n, STREAM_PROMPT_TOKENS, num_tokens) for n in streams
    ]
    return running + [Measure(f"prompt of {length}", 1, length, 1) for length in prompts]


class Contender:
    """A peer that serves one variant: its process and what it did so far."""

    def __init__(self, peer: Peer, variant: Variant, folder: Path, waking: Prompt) -> None:
        self.peer = peer
        self.result = Result(peer)
        self._variant = variant
        self._folder = folder / f"{variant.name}-{peer.name}"
        self._folder.mkdir()
        self._process: ServerProcess | None = None
        self._target = Target(HOST, 0)
        self._waking = waking

    def start(self) -> None:
        """Start the server, and time it until it has answered."""
        port = free_port()
        self._target = Target(
            HOST, port, self.peer.model(self._variant), self.peer.takes_token_ids, self.peer.fields
        )
        began = time.monotonic()
        command = self.peer.command(self._variant, port)
        environment = environment_of(self.peer, self._folder / "cache")
        log = self._folder / "log"
        self._process = ServerProcess(command, environment, self._folder, log)
        self._process.wait_ready(f"http://{HOST}:{port}{self.peer.ready_path}")
        measure_prompt(self._target, self._waking)
        self.result.ready_s.append(time.monotonic() - began)

    def take(self, measure: Measure, prompts: Sequence[Prompt], num_tokens: int) -> Rate:
        """Measure once, after a request that wakes all processes."""
        with self.running():
            measure_prompt(self._target, self._waking)
            return measure.take(self._target, prompts, num_tokens)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Let the server run for a while."""
        assert self._process is not None
        self._process.thaw()
        try:
            yield
        finally:
            self._process.freeze()

    def freeze(self) -> None:
        """Stop the server's processes until it is measured."""
        assert self._process is not None
        self._process.freeze()

    def look_at_memory(self) -> None:
        """Note how much memory the server takes now."""
        assert self._process is not None
        self.result.memory_mb = self._process.memory_mb()

    def give_up(self, error: Exception) -> None:
        """Note why it is measured no further, with the end of its log, and end it."""
        text = str(error)
        if self._process is not None and not isinstance(error, StartError):
            text += f"; {self._process.end_of_log()}"
        self.result.problem = text
        CONSOLE.print(f"[red]{self.peer.name}: error:[/] ", end="")
        CONSOLE.print(text, markup=False)
        self.close()

    def close(self) -> None:
        """End the server."""
        if self._process is not None:
            self._process.close()
            self._process = None


def environment_of(peer: Peer, cache: Path) -> dict[str, str]:
    """Return a server's variables: this process's without settings, and caches of its own."""
    own = {
        name: value
        for name, value in os.environ.items()
        if name != "PYTHONPATH" and not name.startswith(("TETRAD_", "VLLM_"))
    }
    caches = {
        "XDG_CACHE_HOME": str(cache),
        "TETRAD_CACHE_DIR": str(cache / "tetrad"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
    }
    return {**own, **caches, "HF_HUB_OFFLINE": "1", **peer.environment}


class Comparison:
    """One variant on all peers."""

    def __init__(
        self, peers: Sequence[Peer], variant: Variant, measures: Sequence[Measure], folder: Path
    ) -> None:
        self._measures = measures
        self._prompts = Prompts(variant.packed / "tokenizer.json", random.Random(SEED))
        waking = self._prompts.make(WARM_UP_TOKENS)
        self._contenders = [Contender(peer, variant, folder, waking) for peer in peers]

    def run(
        self,
        turns: int,
        starts: int,
        *,
        until: float = math.inf,
        on_turn: Callable[[list[Result]], object] = lambda _: None,
    ) -> list[Result]:
        """Start, warm up, measure in turns and end all; return what each did.

        until: the monotonic time after which no further turn begins, but the first. on_turn: is
        given what each did so far, after every turn.
        """
        try:
            self._start(starts)
            self._turn(None, self._contenders)
            for turn in range(1, turns + 1):
                began = time.monotonic()
                # Another one first in each turn.
                cut = (turn - 1) % len(self._contenders)
                self._turn(turn, [*self._contenders[cut:], *self._contenders[:cut]])
                CONSOLE.print(f"turn {turn} took {time.monotonic() - began:.0f} s")
                on_turn([one.result for one in self._contenders])
                if turn < turns and time.monotonic() >= until:
                    CONSOLE.print(f"stopped after {turn} of {turns} turns: the time is over")
                    break
            for one in self._alive(self._contenders):
                one.look_at_memory()
        finally:
            for one in self._contenders:
                one.close()
        return [one.result for one in self._contenders]

    def _start(self, starts: int) -> None:
        for one in self._contenders:
            try:
                for number in range(starts):
                    one.start()
                    seconds = one.result.ready_s[-1]
                    CONSOLE.print(f"{one.peer.name}: ready in {seconds:.1f} s")
                    if number + 1 < starts:
                        one.close()
                one.freeze()
            except (OSError, StartError, LoadError) as error:
                one.give_up(error)

    def _turn(self, turn: int | None, order: Sequence[Contender]) -> None:
        """Measure everything on each; None is the turn that warms up, of which nothing is kept."""
        name = "warming up" if turn is None else f"turn {turn}"
        for measure in self._measures:
            prompts = [
                self._prompts.make(measure.num_prompt_tokens) for _ in range(measure.num_streams)
            ]
            num_tokens = measure.num_tokens
            if turn is None:
                num_tokens = min(num_tokens, WARM_UP_TOKENS)
            for one in self._alive(order):
                if one.peer.max_streams is not None and measure.num_streams > one.peer.max_streams:
                    continue
                try:
                    taken = one.take(measure, prompts, num_tokens)
                except LoadError as error:
                    one.give_up(LoadError(f"{name}, {measure.name}: {error}"))
                    continue
                if turn is not None:
                    one.result.rates.setdefault(measure.name, []).append(taken.per_s)
                    if taken.are_apart:
                        one.result.apart.setdefault(measure.name, []).append(turn)
                    CONSOLE.print(f"{name}: {measure.name}: {one.peer.name} {taken.per_s:.1f}")

    @staticmethod
    def _alive(contenders: Sequence[Contender]) -> list[Contender]:
        return [one for one in contenders if one.result.problem is None]


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names, variants = versus_peers.NAMES, versus_variants.NAMES
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--peers", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--variants", nargs="+", choices=variants, default=variants)
    parser.add_argument("--streams", nargs="*", type=int, default=STREAMS, metavar="NUMBER")
    parser.add_argument("--prompts", nargs="*", type=int, default=PROMPTS, metavar="TOKENS")
    parser.add_argument("--tokens", type=int, default=STREAM_TOKENS, help="of each stream")
    parser.add_argument("--starts", type=int, choices=(1, 2), default=2)
    parser.add_argument("--threads", type=int, help="of one operation, instead of all CPUs")
    parser.add_argument("--minutes", type=float, help="after which no further turn begins")
    parser.add_argument("--against", type=Path, help="checkout of an older commit")
    parser.add_argument("--record", action="store_true", help="write a dated result")
    parser.add_argument("--json", type=Path, help="write the result into this file")
    arguments = parser.parse_args()
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        parser.error(f"{arguments.json}: there is no such folder")
    return arguments


def find_peers(arguments: argparse.Namespace) -> tuple[list[Peer], dict[str, str]]:
    """Return the peers that are here, and why the others are not."""
    found = [
        versus_peers.find(name, arguments.against, arguments.threads)
        for name in dict.fromkeys(arguments.peers)
    ]
    absent = {one.name: one.reason for one in found if isinstance(one, Absent)}
    for name, reason in absent.items():
        CONSOLE.print(f"{name} is left out: {reason}", markup=False)
    return [one for one in found if isinstance(one, Peer)], absent


class Report:
    """What was found so far, of all variants: written after every turn, and told at the end."""

    def __init__(
        self, settings: dict[str, Any], asked: Asked, paths: Sequence[Path | None]
    ) -> None:
        """paths: the files that are written; None is the dated one."""
        # Named at the beginning: what changes meanwhile is not what runs.
        self._head = record.head_of("versus", settings)
        self._asked = asked
        self._paths = paths
        self._found: dict[str, list[Result]] = {}
        self._written: list[Path] = []

    def take(self, variant: str, results: list[Result]) -> None:
        """Take in what each server did with a variant so far, and write everything."""
        self._found[variant] = results
        self._written = [record.write_rows(self._head, self.rows(), path) for path in self._paths]

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each variant and server."""
        has_amx = self._head["settings"]["amx"]
        return [
            row
            for variant, results in self._found.items()
            for row in rows_of(variant, results, self._asked, has_amx)
        ]

    def tell(self) -> None:
        """Print tables, in Markdown, too, verdicts, and where everything is written."""
        for variant, results in self._found.items():
            CONSOLE.print(table_of(variant, self._asked, results))
        for row in self.rows():
            for measure, verdict in row.get("wanted", {}).items():
                CONSOLE.print(
                    f"{row['variant']}, {measure}, {row['server']}: {verdict}", markup=False
                )
        print(f"\n{self._head['hardware']['cpu']}, {self._head['date']}, {self._head['commit']}")
        for variant, results in self._found.items():
            print(f"\n{markdown_of(variant, self._asked, results)}")
        for path in self._written:
            print(f"\n{path}")


def compare(
    arguments: argparse.Namespace,
    peers: Sequence[Peer],
    measures: Sequence[Measure],
    report: Report,
) -> None:
    """Compare all variants, each within its share of the time that is left."""
    end = math.inf if arguments.minutes is None else time.monotonic() + 60 * arguments.minutes
    variants = list(dict.fromkeys(arguments.variants))
    with tempfile.TemporaryDirectory(prefix="versus-") as name:
        for number, chosen in enumerate(variants):
            now = time.monotonic()
            if now >= end:
                CONSOLE.print(f"{chosen}: 0 of {arguments.turns} turns: the time is over")
                report.take(chosen, [Result(peer) for peer in peers])
                continue
            until = now + (end - now) / (len(variants) - number)
            variant = versus_variants.prepare(chosen, Path(name))
            take = functools.partial(report.take, variant.description)
            comparison = Comparison(peers, variant, measures, Path(name))
            take(comparison.run(arguments.turns, arguments.starts, until=until, on_turn=take))


def main() -> None:
    """Compare, print, record; the exit status is 1 where a server failed."""
    arguments = read_arguments()
    # Servers that stand still would outlive this process, were it ended without its way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    measures = measures_of(arguments.streams, arguments.prompts, arguments.tokens)
    peers, absent = find_peers(arguments)
    if not peers or not measures:
        raise SystemExit("there is nothing to compare")
    settings = {
        **{key: value for key, value in vars(arguments).items() if key not in ("json", "record")},
        "against": record.commit_of(arguments.against),
        "absent": {name: record.without_folders(reason) for name, reason in absent.items()},
        "amx": cpu_has_amx(),
    }
    asked = Asked([one.name for one in measures], arguments.turns)
    paths = [*([None] if arguments.record else []), *([arguments.json] if arguments.json else [])]
    report = Report(settings, asked, paths)
    compare(arguments, peers, measures, report)
    report.tell()
    if any(row["problem"] for row in report.rows()):
        sys.exit(1)


if __name__ == "__main__":
    main()
