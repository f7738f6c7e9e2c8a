"""What an agent of Anthropic's sends, as other servers' users have recorded it (2026-11)."""

from __future__ import annotations

from typing import Any

QUERY = "/v1/messages?beta=true"
EPHEMERAL = {"type": "ephemeral"}

READ = {
    "name": "Read",
    "description": "Reads a file.",
    "input_schema": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"file_path": {"type": "string"}, "limit": {"type": "number"}},
        "required": ["file_path"],
        "additionalProperties": False,
    },
}
WEB_SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}


def system(cch: str) -> list[dict[str, Any]]:
    """Its system text; `cch` is another one in each request."""
    billing = f"x-anthropic-billing-header: cc_version=2.1.70.e2f; cc_entrypoint=cli; cch={cch};"
    return [
        {"type": "text", "text": billing},
        {"type": "text", "text": "You are an agent.", "cache_control": EPHEMERAL},
        {"type": "text", "text": "Use the tools.", "cache_control": EPHEMERAL},
    ]


def first_turn(cch: str = "00000") -> dict[str, Any]:
    """A dialogue's first request."""
    return {
        "model": "dummy",
        "max_tokens": 32_000,
        "stream": True,
        "system": system(cch),
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "<system-reminder>\nToday is Friday.\n"},
                    {"type": "text", "text": "What does a.py do?", "cache_control": EPHEMERAL},
                ],
            },
            {"role": "system", "content": "Answer in one sentence."},
        ],
        "tools": [READ, WEB_SEARCH],
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": '{"device_id":"d","account_uuid":"","session_id":"s"}'},
        "temperature": 1,
    }


def second_turn(cch: str = "11111") -> dict[str, Any]:
    """The request that brings what its tools found."""
    request = first_turn(cch)
    calls = [
        {"type": "thinking", "thinking": "I must read it.", "signature": "c2lnbmVk"},
        {"type": "redacted_thinking", "data": "c2VjcmV0"},
        {"type": "text", "text": "I will read both."},
        {"type": "tool_use", "id": "toolu_01", "name": "Read", "input": {"file_path": "a.py"}},
        {"type": "tool_use", "id": "toolu_02", "name": "Read", "input": {"file_path": "b.py"}},
    ]
    results = [
        {
            "type": "tool_result",
            "tool_use_id": "toolu_02",
            "content": "no such file",
            "is_error": True,
        },
        {
            "type": "tool_result",
            "tool_use_id": "toolu_01",
            "content": [{"type": "text", "text": "print(1)", "cache_control": EPHEMERAL}],
        },
        {"type": "text", "text": "<system-reminder>\nBe brief.\n"},
    ]
    request["messages"] += [
        {"role": "assistant", "content": calls},
        {"role": "user", "content": results},
        {"role": "system", "content": [{"type": "text", "text": "Ten tokens are left."}]},
    ]
    return request
