"""How large a grammar may be, and how much work one step's mask.

Whoever sends one could otherwise have the server work for minutes: a pattern of a few characters
can take millions of states, a schema that names itself twice grows as a power of two.
"""

from __future__ import annotations

from llguidance import LLParserLimits

MAX_SOURCE_BYTES = 128 * 1024  # of a schema, pattern or grammar as it was sent
MAX_PATTERN_BYTES = 16 * 1024
MAX_DEPTH = 64  # objects and lists within each other in a schema
MAX_SCHEMA_NODES = 20_000  # objects, lists and values of a schema
MAX_PROPERTIES = 1_000  # of one object; what they cost grows as their square
MAX_CHOICES = 5_000  # of one choice, or one schema's `enum` values together
# Reading takes at most some 0.2 s, a mask at most some 10 ms, by the library's own measure of work.
PARSER_LIMITS = LLParserLimits(
    max_items_in_row=2_000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    verbose_errors=False,  # they may quote much of a grammar
)
