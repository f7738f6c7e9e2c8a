"""Rebuilds a tokenizer from a GGUF file's metadata, as the model's own tokenizer.json would be.

Two kinds are read: `llama` (SentencePiece: pieces with scores, bytes as a last resort) and `gpt2`
(byte-level merges), the latter with the ways of cutting words that `tokenizer.ggml.pre` names. An
unknown way is refused: every number and every indent would come out as other tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

from loaders.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

log = structlog.get_logger(__name__)

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_SPECIAL_TOKENS = {
    "bos_token": "bos",
    "eos_token": "eos",
    "pad_token": "padding",
    "unk_token": "unknown",
}
_SPACE = "▁"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}"
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")
# How words are cut before pieces are merged; each pattern cuts what the one before has left whole.
_CUTS: dict[str, tuple[str, ...]] = {
    "default": _DEFAULT,
    "gpt-2": (_GPT2,),
    "llama-bpe": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "deepseek-coder": _DEEPSEEK_CODER,
    "starcoder": (r"\p{N}", _GPT2),
    "smollm": (r"\p{N}", _GPT2),
    "refact": (r"\p{N}", _GPT2),
    "codeshell": (r"\p{N}", _GPT2),
}
_SAME_CUTS = {
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "deepseek-r1-qwen": "qwen2",
    "phi-2": "gpt-2",
    "olmo": "gpt-2",
}
# Files made before May 2024 do not say how words are cut; with these the architecture decides.
_CUTS_OF_ARCHITECTURE = {"qwen2": "qwen2", "starcoder2": "starcoder"}
# CodeLlama 70B's end of a turn takes the spaces around it, which GGUF cannot say.
_STRIPS_SPACES = frozenset({"<step>"})
# Pieces that end or begin a turn, which some converters wrote as if users had defined them.
_CONTROLS_ANYWAY = frozenset({"<step>", "<start_of_turn>", "<end_of_turn>"})


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """A file's vocabulary, checked."""

    pieces: tuple[str, ...]
    kinds: tuple[int, ...]
    scores: tuple[float, ...]  # empty where pieces have none
    merges: tuple[str, ...]
    settings: Mapping[str, Any]  # all metadata

    @property
    def ids(self) -> dict[str, int]:
        return {piece: number for number, piece in enumerate(self.pieces)}

    def get(self, name: str, default: Any = None) -> Any:
        return self.settings.get(f"tokenizer.ggml.{name}", default)

    def special_id(self, name: str) -> int | None:
        number = self.get(f"{name}_token_id")
        return number if type(number) is int and 0 <= number < len(self.pieces) else None


def make_tokenizer(
    metadata: Mapping[str, Any], config: Mapping[str, Any]
) -> PreTrainedTokenizerFast:
    """Build the tokenizer with its special pieces and chat template. Raises CheckpointError."""
    vocabulary = _read_vocabulary(metadata)
    kind = vocabulary.get("model")
    if kind not in _KINDS:
        raise CheckpointError(
            f"the GGUF file's tokenizer is of the kind {str(kind)[:40]!r}; {' and '.join(_KINDS)}"
            " are read"
        )
    tokenizer = _KINDS[kind](vocabulary)
    _add_special_pieces(tokenizer, vocabulary)
    _add_ends(tokenizer, vocabulary)
    special = {
        role: vocabulary.pieces[number]
        for role, name in _SPECIAL_TOKENS.items()
        if (number := vocabulary.special_id(name)) is not None
    }
    made = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        **special,
        model_max_length=config["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    )
    template = metadata.get("tokenizer.chat_template")
    made.chat_template = template if isinstance(template, str) else None
    return made


def _read_vocabulary(metadata: Mapping[str, Any]) -> _Vocabulary:
    pieces = _array(metadata, "tokens", str)
    if not pieces:
        raise CheckpointError("the GGUF file holds no tokenizer (tokenizer.ggml.tokens)")
    kinds = _array(metadata, "token_type", int) or (_NORMAL,) * len(pieces)
    scores = _array(metadata, "scores", float)
    for name, values in (("token_type", kinds), ("scores", scores)):
        if values and len(values) != len(pieces):
            raise CheckpointError(
                f"the GGUF file's tokenizer has {len(pieces)} pieces and {len(values)} values of"
                f" {name}"
            )
    return _Vocabulary(pieces, kinds, scores, _array(metadata, "merges", str), metadata)


def _array(metadata: Mapping[str, Any], name: str, kind: type) -> tuple[Any, ...]:
    values = metadata.get(f"tokenizer.ggml.{name}", ())
    if not isinstance(values, tuple) or not all(type(value) is kind for value in values):
        raise CheckpointError(
            f"the GGUF metadata's tokenizer.ggml.{name} is no list of {kind.__name__} values"
        )
    return values


def _byte_level(vocabulary: _Vocabulary) -> Tokenizer:
    cuts = _resolve_cuts(vocabulary)
    ids = vocabulary.ids
    tokenizer = Tokenizer(
        models.BPE(vocab=ids, merges=_pairs(vocabulary, ids), ignore_merges=cuts == "llama-bpe")
    )
    if cuts == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(cut), "isolated") for cut in _CUTS[cuts]),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pairs(vocabulary: _Vocabulary, ids: Mapping[str, int]) -> list[tuple[str, str]]:
    pairs = []
    for merge in vocabulary.merges:
        left, _, right = merge.partition(" ")
        if not (left in ids and right in ids and left + right in ids):
            raise CheckpointError(
                f"the GGUF file's tokenizer merges {merge[:60]!r}, which are not two of its pieces"
                " that make a third"
            )
        pairs.append((left, right))
    return pairs


