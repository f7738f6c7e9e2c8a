"""Follows grammars token by token for an engine, by llguidance.

An answer in JSON, or of nothing but calls, is led to its end before its tokens are used up, so that
it can be read (see `timely_end`); that is told as an end by length.

Reading a grammar takes from 0.1 ms to a fifth of a second, a mask some 10 µs (49 152 tokens, two
cores of an AVX-512 server CPU, 2026-11).
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llguidance import LLMatcher, LLTokenizer

from engine.constraint import ALLOWS_NOTHING
from engine.errors import InvalidConstraintError
from service.grammars.limits import PARSER_LIMITS, VOCABULARY_PARTS
from service.grammars.refusals import in_words
from service.tools.turn_grammar import ONLY_CALLS
from service.worker.grammar_pieces import GrammarPieces
from service.worker.json_ending import JsonEnding
from service.worker.kept_grammars import KeptGrammars
from service.worker.timely_end import CostsOfGrammars, TimelyEnd

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from transformers import PreTrainedTokenizerFast

    from engine.constraint import TokenMask

# Of a text that is demanded, to be spelt ahead: all of it is spelt for that, each time, with
# Python's lock held. 4 KB take 1 ms; a pattern of 20 characters demands 500 KB, which take 300.
MAX_FORCED_BYTES = 4_096


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    tokens: LLTokenizer
    pieces: GrammarPieces
    ending: JsonEnding


class GrammarFactory:
    """Reads grammars for one tokenizer; each is read once, and followed by many."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._vocabulary: _Vocabulary | None = None  # takes a second, which few engines need
        self._kept = KeptGrammars()
        self._costs = CostsOfGrammars()
        self._lock = threading.Lock()  # of the vocabulary: grammars do not wait for each other

    def compile(
        self, grammar: str, end_token_ids: Collection[int], max_tokens: int | None
    ) -> GrammarConstraint:
        """Raise InvalidConstraintError where the text is no grammar, or one too large.

        max_tokens: None where JSON is not led to its end.
        """
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = _vocabulary_of(self._tokenizer)
        vocabulary = self._vocabulary
        grammar = vocabulary.pieces.by_id(grammar)
        matcher = self._kept.copy_of(grammar, lambda: _read(vocabulary.tokens, grammar))
        end = (
            TimelyEnd(vocabulary.ending, max_tokens, self._costs.of(grammar))
            if max_tokens is not None and _is_json(grammar)
            else None
        )
        # The library allows its own end tokens wherever a text may end.
        others = set(vocabulary.tokens.eos_tokens) - set(end_token_ids)
        return GrammarConstraint(
            matcher, end_token_ids, end, others, on_failure=lambda: self._kept.drop(grammar)
        )


