"""The program that renders one chat template, run by `sandbox` in a process of its own.

Reads lines of JSON and answers each with one. Imports only Jinja and the standard library, opens no
file, and is killed by the kernel when a template uses more processor time than it was given:
counting loops inside Jinja would miss what one expression can do ("a" * 10**12, a list that holds
itself twice).

First line: {"source", "cpu_s"}, answered {"names": variables that the template reads}. Then one
line per text: {"variables", "max_chars", "cpu_s"}, answered {"text"} or {"refused": why} where the
template called raise_exception. What goes wrong in either is answered {"failed": why}.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jinja2 import Template, TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jinja2.parser import Parser

MAX_MEMORY_BYTES = 512 * 1024**2  # address space; Python and Jinja take 47 MB (2026-11)
# What has names of its own.
LOCAL = (nodes.For, nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.With, nodes.Scope)
# What an expression in a template can raise besides Jinja's own errors.
EXPRESSION_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,  # from Python, for templates nested too deeply to compile
    TypeError,
    ValueError,
)


class RefusedError(TemplateError):
    """The template called raise_exception: it does not take these messages."""


class TextTooLongError(Exception):
    """The text grew past its limit."""


class GenerationTag(Extension):
    """Accept {% generation %}, which marks for training what an assistant says; print its body."""

    tags = {"generation"}  # noqa: RUF012 -- Jinja's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        """Read up to {% endgeneration %}."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def main() -> None:
    """Compile the template of the first line, then render until the input ends."""
    limit_resources()
    template: Template | None = None
    for line in sys.stdin.buffer:
        request = json.loads(line)
        limit_cpu(request["cpu_s"])
        try:
            if template is None:
                template, names = compile_template(request["source"])
                answer: dict[str, Any] = {"names": names}
            else:
                answer = {"text": render(template, request["variables"], request["max_chars"])}
        except RefusedError as error:
            answer = {"refused": str(error)}
        except TextTooLongError as error:
            answer = {"failed": str(error)}
        except (TemplateError, *EXPRESSION_ERRORS) as error:
            answer = {"failed": f"{type(error).__name__}: {error}"}
        limit_cpu(None)
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


def compile_template(source: str) -> tuple[Template, list[str]]:
    """Compile; also list the variables that the template reads before it sets them, if ever.

    Jinja alone would also list what every branch sets and only then reads.
    """
    made = environment()
    template = made.from_string(source)
    parsed = made.parse(source)
    read: set[str] = set()
    in_order(parsed, read, set())
    return template, sorted(read & meta.find_undeclared_variables(parsed))


def in_order(node: nodes.Node, read: set[str], written: set[str]) -> None:
    """Go through a template as it is worked out, and note which names are read first."""
    if isinstance(node, nodes.Name):
        if node.ctx != "load":
            written.add(node.name)
        elif node.name not in written:
            read.add(node.name)
    if isinstance(node, LOCAL):
        written = set(written)  # what is set in it is not set behind it
    # {% set x = x or 1 %} and {% for x in x %} read before they write.
    late = [node.target] if isinstance(node, nodes.Assign | nodes.AssignBlock) else []
    early = [node.iter] if isinstance(node, nodes.For) else []
    others = [c for c in node.iter_child_nodes() if not any(c is one for one in early + late)]
    for child in (*early, *others, *late):
        in_order(child, read, written)


def render(template: Template, variables: Mapping[str, Any], max_chars: int) -> str:
    """Render, giving up as soon as the text is longer than `max_chars`."""
    pieces = []
    num_chars = 0
    for piece in template.generate(variables):
        num_chars += len(piece)
        if num_chars > max_chars:
            raise TextTooLongError(f"it wrote more than {max_chars} characters")
        pieces.append(piece)
    return "".join(pieces)


def environment() -> ImmutableSandboxedEnvironment:
    """Make the environment in which Transformers renders chat templates."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationTag]
    )
    made.filters["tojson"] = to_json
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = strftime_now
    return made


def refuse(message: str) -> None:
    """Let a template refuse the messages."""
    raise RefusedError(message)


def strftime_now(pattern: str) -> str:
    """Let a template write today's date."""
    return datetime.now().strftime(pattern)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON without escaping what only matters in HTML, as Jinja's own filter would."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def limit_resources() -> None:
    """Bound memory, and forbid writing files and core dumps."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_cpu(seconds: float | None) -> None:
    """Have the kernel end this process after so much processor time; None lifts the limit.

    SIGPROF is left at its default, which ends the process: no handler that Python would have to
    run, so it works in the middle of one endless expression too.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds or 0)


if __name__ == "__main__":
    main()
