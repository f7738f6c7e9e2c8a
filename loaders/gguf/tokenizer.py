"""Rebuilds a tokenizer from a GGUF file's metadata, as the model's own tokenizer.json would be.

Two kinds are read: `llama` (SentencePiece: pieces with scores, bytes as a last resort) and `gpt2`
(byte-level merges), the latter with the ways of cutting words that `tokenizer.ggml.pre` names. An
unknown way is refused: every number and every indent would come out as other tokens.
"""

from __future__ import annotations

import re
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

from loaders.checkpoint.sentencepiece_tokenizer import merges_by_score
from loaders.errors import CheckpointError
from loaders.gguf.vocabulary import (
    CONTROL,
    NORMAL,
    SPACE,
    USER_DEFINED,
    Vocabulary,
    check_byte_pieces,
    read_vocabulary,
    with_space_marks,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

log = structlog.get_logger(__name__)

_SPECIAL_TOKENS = {
    "bos_token": "bos",
    "eos_token": "eos",
    "pad_token": "padding",
    "unk_token": "unknown",
}
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
# They become one expression: 5 000 take 0.2 s, 100 000 minutes (2026-11, two cores). Gemma has 30.
_MAX_PIECES_WITH_SPACES = 5_000
_MAX_TEMPLATE_CHARACTERS = 1_000_000
# CodeLlama 70B's end of a turn takes the spaces around it, which GGUF cannot say.
_STRIPS_SPACES = frozenset({"<step>"})
# Pieces that end or begin a turn, which some converters wrote as if users had defined them.
_CONTROLS_ANYWAY = frozenset({"<step>", "<start_of_turn>", "<end_of_turn>"})


def make_tokenizer(
    metadata: Mapping[str, Any], config: Mapping[str, Any]
) -> PreTrainedTokenizerFast:
    """Build the tokenizer with its special pieces and chat template. Raises CheckpointError.

    config: as config.json would say it; without a `vocab_size` every piece is taken.
    """
    vocabulary = read_vocabulary(metadata, config.get("vocab_size"))
    kind = vocabulary.get("model")
    if kind not in _KINDS:
        raise CheckpointError(
            f"the GGUF file's tokenizer is of the kind {str(kind)[:40]!r}; {' and '.join(_KINDS)}"
            " are read"
        )
    if vocabulary.is_sentencepiece:
        vocabulary = with_space_marks(vocabulary)
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
    made.chat_template = _chat_template(metadata)
    return made


def _chat_template(metadata: Mapping[str, Any]) -> str | None:
    template = metadata.get("tokenizer.chat_template")
    if not isinstance(template, str):
        return None
    if len(template) > _MAX_TEMPLATE_CHARACTERS:
        raise CheckpointError(
            f"the GGUF file's tokenizer.chat_template has {len(template)} characters; at most"
            f" {_MAX_TEMPLATE_CHARACTERS} are read"
        )
    return template


def _byte_level(vocabulary: Vocabulary) -> Tokenizer:
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


def _pairs(vocabulary: Vocabulary, ids: Mapping[str, int]) -> list[tuple[str, str]]:
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


def _resolve_cuts(vocabulary: Vocabulary) -> str:
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


def _sentencepiece(vocabulary: Vocabulary) -> Tokenizer:
    if not vocabulary.scores:
        raise CheckpointError("the GGUF file's tokenizer has no scores (tokenizer.ggml.scores)")
    check_byte_pieces(vocabulary)
    unknown = vocabulary.special_id("unknown")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary.ids,
            merges=merges_by_score(_ordinary_scores(vocabulary)),
            unk_token=vocabulary.pieces[0 if unknown is None else unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    has_prefix = vocabulary.flag("add_space_prefix", default=True)
    prepend = [_space_prefix(vocabulary)] if has_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if has_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _space_prefix(vocabulary: Vocabulary) -> normalizers.Normalizer:
    """Mark a space before every stretch of text between special pieces, as Llama 2's own does.

    User-defined pieces with spaces are looked for in text that has its marks. As the pieces' own
    texts go this way, too, they must get none in front.
    """
    pieces = sorted(set(_pieces_with_spaces(vocabulary)))
    if not pieces:
        return normalizers.Prepend(SPACE)
    alone = "|".join(re.escape(piece).replace(SPACE, f"[ {SPACE}]") for piece in pieces)
    return normalizers.Replace(Regex(rf"\A(?!(?:{alone})\z)"), SPACE)


def _pieces_with_spaces(vocabulary: Vocabulary) -> list[str]:
    """List the user-defined pieces that hold spaces; marks of infilling begin with one for show."""
    found = [
        piece
        for piece, kind in zip(vocabulary.pieces, vocabulary.kinds, strict=True)
        if kind == USER_DEFINED and SPACE in piece and not piece.startswith(f"{SPACE}<")
    ]
    if len(found) > _MAX_PIECES_WITH_SPACES:
        raise CheckpointError(
            f"the GGUF file's tokenizer has {len(found)} user-defined pieces with spaces; at most"
            f" {_MAX_PIECES_WITH_SPACES} are read"
        )
    return found


def _ordinary_scores(vocabulary: Vocabulary) -> dict[str, float]:
    """Return the score of each piece that is made of others; special ones are found as a whole."""
    scored = zip(vocabulary.pieces, vocabulary.kinds, vocabulary.scores, strict=True)
    return {piece: score for piece, kind, score in scored if kind == NORMAL}


def _add_special_pieces(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Have control pieces and user-defined ones found in text as a whole."""
    is_phi3 = vocabulary.settings.get("general.architecture") == "phi3"
    unknown = vocabulary.special_id("unknown")
    with_spaces = set(_pieces_with_spaces(vocabulary)) if vocabulary.is_sentencepiece else set()
    added = []
    for number, (piece, kind) in enumerate(zip(vocabulary.pieces, vocabulary.kinds, strict=True)):
        if kind not in (CONTROL, USER_DEFINED) and number != unknown:
            continue
        # Converters fill a vocabulary up with these; typed, they are text.
        if piece in ("", f"[PAD{number}]"):
            continue
        takes_spaces = piece in _STRIPS_SPACES
        added.append(
            AddedToken(
                piece,
                special=kind != USER_DEFINED or piece in _CONTROLS_ANYWAY,
                normalized=piece in with_spaces,
                lstrip=takes_spaces,
                # Phi-3's turns begin with a line break that its own tokenizer takes away.
                rstrip=takes_spaces or (is_phi3 and _is_turn_mark(piece)),
            )
        )
    tokenizer.add_special_tokens([token for token in added if token.special])
    tokenizer.add_tokens([token for token in added if not token.special])


def _is_turn_mark(piece: str) -> bool:
    return re.fullmatch(r"<\|(?!endoftext)\w+\|>", piece) is not None


def _add_ends(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Put the beginning of a text before every text, and the end behind it where that is asked."""
    named = str(vocabulary.get("pre"))
    is_llama = vocabulary.is_sentencepiece or _SAME_CUTS.get(named, named) == "llama-bpe"
    before = _end(vocabulary, "bos") if vocabulary.flag("add_bos_token", default=is_llama) else None
    after = _end(vocabulary, "eos") if vocabulary.flag("add_eos_token", default=False) else None
    if before is None and after is None:
        return
    first, last = [[end[0]] if end else [] for end in (before, after)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[*first, "$A", *last, *first, "$B", *last],
        special_tokens=[end for end in (before, after) if end is not None],
    )


def _end(vocabulary: Vocabulary, name: str) -> tuple[str, int] | None:
    number = vocabulary.special_id(name)
    return None if number is None else (vocabulary.pieces[number], number)


_KINDS = {"llama": _sentencepiece, "gpt2": _byte_level}