def _resolve_cuts(vocabulary: _Vocabulary) -> str:
    """Name the way in which words are cut."""
    named = vocabulary.get("pre")
    if named is None:
        architecture = vocabulary.settings.get("general.architecture")
        cuts = _CUTS_OF_ARCHITECTURE.get(str(architecture), "default")
        log.warning("tokenizer_cuts_not_named", architecture=architecture, taken=cuts)
        return cuts
    cuts = _SAME_CUTS.get(str(named), str(named))
    if cuts not in _CUTS:
        raise CheckpointError(
            f"the GGUF file's tokenizer cuts words as {str(named)[:40]!r}; read are"
            f" {', '.join(sorted({*_CUTS, *_SAME_CUTS}))}"
        )
    return cuts


def _sentencepiece(vocabulary: _Vocabulary) -> Tokenizer:
    if not vocabulary.scores:
        raise CheckpointError("the GGUF file's tokenizer has no scores (tokenizer.ggml.scores)")
    unknown = vocabulary.special_id("unknown")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary.ids,
            merges=_merges_by_score(vocabulary),
            unk_token=vocabulary.pieces[0 if unknown is None else unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    has_prefix = vocabulary.get("add_space_prefix", True)
    # Before every stretch of text between special pieces, as in tokenizer.json of Llama 2.
    prepend = [normalizers.Prepend(_SPACE)] if has_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", _SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if has_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges_by_score(vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """List every way to make a piece of two others, the best piece first.

    SentencePiece joins whatever makes the piece of the highest score; expressed as merges, that is
    their order. Longer first halves come first, as in the tokenizer.json that Transformers writes.
    """
    ordinary = {
        piece: score
        for piece, kind, score in zip(
            vocabulary.pieces, vocabulary.kinds, vocabulary.scores, strict=True
        )
        if kind == _NORMAL
    }
    found = [
        (-score, -cut, piece[:cut], piece[cut:])
        for piece, score in ordinary.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ordinary and piece[cut:] in ordinary
    ]
    found.sort(key=lambda merge: merge[:2])
    return [(left, right) for _, _, left, right in found]


def _add_special_pieces(tokenizer: Tokenizer, vocabulary: _Vocabulary) -> None:
    """Have control pieces and user-defined ones found in text as a whole."""
    is_phi3 = vocabulary.settings.get("general.architecture") == "phi3"
    unknown = vocabulary.special_id("unknown")
    added = []
    for number, (piece, kind) in enumerate(zip(vocabulary.pieces, vocabulary.kinds, strict=True)):
        if kind not in (_CONTROL, _USER_DEFINED) and number != unknown:
            continue
        # Converters fill a vocabulary up with these; typed, they are text.
        if piece in ("", f"[PAD{number}]"):
            continue
        takes_spaces = piece in _STRIPS_SPACES
        added.append(
            AddedToken(
                piece,
                special=kind != _USER_DEFINED or piece in _CONTROLS_ANYWAY,
                normalized=False,
                lstrip=takes_spaces,
                # Phi-3's turns begin with a line break that its own tokenizer takes away.
                rstrip=takes_spaces or (is_phi3 and _is_turn_mark(piece)),
            )
        )
    tokenizer.add_special_tokens([token for token in added if token.special])
    tokenizer.add_tokens([token for token in added if not token.special])


def _is_turn_mark(piece: str) -> bool:
    return re.fullmatch(r"<\|(?!endoftext)\w+\|>", piece) is not None


def _add_ends(tokenizer: Tokenizer, vocabulary: _Vocabulary) -> None:
    """Put the beginning of a text before every text, and the end behind it where that is asked."""
    is_llama = vocabulary.get("model") == "llama" or vocabulary.get("pre") == "llama-bpe"
    before = _end(vocabulary, "bos") if vocabulary.get("add_bos_token", is_llama) else None
    after = _end(vocabulary, "eos") if vocabulary.get("add_eos_token", False) else None
    if before is None and after is None:
        return
    first, last = [[end[0]] if end else [] for end in (before, after)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[*first, "$A", *last, *first, "$B", *last],
        special_tokens=[end for end in (before, after) if end is not None],
    )


def _end(vocabulary: _Vocabulary, name: str) -> tuple[str, int] | None:
    number = vocabulary.special_id(name)
    return None if number is None else (vocabulary.pieces[number], number)


_KINDS = {"llama": _sentencepiece, "gpt2": _byte_level}
