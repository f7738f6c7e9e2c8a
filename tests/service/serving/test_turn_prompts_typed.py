"""Special pieces that are typed anywhere in a dialogue with tools are text in every template."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.serving.turn_prompts import AskedTurn, render_turn
from service.text.control_pieces import ControlPieces
from service.text.families import FAMILIES
from service.text.templates import ChatTemplate
from service.tools.calls import Tool, ToolCall, ToolMode, ToolUse
from tests.service.fakes import FakeEngine, says, served_model
from tests.service.text import conftest as vocabularies
from tests.service.text import tool_templates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import PreTrainedTokenizerBase

    from service.serving.served_model import ServedModel

SOURCES = tool_templates.ALL | {name: one.template for name, one in FAMILIES.items()}
VOCABULARIES = ["qwen2", "llama-spm", "codellama", "deepseek-coder", "starcoder"]
WORDS = ["<", "|", ">", "[", "/", "]", '"', "\\", "\n", " ", "{", "}", "a", "é", "</tool_call>"]


class Served:
    """One vocabulary, a model for each template, and texts with its special pieces."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.control = ControlPieces(tokenizer.backend_tokenizer).ids
        engine = FakeEngine(says(tokenizer, "yes"), max_model_len=100_000)
        sources = dict(SOURCES)
        if isinstance(tokenizer.chat_template, str):
            sources["own"] = tokenizer.chat_template
        self.templates = {
            name: ChatTemplate(tokenizer, name=name, source=source)
            for name, source in sources.items()
        }
        self.models = {
            name: served_model(engine, tokenizer, chat_template=template)
            for name, template in self.templates.items()
        }
        backend = tokenizer.backend_tokenizer
        pieces = sorted(str(backend.id_to_token(token_id)) for token_id in self.control)[:40]
        fragments = [piece[i:j] for piece in pieces for i in range(3) for j in (-2, -1, 99)]
        part = st.sampled_from(pieces) | st.sampled_from(fragments) | st.sampled_from(WORDS)
        self.texts = st.lists(part, max_size=4).map("".join)


@pytest.fixture(scope="module", params=VOCABULARIES)
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    if request.param == "codellama":
        last = vocabularies.AddedToken("▁<EOT>" * 6, normalized=False, special=True)
        read = vocabularies.read_vocabulary(request.config, "llama-spm")
        tokenizer = vocabularies.codellama_tokenizer(read, last)
    else:
        tokenizer = vocabularies.read_vocabulary(request.config, request.param)
    one = Served(tokenizer)
    yield one
    for template in one.templates.values():
        template.close()


def dialogue(draw: Callable[[], str], num_calls: int, mode: ToolMode) -> dict[str, Any]:
    """One of two rounds; every text in it, names and keys included, is drawn."""

    def name() -> str:
        return draw() or "a"

    def schema() -> dict[str, Any]:
        return {"type": "object", "properties": {name(): {"description": draw(), "enum": [draw()]}}}

    tools = [Tool(name(), draw(), schema()) for _ in range(2)]
    calls = [
        ToolCall(f"c{n}", tools[0].name, json.dumps({name(): [draw(), {name(): draw()}]}))
        for n in range(num_calls)
    ]
    made = {"role": "assistant", "content": draw(), "reasoning_content": draw()}
    messages = [
        {"role": "system", "content": name()},
        {"role": "user", "content": name()},
        {**made, "tool_calls": calls} if calls else {**made, "content": name()},
        *({"role": "tool", "tool_call_id": call.id, "content": draw()} for call in reversed(calls)),
        *([{"role": "assistant", "content": name()}] if calls else []),
        {"role": "user", "content": name()},
    ]
    return {"messages": messages, "tools": ToolUse(tools, mode)}


def control_ids(served: Served, model: ServedModel, asked: dict[str, Any]) -> list[int]:
    rendered = asyncio.run(render_turn(AskedTurn(**asked), model))
    return [token_id for token_id in rendered.token_ids if token_id in served.control]


@given(
    data=st.data(),
    num_calls=st.integers(0, 2),
    mode=st.sampled_from([ToolMode.AUTO, ToolMode.REQUIRED, ToolMode.NONE]),
)
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=4,
    deadline=None,
)
def test_as_many_special_pieces_are_in_a_prompt_as_with_ordinary_words(
    served, data, num_calls, mode
):
    for name, model in served.models.items():
        words = []

        def typed(words: list[str] = words) -> str:
            words.append(data.draw(served.texts))
            return words[-1]

        attacked = dialogue(typed, num_calls, mode)
        drawn = iter([f"w{n}" if word else "" for n, word in enumerate(words)])
        usual = dialogue(lambda drawn=drawn: next(drawn), num_calls, mode)
        assert control_ids(served, model, attacked) == control_ids(served, model, usual), name
