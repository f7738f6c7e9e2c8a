"""Templates that nobody vouches for: what they may do, and what ends them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.text.errors import (
    InvalidMessagesError,
    TemplateFailedError,
    TemplateInterruptedError,
)
from service.text.sandbox import EXTRA_CHARS, TemplateSandbox
from tests.watching import is_running

ENDLESS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ range(99999) | map('string') | join | list | sort | map('upper') | list | string * 9999 }}",
    "{% set n = namespace(l=[1]) %}{% for i in range(60) %}{% set n.l = [n.l, n.l] %}{% endfor %}"
    "{{ n.l == n.l | list }}{{ n.l }}",
    "{{ seven ** 9999999 % 3 }}",
    "{{ ('a' * 30 + 'b') * 10**8 }}",
    "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "{{ '%1000000000d' | format(1) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
]
# Jinja works out constants while it compiles.
DO_NOT_COMPILE = [
    "{% if %}",
    "{{ 7 ** 99999999 % 3 }}",
    "{{ 'a' * 10**12 }}" + "{{ ('a' * 30 + 'b') * 10**8 }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
]
ESCAPES = [
    "{{ cycler.__init__.__globals__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{{ ''.format.__self__ }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ open('/etc/passwd') }}",
    "{{ self.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'].environ }}",
]


@pytest.fixture
def sandbox():
    made: list[TemplateSandbox] = []

    def make(source: str, **options) -> TemplateSandbox:
        made.append(TemplateSandbox(source, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_template_renders_what_it_is_given(sandbox):
    template = sandbox("{% for m in messages %}{{ m.content | trim }};{% endfor %}")
    messages = [{"content": " Grüße\n"}, {"content": "🙂"}]
    assert template.render({"messages": messages}, num_chars=10) == "Grüße;🙂;"


def test_blocks_leave_no_lines_and_dates_and_generation_marks_are_known(sandbox):
    source = (
        "{% if true %}\n  {% generation %}\nx{% endgeneration %}\n{% endif %}\n"
        "{{ strftime_now('%Y') }}{{ {'a<': 'ü'} | tojson }}"
    )
    year = time.strftime("%Y")
    assert sandbox(source).render({}, num_chars=0) == f'x{year}{{"a<": "ü"}}'


def test_a_template_tells_which_variables_it_reads(sandbox):
    template = sandbox(
        "{% set own = 1 %}{{ own }}{% if mode is defined %}{{ messages }}{% endif %}"
    )
    assert template.names == {"mode", "messages"}
    template.close()
    template.render({"messages": []}, num_chars=0)
    assert template.names == {"mode", "messages"}


def test_a_refusal_by_the_template_is_the_callers_error(sandbox):
    template = sandbox("{{ raise_exception('only one message') }}")
    with pytest.raises(InvalidMessagesError, match="only one message"):
        template.render({}, num_chars=0)


@pytest.mark.parametrize("source", ENDLESS)
def test_an_endless_or_huge_template_is_stopped_and_the_next_text_works(sandbox, source):
    template = sandbox("{% if go %}" + source + "{% endif %}ok", cpu_s=0.2)
    start = time.monotonic()
    with pytest.raises(TemplateFailedError, match="chat template"):
        template.render({"go": True, "seven": 7}, num_chars=0)
    assert time.monotonic() - start < 10
    assert template.render({"go": False}, num_chars=0) == "ok"


@pytest.mark.parametrize("source", ESCAPES)
def test_a_template_reaches_nothing_outside(sandbox, source):
    template = sandbox(source)
    try:
        text = template.render({"messages": []}, num_chars=0)
    except TemplateFailedError:
        return
    assert text in ("", "None")


@pytest.mark.parametrize("source", DO_NOT_COMPILE)
def test_a_template_that_does_not_compile_fails_at_once(source):
    with pytest.raises(TemplateFailedError, match="chat template"):
        TemplateSandbox(source, cpu_s=0.2).render({}, num_chars=0)


def test_a_text_may_be_longer_than_its_contents_but_not_much(sandbox):
    template = sandbox("{{ 'a' * n }}")
    assert len(template.render({"n": EXTRA_CHARS + 400}, num_chars=100)) == EXTRA_CHARS + 400
    with pytest.raises(TemplateFailedError, match="more than"):
        template.render({"n": EXTRA_CHARS + 401}, num_chars=100)


def test_a_killed_process_is_replaced(sandbox):
    template = sandbox("ok")
    os.kill(template._worker._process.pid, signal.SIGKILL)
    with pytest.raises(TemplateInterruptedError, match="from outside by SIGKILL"):
        template.render({}, num_chars=0)
    assert template.render({}, num_chars=0) == "ok"


def test_one_that_gets_no_time_is_no_fault_of_the_templates(sandbox):
    template = sandbox("ok")
    os.kill(template._worker._process.pid, signal.SIGSTOP)
    template._worker._wall_s = 0.05
    with pytest.raises(TemplateInterruptedError, match="too busy"):
        template.render({}, num_chars=0)
    assert template.render({}, num_chars=0) == "ok"


def test_one_that_takes_all_its_time_is_at_fault_itself(sandbox):
    template = sandbox("{% if go %}" + ENDLESS[0] + "{% endif %}", cpu_s=0.1)
    with pytest.raises(TemplateFailedError, match="used up its processor time") as told:
        template.render({"go": True}, num_chars=0)
    assert not isinstance(told.value, TemplateInterruptedError)


def test_closing_ends_the_process(sandbox):
    template = sandbox("ok")
    process = template._worker._process
    template.close()
    assert process.returncode == 0


def test_the_process_sees_no_environment_of_the_server(sandbox, monkeypatch):
    monkeypatch.setenv("TETRAD_API_KEY", "secret")
    template = sandbox("ok")
    with open(f"/proc/{template._worker._process.pid}/environ", "rb") as environment:
        assert b"secret" not in environment.read()


def test_the_process_ends_with_a_server_that_is_killed():
    program = (
        "import time; from service.text.sandbox import TemplateSandbox;"
        "one = TemplateSandbox('ok'); print(one._worker._process.pid, flush=True); time.sleep(60)"
    )
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=root, text=True
    ) as server:
        worker = int(server.stdout.readline())
        assert is_running(worker)
        server.kill()
    deadline = time.monotonic() + 10
    while is_running(worker):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_several_threads_share_a_template(sandbox):
    template = sandbox("{{ n }}")
    with ThreadPoolExecutor(8) as threads:
        texts = threads.map(lambda n: template.render({"n": n}, num_chars=1), range(200))
    assert list(texts) == [str(n) for n in range(200)]
