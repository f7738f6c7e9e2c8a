"""Leads an answer in JSON to its end before its tokens are used up.

Behind every token that may still come an end has to fit into what is left. So near the end each
kind of token is tried on a copy of the grammar's state, and what could not be ended is not allowed.
Trying takes some 0.2 ms a kind, and is done once for places of one grammar that are alike.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, TypeAlias

from service.worker.json_ending import MAX_END_TOKENS, JsonEnding, JsonPlace, samples_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llguidance import LLMatcher

    from engine.constraint import TokenMask

_MOST_SKIPPED = 8  # tokens before it is looked again, where no end was in reach
# Whose costs are kept, and of how many places of each: a place takes some 20 KB for 49 152 tokens.
_MAX_GRAMMARS, _MAX_PLACES = 16, 128
# By how many tokens an end takes behind them: tokens, as bits. None is there where some have no end
# behind them, without their bits.
_Costs: TypeAlias = "dict[int | None, int]"
# By what places of one grammar have in common that are alike.
KnownCosts: TypeAlias = "dict[tuple[object, ...], _Costs]"


class CostsOfGrammars:
    """What was found out of each grammar, for all who follow it; for several threads."""

    def __init__(self) -> None:
        self._by_grammar: OrderedDict[str, KnownCosts] = OrderedDict()  # used last comes last
        self._lock = threading.Lock()

    def of(self, grammar: str) -> KnownCosts:
        """Return what is known of one; who finds out more adds it there."""
        with self._lock:
            costs = self._by_grammar.setdefault(grammar, {})
            self._by_grammar.move_to_end(grammar)
            while len(self._by_grammar) > _MAX_GRAMMARS:
                self._by_grammar.popitem(last=False)
        return costs


class TimelyEnd:
    """Allows what an end still fits behind."""

    def __init__(
        self, ending: JsonEnding, max_tokens: int, known: KnownCosts | None = None
    ) -> None:
        """known: what others have found out who follow the same grammar."""
        self._ending = ending
        self._place = JsonPlace()
        self._num_left = max_tokens
        self._look_at = MAX_END_TOKENS  # left; nothing is tried before
        self._num_skipped = 1
        self._draft: list[int] = []  # that masks were asked for, without what was picked since
        self._narrowed: set[int] = set()  # where masks were narrowed, by what was left
        self._is_cut = False
        self._end: list[int] = []  # that was found last, without what was picked of it since
        self._known: KnownCosts = {} if known is None else known
        # In a string with nothing but text behind it: the mask, and what suffices for any of it.
        self._text: tuple[TokenMask, int] | None = None

    @property
    def was_cut(self) -> bool:
        """Whether something that might have been said was not allowed any more."""
        return self._is_cut or self._num_left in self._narrowed

    def begin(self, draft: Sequence[int]) -> None:
        """Forget what masks were asked for; the next are those behind each token of a draft."""
        self._draft = list(draft)
        self._narrowed.clear()

    def advance(self, token_id: int) -> None:
        """Take in the token that was picked."""
        self._is_cut = self.was_cut
        self._num_left -= 1
        if not (self._place.is_inside and self._ending.is_word(token_id)):
            self._text = None
        self._place = self._ending.place_after(self._place, [token_id])
        if self._end[:1] == [token_id]:
            del self._end[0]
        if self._draft[:1] == [token_id]:
            del self._draft[0]
        else:
            self._draft.clear()
            self._narrowed.clear()

    def narrowed(
        self, matcher: LLMatcher, mask: TokenMask, draft: Sequence[int], *, may_end: bool
    ) -> TokenMask:
        """Return what of a mask an end fits behind; all of it where there is no end in any case.

        matcher, mask: behind the draft. may_end: an end token may come, too.
        """
        left = self._num_left - len(draft)
        if not 0 < left <= self._look_at:
            return mask
        if not draft and self._text is not None and self._text[0] == mask and left > self._text[1]:
            return mask
        allowed = int.from_bytes(mask, "little")
        if allowed.bit_count() == 1 and not may_end:
            return mask
        place = self._ending.place_after(self._place, draft) if draft else self._place
        end = self._find_end(matcher, place, left, draft)
        if end is None:
            return mask
        costs = self._costs(matcher, mask, place, end, is_draft=bool(draft))
        kept = 1 << end[0] if end else 0  # none where it may end here
        for cost, bits in costs.items():
            if cost is not None and cost < left:
                kept |= bits
        if kept == allowed or not (kept or may_end):
            return mask
        kept_mask = kept.to_bytes(len(mask), "little")
        if self._ending.is_loss((allowed & ~kept).to_bytes(len(mask), "little"), kept_mask):
            self._narrowed.add(left)
        return kept_mask

    def _find_end(
        self, matcher: LLMatcher, place: JsonPlace, left: int, draft: Sequence[int]
    ) -> list[int] | None:
        """Return an end that fits: one from here, else what is left of the one before."""
        end = self._ending.find(matcher, place, left, self._end)
        if draft:
            return end
        if end is not None:
            self._end = list(end)
            self._num_skipped = 1
        else:
            self._look_at = left - self._num_skipped
            self._num_skipped = min(_MOST_SKIPPED, 2 * self._num_skipped)
        return end

    def _costs(
        self,
        matcher: LLMatcher,
        mask: TokenMask,
        place: JsonPlace,
        end: Sequence[int],
        *,
        is_draft: bool,
    ) -> _Costs:
        """Return what ends take behind the tokens of a mask, by kinds.

        Places of one property that allow the same and end the same are taken to be alike.
        """
        is_name = self._ending.is_in_name(end)
        begun = place.string if is_name else b""  # what may follow depends on the name
        key = hash(mask), tuple(end), place.name, begun, place.is_inside, place.is_escaped
        costs = self._known.get(key)
        if costs is None:
            costs = self._tried(matcher, mask, place, end, is_name=is_name)
            if len(self._known) >= _MAX_PLACES:
                self._known.clear()
            self._known[key] = costs
        if not is_draft and place.is_inside and not is_name:
            most = max((MAX_END_TOKENS if cost is None else cost for cost in costs), default=0)
            self._text = mask, most
        return costs

    def _tried(
        self,
        matcher: LLMatcher,
        mask: TokenMask,
        place: JsonPlace,
        end: Sequence[int],
        *,
        is_name: bool,
    ) -> _Costs:
        costs: _Costs = {}
        most = MAX_END_TOKENS  # whatever is left here: others may have more when they get here
        num_free = 1 if self._ending.is_free(mask, place) else None
        for tokens in self._ending.kinds(mask, place, is_name=is_name).values():
            tried, are_all = samples_of(tokens, num_free)
            found = [
                self._ending.count_tokens_behind(token_id, matcher, place, most, end)
                for token_id in tried
            ]
            if are_all or None in found:
                for i, cost in zip(tried, found, strict=True):
                    costs[cost] = costs.get(cost, 0) | (cost is not None) << i
            else:
                bits = int.from_bytes(tokens, "little")
                most_found = max(cost for cost in found if cost is not None)
                costs[most_found] = costs.get(most_found, 0) | bits
        return costs