class GrammarConstraint:
    """What one sequence may still say."""

    def __init__(
        self,
        matcher: LLMatcher,
        end_token_ids: Collection[int],
        end: TimelyEnd | None = None,
        banned_token_ids: Collection[int] = (),
        on_failure: Callable[[], None] | None = None,
    ) -> None:
        """end_token_ids: what ends the sequence; may come wherever the grammar may end.

        banned_token_ids: what never may. on_failure: called once the grammar cannot be followed on.
        """
        self._matcher = matcher
        self._ends = tuple(end_token_ids)
        self._banned = tuple(banned_token_ids)
        self._end = end
        self._on_failure = on_failure
        self._failure: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow."""
        return self._failure is None and self._matcher.is_stopped()

    @property
    def was_cut(self) -> bool:
        """Whether it was led to its end for want of tokens."""
        return self._end is not None and self._end.was_cut

    @property
    def failure(self) -> str | None:
        """Why the grammar can be followed no further."""
        return self._failure

    def next_masks(self, draft: Sequence[int]) -> list[TokenMask]:
        """Return the tokens that may come next, and those that may after each of a draft's."""
        if self._end is not None and self._failure is None:
            self._end.begin(draft)
        masks = [self._mask(())]
        for number, token_id in enumerate(draft, start=1):
            if self._failure is not None or not self._matcher.consume_token(token_id):
                break
            masks.append(self._mask(draft[:number]))
        if len(masks) > 1 and self._failure is None:
            self._matcher.rollback(len(masks) - 1)
        return masks + [ALLOWS_NOTHING] * (1 + len(draft) - len(masks))

    def num_allowed(self, draft: Sequence[int]) -> int:
        """Count the tokens of a draft that could come next, before one could not."""
        return self._matcher.validate_tokens(list(draft)) if draft else 0

    def forced(self, most: int) -> Sequence[int]:
        """Return up to so many tokens that the grammar leaves no choice about.

        None of them where they are part of a very long text.
        """
        if len(self._matcher.compute_ff_bytes()) > MAX_FORCED_BYTES:
            return ()
        return self._matcher.compute_ff_tokens()[:most]

    def advance(self, token_id: int) -> None:
        """Take in the token that was picked."""
        if self._end is not None:
            self._end.advance(token_id)
        if self._failure is None and not self._matcher.consume_token(token_id):
            self._note_failure()

    def _mask(self, draft: Sequence[int]) -> TokenMask:
        if self._failure is not None:
            return ALLOWS_NOTHING
        mask: bytes = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            self._note_failure()
            return ALLOWS_NOTHING
        is_accepting = self._matcher.is_accepting()
        if is_accepting and self._banned:
            mask = _with_tokens(mask, self._banned, are_allowed=False)
        if self._end is not None:
            may_end = is_accepting and bool(self._ends)
            mask = self._end.narrowed(self._matcher, mask, draft, may_end=may_end)
        return _with_tokens(mask, self._ends) if is_accepting else mask

    def _note_failure(self) -> None:
        self._failure = f"the grammar cannot be followed on: {_refusal(self._matcher)}"
        if self._on_failure is not None:
            self._on_failure()


def _read(tokens: LLTokenizer, grammar: str) -> LLMatcher:
    matcher = LLMatcher(tokens, grammar, limits=PARSER_LIMITS, log_level=0)
    if not matcher.is_error():
        matcher.compute_bitmask()  # the first takes longest, and is kept
    if matcher.is_error():
        raise InvalidConstraintError(_refusal(matcher))
    return matcher


def _is_json(grammar: str) -> bool:
    """Whether what it allows is JSON, and nothing else but fixed texts around it."""
    parts = json.loads(grammar).get("grammars", []) if grammar.startswith("{") else []
    first = parts[0] if parts else {}
    return first.get("name") == ONLY_CALLS or (
        len(parts) == 1 and first.get("json_schema") is not None
    )


def _vocabulary_of(tokenizer: PreTrainedTokenizerFast) -> _Vocabulary:
    pieces = GrammarPieces(tokenizer.backend_tokenizer)
    end = tokenizer.eos_token_id
    if end is None:  # else the library would take id 0 for one
        end = next(iter(pieces.ids.values()), None)
    tokens = LLTokenizer(
        pieces.hidden_from_texts(),
        eos_token=None if end is None else int(end),
        slices=list(VOCABULARY_PARTS),
    )
    return _Vocabulary(tokens, pieces, JsonEnding(tokens))


def _with_tokens(
    mask: TokenMask, token_ids: Sequence[int], *, are_allowed: bool = True
) -> TokenMask:
    """Allow further tokens, or none of them."""
    changed = bytearray(mask)
    for token_id in token_ids:
        if token_id >> 3 < len(changed):
            changed[token_id >> 3] |= 1 << (token_id & 7)
            if not are_allowed:
                changed[token_id >> 3] ^= 1 << (token_id & 7)
    return bytes(changed)


def _refusal(matcher: LLMatcher) -> str:
    return in_words(matcher.get_error())
