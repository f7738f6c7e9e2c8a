"""Administration: answers are as their models say, in a process of its own or not."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import httpx2 as httpx
import pytest

from engine.statistics import LiveCheckStatistics
from service.api.application import create_app
from service.api.operations.admin import Administration
from service.api.operations.answers import IntegrityAnswer, Removal, VariantList, VariantReport
from service.errors import ModelNotFoundError
from service.server.lifecycle import Lifecycle
from service.team.keys import ApiKeys
from tests.service.fakes import (
    MODEL,
    ByteTokenizer,
    FakeEngine,
    FakeModels,
    api_context,
    says,
    served_model,
)


class FakeRegistry:
    """One variant, of which all can be asked; notes what was."""

    def __init__(self) -> None:
        tokenizer = ByteTokenizer()
        self.engine = FakeEngine(says(tokenizer, "yes"))
        self.engine.live_check = LiveCheckStatistics(num_layers=4, num_checked=2)
        self.models = FakeModels(served_model(self.engine, tokenizer))
        self.asked: list[tuple[str, str]] = []

    def roles(self):
        return [(status, "routed") for status in self.models.statuses]

    def failed_swap(self, name: str) -> str | None:
        return "out of memory"

    def require(self, name: str):
        status, _ = self.models.find(name)
        return SimpleNamespace(
            status=status,
            load=lambda: self.asked.append(("load", name)),
            drain=lambda: self.asked.append(("drain", name)),
            require_served=lambda: SimpleNamespace(engine=self.engine),
        )

    def unload(self, name: str) -> None:
        self.asked.append(("unload", name))

    def remove(self, name: str) -> None:
        if name != MODEL:
            raise ModelNotFoundError(f"no such model: {name}")
        self.asked.append(("remove", name))


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry()


def ask(registry: FakeRegistry, method: str, path: str, body: object = None) -> httpx.Response:
    administration = Administration(ApiKeys("sk-admin"), registry, None)
    context = api_context(Lifecycle(registry.models), registry.models)
    app = create_app(context, ApiKeys("sk-1"), administration)

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        headers = {"x-api-key": "sk-admin"}
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.request(method, path, headers=headers, json=body)

    return asyncio.run(send())


def test_list_tells_each_variants_state_and_part(registry):
    listed = VariantList.model_validate_json(ask(registry, "GET", "/admin/models").content)
    (variant,) = listed.data
    assert (variant.model, variant.state.value, variant.role) == (MODEL, "serving", "routed")
    assert variant.failed_swap == "out of memory"
    assert variant.live_check.num_checked == 2


@pytest.mark.parametrize("action", ["load", "drain", "unload"])
def test_what_takes_long_is_begun_and_answered_with_the_state(registry, action):
    response = ask(registry, "POST", f"/admin/models/{action}", {"model": MODEL})
    assert response.status_code == 202
    assert VariantReport.model_validate_json(response.content).model == MODEL
    assert registry.asked == [(action, MODEL)]


def test_removal_and_integrity_are_told(registry):
    response = ask(registry, "POST", "/admin/models/remove", {"model": MODEL})
    assert Removal.model_validate_json(response.content).removed == MODEL
    response = ask(registry, "POST", "/admin/models/check", {"model": MODEL})
    assert IntegrityAnswer.model_validate_json(response.content).is_idle
    assert ask(registry, "POST", "/admin/models/remove", {"model": "x"}).status_code == 404
