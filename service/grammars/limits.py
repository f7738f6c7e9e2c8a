"""How large a grammar may be, and how much work one step's mask.

Whoever sends one could otherwise have the server work for minutes: a pattern of a few characters
can take millions of states, a schema that names itself twice grows as a power of two.
"""

from __future__ import annotations

from llguidance import LLParserLimits, LLTokenizer

MAX_SOURCE_BYTES = 128 * 1024  # of a schema, pattern or grammar as it was sent
MAX_PATTERN_BYTES = 16 * 1024
MAX_DEPTH = 64  # objects and lists within each other in a schema
MAX_SCHEMA_NODES = 20_000  # objects, lists and values of a schema
MAX_PROPERTIES = 1_000  # of one object; what they cost grows as their square
MAX_CHOICES = 5_000  # of one choice, or one schema's `enum` values together
# Parts of the vocabulary that a mask takes in whole where all that is in them may come: words, as
# most classes of characters allow them, and what strings in JSON hold. A mask of such a class took
# 0.33 ms, and takes 0.07.
VOCABULARY_PARTS = ("[a-z ]{1,12}", "[a-zA-Z0-9 ]{1,12}", *LLTokenizer.json_slices())
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
