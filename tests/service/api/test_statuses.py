"""Which statuses an endpoint may answer: all of the table of errors, but for rules."""

from __future__ import annotations

import pytest

from service.api import statuses
from service.api.error_responses import STATUS, ErrorForm
from service.api.statuses import codes_of, meaning_of, statuses_of
from tests.service.api.sample_endpoints import ENDPOINTS


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)
def test_new_status_of_the_table_is_documented_everywhere(endpoint, monkeypatch):
    new = {ArithmeticError: ErrorForm(418, "invalid_request_error", "teapot")}
    assert 418 not in statuses_of(endpoint)
    monkeypatch.setattr(statuses, "STATUS", STATUS | new)
    assert 418 in statuses_of(endpoint)
    assert codes_of(418) == ["teapot"]


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)
def test_success_is_not_among_them_and_what_the_endpoint_names_is(endpoint):
    found = statuses_of(endpoint)
    assert found == sorted(set(found))
    assert endpoint.success not in found
    assert {*endpoint.statuses, *endpoint.other_answers} <= set(found)


def test_every_status_of_the_table_has_a_meaning():
    unsaid = meaning_of(0)
    assert all(meaning_of(form.status) != unsaid for form in STATUS.values())
