"""What Codex sends: the shapes of its requests, with texts of our own.

It says everything anew with each request and keeps nothing on the server (`store: false`), asks for
encrypted thoughts, names its prefix, and offers tools of types that only OpenAI's service runs.
What it is it says in `instructions` or, since 0.17x, in the first message of the developer.
"""

from __future__ import annotations

from typing import Any

SHELL = {
    "type": "function",
    "name": "shell_command",
    "description": "Runs a command of the shell and returns what it wrote.",
    "strict": False,
    "parameters": {
        "type": "object",
        "properties": {
            "command": {"type": "string", "description": "The command."},
            "workdir": {"type": "string", "description": "Where it runs."},
            "timeout_ms": {"type": "number", "description": "When it is ended."},
        },
        "required": ["command"],
        "additionalProperties": False,
    },
}
APPLY_PATCH = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edits files. The text is a patch, and not JSON.",
    "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "*** Begin Patch" LF\n'},
}
TOOLS: list[dict[str, Any]] = [
    SHELL,
    APPLY_PATCH,
    {"type": "web_search", "external_web_access": False},
    {"type": "namespace", "name": "mcp__notes__", "description": "Notes.", "tools": [SHELL]},
    {"type": "local_shell"},
]

FIRST_INPUT: list[dict[str, Any]] = [
    {
        "type": "message",
        "id": "msg_3c867aec-b1c6-5dce-90fc-a3eee53c7f5a",
        "role": "developer",
        "content": [{"type": "input_text", "text": "<permissions>read-only</permissions>"}],
    },
    {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": "# AGENTS.md\nRun the tests."}],
    },
    {
        "type": "message",
        "role": "user",
        "content": [
            {"type": "input_text", "text": "<environment_context>/src</environment_context>"}
        ],
    },
    {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": "Which files are there?"}],
    },
]

# What it was sent, without ids where the server was told to keep nothing, and what its tools found.
NEXT_INPUT: list[dict[str, Any]] = [
    *FIRST_INPUT,
    {
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": "I should list them."}],
        "content": None,
        "encrypted_content": None,
    },
    {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "I shall look."}],
        "phase": "commentary",
    },
    {
        "type": "function_call",
        "name": "shell_command",
        "arguments": '{"command":"ls"}',
        "call_id": "call_a",
    },
    {
        "type": "function_call_output",
        "call_id": "call_a",
        "output": "Exit code: 0\nOutput:\nREADME.md\n",
    },
    {
        "type": "custom_tool_call",
        "status": "completed",
        "call_id": "call_b",
        "name": "apply_patch",
        "input": "*** Begin Patch\n*** End Patch",
    },
    {"type": "custom_tool_call_output", "call_id": "call_b", "output": "Done."},
    {
        "type": "web_search_call",
        "status": "completed",
        "action": {"type": "search", "query": "weather"},
    },
    {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": "And now?"}],
    },
]


def request(model: str, items: list[dict[str, Any]], **more: object) -> dict[str, Any]:
    """Return a request's body as Codex makes it."""
    return {
        "model": model,
        "instructions": "You are a coding agent that runs in a terminal.",
        "input": items,
        "tools": TOOLS,
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "client_metadata": {"turn_id": "01a22863", "x-codex-window-id": "01a22862:0"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0199a213-81c0-7800-8aa1-bbab2a035a53",
        "text": {"verbosity": "low"},
        **more,
    }


# What it cannot be given here, and is told so.
IGNORED = {
    "client_metadata",
    "include.reasoning.encrypted_content",
    "prompt_cache_key",
    "reasoning.effort",
    "text.verbosity",
    "tools[].format.definition",  # told, but not enforced
    "tools[].local_shell",
    "tools[].namespace",
    "tools[].web_search",
}
IGNORED_NEXT = IGNORED | {"input[].phase", "input[].reasoning", "input[].web_search_call"}
