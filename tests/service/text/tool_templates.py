"""Chat templates that know tools, each in the manner of a family: small, and written for tests."""

from __future__ import annotations

# As Qwen's and Hermes': tools in the system turn, calls and results between tags, any id.
TAGS = (
    "{%- if tools %}{{ '<|im_start|>system\n' }}"
    "{%- if messages[0].role == 'system' %}{{ messages[0].content + '\n' }}{% endif %}"
    "{%- for tool in tools %}{{ tool | tojson + '\n' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{%- elif messages[0].role == 'system' %}"
    "{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}"
    "{%- for m in messages %}{% if m.role == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}"
    "{%- elif m.role != 'system' %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{%- for call in m.tool_calls %}"
    """{{ '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}"""
    "{{ call.function.arguments | tojson + '}\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# As Mistral's: turns alternate, no system turn of its own, ids of nine letters, text escaped by
# nobody in results.
BRACKETS = (
    "{%- set system = messages[0].content if messages[0].role == 'system' else none %}"
    "{%- set turns = messages[1:] if system is not none else messages %}"
    "{%- for m in turns | rejectattr('role', 'equalto', 'tool')"
    " | selectattr('tool_calls', 'undefined') %}"
    "{%- if (m.role == 'user') != (loop.index0 is even) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
    "{{- bos_token }}{%- for m in turns %}{%- if m.role == 'user' %}"
    "{%- if tools and loop.last %}{{ '[AVAILABLE_TOOLS] ' + tools | tojson }}{% endif %}"
    "{{- '[INST] ' + (system + '\n\n' if loop.first and system else '') + m.content + '[/INST]' }}"
    "{%- elif m.tool_calls is defined %}{{ '[TOOL_CALLS] [' }}{% for call in m.tool_calls %}"
    "{%- if call.id | length != 9 %}{{ raise_exception('ids must have 9 letters') }}{% endif %}"
    """{{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}"""
    "{{- ', ' if not loop.last }}{% endfor %}{{ ']' + eos_token }}"
    "{%- elif m.role == 'tool' %}"
    "{%- if m.tool_call_id | length != 9 %}{{ raise_exception('ids must have 9') }}{% endif %}"
    """{{- '[TOOL_RESULTS] {"content": ' + m.content }}"""
    """{{- ', "call_id": "' + m.tool_call_id + '"}' }}"""
    "{{- '[/TOOL_RESULTS]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)

# As the older DeepSeeks': arguments are added as text, and a content that is not null is a turn.
TEXTS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ 'out:' + m.content + '\n' }}"
    "{%- elif m.role == 'assistant' %}"
    "{%- for call in m.tool_calls or [] %}"
    "{{ 'call:' + call.function.name + ' ' + call.function.arguments + '\n' }}{% endfor %}"
    "{%- if m.content is not none %}{{ 'assistant:' + m.content + '</s>' }}{% endif %}"
    "{%- else %}{{ m.role + ':' + m.content + '\n' }}{% endif %}{% endfor %}"
    "{%- if add_generation_prompt %}{{ 'assistant:<think>\n' }}{% endif %}"
)

# As Qwen's coders: arguments one by one, and names right between punctuation.
MARKUP = (
    "{%- macro fields(schema) %}{% for key, value in schema | items %}"
    "{{ '<' + key + '>' }}{{ fields(value) if value is mapping else value }}{{ '</' + key + '>' }}"
    "{%- endfor %}{% endmacro %}"
    "{%- for tool in tools or [] %}{{ '<function=' + tool.function.name + '>' }}"
    "{{- tool.function.description + fields(tool.function.parameters) }}{% endfor %}"
    "{%- for m in messages %}{% if m.role == 'tool' %}"
    "{{ '<result of=' + m.name + ' id=' + m.tool_call_id + '>' + m.content }}"
    "{%- else %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{%- for call in m.tool_calls %}{{ '<function=' + call.function.name + '>' }}"
    "{%- for key, value in call.function.arguments | items %}"
    "{{- '<parameter=' + key + '>' }}{{ value if value is string else value | tojson }}"
    "{%- endfor %}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# As Llama 3.1's: one call a turn, and no content beside it.
ONE_CALL = (
    "{{ bos_token }}{% for tool in tools or [] %}{{ tool | tojson(indent=4) }}{% endfor %}"
    "{%- for m in messages %}{% if 'tool_calls' in m %}{% if m.tool_calls | length > 1 %}"
    "{{ raise_exception('one call at once') }}{% endif %}"
    """{{ '{"name": "' + m.tool_calls[0].function.name + '", "parameters": ' }}"""
    "{{ m.tool_calls[0].function.arguments | tojson + '}</s>' }}"
    "{%- elif m.role == 'tool' %}{{ {'output': m.content} | tojson + '</s>' }}"
    "{%- else %}{{ m.role + ':' + m.content + '</s>' }}{% endif %}{% endfor %}"
    "{%- if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)

ALL = {
    "tags": TAGS,
    "brackets": BRACKETS,
    "texts": TEXTS,
    "markup": MARKUP,
    "one_call": ONE_CALL,
}
