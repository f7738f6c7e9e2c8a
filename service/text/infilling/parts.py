"""Encodes what users typed around a gap: never into a control piece, with or without a space mark.

SentencePiece vocabularies mark a space before every text ("▁def"). A suffix, which goes on in the
midst of a line, must get none: it is encoded behind a character that joins nothing, whose ids are
dropped, as Meta's own code does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.text.control_pieces import ControlPieces
from service.text.encoding import require_unicode
from service.text.errors import InfillingNotSupportedError, TokenizerFailedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenizers import Tokenizer

_SPACE = "▁"
# The first is what CodeLlama and Codestral were trained with.
_GUARDS = "☺☻☹"


class PartEncoder:
    """Encodes parts of prompts for one tokenizer; may be used from several threads."""

    def __init__(self, backend: Tokenizer, pieces: Iterable[str]) -> None:
        """Prepare; raises InfillingNotSupportedError where the tokenizer's ways are not known.

        pieces: the family's, which are control pieces whatever the tokenizer takes them for.
        """
        self._pieces = ControlPieces(backend, also=pieces)
        self._guard = self._find_guard(backend)
        self._guard_ids = self._pieces.encode_typed(self._guard)

    def begin(self, text: str) -> list[int]:
        """Encode as the beginning of a text: with the space mark, where the tokenizer adds one.

        Raises InvalidPromptError, TokenizerFailedError.
        """
        require_unicode(text)
        return self._pieces.encode_typed(text) if text else []

    def go_on(self, text: str) -> list[int]:
        """Encode as text that goes on in the midst of a line: no space mark is added.

        Raises InvalidPromptError, TokenizerFailedError.
        """
        require_unicode(text)
        if not text:
            return []
        ids = self._pieces.encode_typed(self._guard + text)
        start = len(self._guard_ids)
        if ids[:start] != self._guard_ids:
            raise TokenizerFailedError(
                f"the model's tokenizer joins {self._guard!r} with this text, though it has no such"
                " piece; send another text"
            )
        return ids[start:]

    def _find_guard(self, backend: Tokenizer) -> str:
        """Choose a character of which no piece makes more; none where no mark is added.

        As no piece holds it together with what follows, nothing is joined across it, and the ids
        behind it are those of the text alone.
        """
        first = backend.id_to_token(self._pieces.encode_typed("a")[0]) or ""
        if first == "a":
            return ""
        if not first.startswith(_SPACE):
            raise InfillingNotSupportedError(
                f"the tokenizer begins texts with {first!r}, expected {_SPACE!r} or nothing, so the"
                " text behind a gap cannot be encoded; use /v1/completions without a suffix"
            )
        vocabulary = backend.get_vocab()
        for guard in _GUARDS:
            with_guard = {piece for piece in vocabulary if guard in piece}
            if with_guard <= {guard, _SPACE + guard} and self._is_known(backend, guard):
                return guard
        raise InfillingNotSupportedError(
            f"the tokenizer has pieces that join each of {', '.join(_GUARDS)} with other text, so"
            " text behind a gap cannot be encoded; use /v1/completions without a suffix"
        )

    def _is_known(self, backend: Tokenizer, guard: str) -> bool:
        """Whether it has a piece or bytes; what has neither may be joined with its neighbours."""
        pieces = [backend.id_to_token(n) or guard for n in self._pieces.encode_typed(guard)]
        rest = [piece.removeprefix(_SPACE) for piece in pieces]
        return all(piece in ("", guard) or piece.startswith("<0x") for piece in rest)
