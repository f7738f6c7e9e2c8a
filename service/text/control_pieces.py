"""Keeps what users type apart from what the template writes.

A control piece ("</s>", "<|im_end|>") steers the model where a template writes it, and is plain
text where somebody typed it. Before rendering, the first character of each typed one is replaced by
a stand-in; afterwards the pieces still readable are the template's own. They get a secret prefix,
under which a second tokenizer knows the control pieces, and only under it; the stand-ins are taken
back. So templates may strip, cut and test contents as they like, and one pass encodes the whole
text. Not covered: a template that deletes text inside a content and so joins two halves of a piece.
Where there is no template (infilling), users' texts go to the second tokenizer alone.
"""

from __future__ import annotations

import itertools
import json
import re
import secrets
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer

from service.text.backend import fast_backend
from service.text.encoding import encode_text
from service.text.errors import InvalidMessagesError
from service.text.long_texts import TextPattern, characters_among
from service.text.piece_edges import PieceEdges

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

# Pieces in this form steer the model also where a checkpoint forgot to mark them special
# (DeepSeek's "<|EOT|>"). Others that aren't special ("<think>", "õ") are text to the tokenizer, so
# they stay.
_MARKER = re.compile(r"<[|｜].*[|｜]>", re.DOTALL)
# Private use: what no text should hold, and if it does, another one is taken.
_STAND_INS = range(0xF0000, 0xFFFFE)
# The argument by which templates have `tojson` write "\\udb80\\udc00" for a stand-in.
_ESCAPES = "ensure_ascii"


@dataclass(frozen=True, slots=True)
class Disguise:
    """Stand-ins for characters of control pieces, none of which the dialogue holds."""

    typed_piece: TextPattern
    edges: PieceEdges
    stand_ins: Mapping[int, str]
    originals: Mapping[str, str]  # by stand-ins, in each way in which the template may write them

    def put_on(self, text: str) -> str:
        """Make every control piece in the text unreadable as one."""
        hidden = self.typed_piece.sub(lambda found: found.translate(self.stand_ins), text)
        for place in self.edges.places(text):
            stand_in = hidden[place].translate(self.stand_ins)
            hidden = hidden[:place] + stand_in + hidden[place + 1 :]
        return hidden

    def take_off(self, text: str) -> str:
        """Give the text as it was typed."""
        for stand_in, first in self.originals.items():  # 0.3 s for 4 MB by `translate`
            text = text.replace(stand_in, first)
        return text


