"""Nothing is looked for again and again: whoever waits is woken by what it waits for."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]

# Loops in which time passes, and why it is time itself that they wait for.
REASONS = {
    "engine/process/loop.py: _run": "a heartbeat is sent at a pace",
    "service/api/event_stream.py: watch": "deadlines, armed for when they can have passed",
    "service/batches/disk_faults.py: _try_again": "a disk tells nobody that it is well; waits grow",
    "service/batches/reopening.py: _try_again": "as above, and so does another server's lock",
    "service/line_process.py: _read_line": "woken by each piece; the rest of one deadline",
    "service/observation/line_writer.py: _run": "rests, so that a crowd is one write",
    "service/text/encoding.py: _wait_for": "a text's time is the CPU's, which tells nobody",
    "service/variants/handles.py: until_hung": "a deadline, as above",
    "service/variants/variant.py: _run_engines": "each restart waits longer than the one before",
    "service/variants/variant.py: _until_ended_or_idle": "a deadline, as above",
}


def test_loops_in_which_time_passes_wait_for_nothing_but_time():
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for package in ("engine", "service")
        for path in sorted((ROOT / package).rglob("*.py"))
        for name in timed_loops(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found - set(REASONS) == set()


def test_such_loops_are_found():
    def of(body: str) -> list[str]:
        return list(timed_loops(ast.parse(f"async def f():\n  while x:\n    {body}")))

    for body in (
        "await asyncio.sleep(0.05)",
        "time.sleep(PAUSE_S)",
        "done.wait(0.5)",
        "await asyncio.wait(tasks, timeout=1)",
        "await asyncio.wait_for(task, 1)",
        "async with asyncio.timeout(1): pass",
        "if y:\n      for _ in z: select.poll(5)",
    ):
        assert of(body) == ["f"], body
    for body in ("await done.wait()", "await asyncio.wait(tasks)", "await changes.until(x)"):
        assert of(body) == [], body
    assert list(timed_loops(ast.parse("async def f():\n  await asyncio.sleep(1)"))) == []


def timed_loops(module: ast.Module) -> Iterator[str]:
    """Give the functions of a module that let time pass in a loop."""
    for function in ast.walk(module):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        loops = [part for part in ast.walk(function) if isinstance(part, ast.While)]
        calls = [part for loop in loops for part in ast.walk(loop) if isinstance(part, ast.Call)]
        if any(lets_time_pass(call) for call in calls):
            yield function.name


def lets_time_pass(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
    if name in ("sleep", "wait_for", "timeout"):
        return True
    has_limit = any(keyword.arg == "timeout" for keyword in call.keywords)
    if name == "wait":  # asyncio.wait takes what is waited for, an event's only a limit
        return has_limit or (ast.unparse(call.func) != "asyncio.wait" and bool(call.args))
    return name in ("poll", "select") and any(ast.unparse(limit) != "0" for limit in call.args)
