"""The table of docs/trust.md: wrong forms of the demo's weights, and the checks that find them."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import pytest

from tests.loaders.model.plausibility.wrong_forms import FORMS, DemoBranch

PAGE = Path(__file__).parents[4] / "docs" / "trust.md"


def table():
    """The rows of the page's table: what catches each form."""
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: re.findall(r"`(\w+)`", checks) for name, checks in rows}


def test_the_table_has_a_row_for_each_form():
    assert {form.name for form in FORMS} <= table().keys()


@pytest.fixture(scope="module")
def branches(demo_cache):
    return lru_cache(maxsize=1)(lambda spec: DemoBranch(spec, demo_cache))


@pytest.mark.slow
@pytest.mark.parametrize(
    "form", sorted(FORMS, key=lambda form: form.spec), ids=lambda form: form.name
)
def test_each_wrong_form_is_found_by_the_checks_that_the_table_names(form, branches):
    assert branches(form.spec).checks_that_catch(form) == table()[form.name]


def test_nothing_that_is_read_rightly_is_suspect():
    right = [name for name in table() if name.startswith("read rightly")]
    assert len(right) == len({form.spec for form in FORMS})
    assert [table()[name] for name in right] == [[]] * len(right)