class ControlPieces:
    """One tokenizer's control pieces, and how to encode dialogues in which some may be typed."""

    def __init__(self, backend: Tokenizer, also: Iterable[str] = ()) -> None:
        """Find the control pieces; `also`: further ones, which the tokenizer takes for ordinary."""
        added = backend.get_added_tokens_decoder()
        self._ids = {
            token.content: token_id
            for token_id, token in added.items()
            if token.special or _MARKER.fullmatch(token.content)
        }
        ids = {piece: backend.token_to_id(piece) for piece in also}
        self._ids |= {piece: number for piece, number in ids.items() if number is not None}
        self._backend = backend
        # Longest first, as the tokenizer itself would choose.
        either = "|".join(re.escape(piece) for piece in sorted(self._ids, key=len, reverse=True))
        self._piece = re.compile(either or "(?!)")
        longest = max(map(len, self._ids), default=1)
        self._pattern = TextPattern(self._piece, longest)
        self._edges = PieceEdges(self._ids)
        # Each place where one begins, also inside another.
        beginning = re.compile(f"(?=(?:{either or '(?!)'}))(?s:.)")
        self._beginning = TextPattern(beginning, longest)
        self._secret = secrets.token_hex(8)
        names = {piece: self._secret + piece for piece in self._ids}
        self._guarded = Tokenizer.from_str(renamed(backend, names))

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerBase) -> ControlPieces:
        """Give those of a tokenizer, made when they are first asked for; from any thread."""
        with _lock:
            if tokenizer not in _known:
                _known[tokenizer] = ControlPieces(fast_backend(tokenizer))
            return _known[tokenizer]

    @property
    def ids(self) -> frozenset[int]:
        """Give the ids of all control pieces."""
        return frozenset(self._ids.values())

    def id_at(self, text: str) -> int | None:
        """Give the id of the control piece that the text begins with."""
        found = self._piece.match(text)
        return self._ids[found[0]] if found else None

    def disguise_for(self, texts: Sequence[str], template: str) -> Disguise | None:
        """Make what hides the control pieces typed in `texts`; None if there are none."""
        hidden = {text[place] for text in texts for place in self._edges.places(text)}
        if any(map(self._pattern.is_in, texts)):
            hidden |= {piece[0] for piece in self._ids}
        if not hidden:
            return None
        stand_ins = list(itertools.islice(_free_stand_ins(texts, template), len(hidden)))
        if len(stand_ins) < len(hidden):
            raise InvalidMessagesError(
                "the messages hold every private-use character of Unicode's plane 15; send fewer"
            )
        pairs = list(zip(sorted(hidden), stand_ins, strict=True))
        originals = {stand_in: first for first, stand_in in pairs}
        if _ESCAPES in template:
            originals |= {_escaped(stand_in): first for first, stand_in in pairs}
        return Disguise(
            typed_piece=self._beginning,
            edges=self._edges,
            stand_ins={ord(first): stand_in for first, stand_in in pairs},
            originals=originals,
        )

    def encode(
        self, text: str, disguise: Disguise | None, most_tokens: int | None = None
    ) -> list[int]:
        """Encode a rendered dialogue; its control pieces become ids, disguised ones plain text.

        By the second tokenizer also without a disguise: vocabularies may join pieces of text that
        does not hold them, as CodeLlama's "▁<PRE>" of " <PRE>".
        """
        marked = self._pattern.sub(lambda found: self._secret + found, text)
        text = disguise.take_off(marked) if disguise else marked
        return self.encode_typed(text, most_tokens)

    def encode_typed(self, text: str, most_tokens: int | None = None) -> list[int]:
        """Encode what somebody typed; no control piece comes of it, however it is spelt."""
        return encode_text(self._guarded, text, owner=self._backend, most_tokens=most_tokens)


# Made once a tokenizer: a second tokenizer is in it, which takes 0.1 to 0.3 s to make, 0.9 s for
# Qwen2's 152 000 pieces (2026-11). Whoever comes meanwhile waits: all of them need it.
_known: WeakKeyDictionary[PreTrainedTokenizerBase, ControlPieces] = WeakKeyDictionary()
_lock = threading.Lock()


def _free_stand_ins(texts: Sequence[str], template: str) -> Iterator[str]:
    """Give the characters that neither texts nor template hold."""
    taken = characters_among(_STAND_INS, (template, *texts))
    free = (chr(code) for code in _STAND_INS if chr(code) not in taken)
    if _ESCAPES not in template:
        return free
    return (one for one in free if not any(_escaped(one) in text for text in texts))


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1]


def renamed(backend: Tokenizer, names: Mapping[str, str]) -> str:
    """Return a tokenizer as JSON that knows pieces only by other names, under the same ids.

    names: by pieces; of those that are not among them nothing changes.
    """
    parts = json.loads(backend.to_str())
    for token in parts["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    parts["model"] = _rename_in_model(parts["model"], names)
    parts["post_processor"] = None  # names pieces too, and nothing is added here
    return json.dumps(parts)


def _rename_in_model(model: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Rename pieces in a model's vocabulary; forget merges that would make one from plain text."""
    renamed = dict(model)
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        renamed["vocab"] = {names.get(piece, piece): number for piece, number in vocab.items()}
    else:  # Unigram: [piece, score] by id
        renamed["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
    if model.get("unk_token") in names:
        renamed["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        renamed["merges"] = [p for p in pairs if not names.keys() & {p[0], p[1], p[0] + p[1]}]
    return renamed
