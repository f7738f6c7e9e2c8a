"""Makes a fast tokenizer of a SentencePiece model, for checkpoints that have no tokenizer.json.

The pieces become a model of the tokenizers library, and what that gives is compared with what
sentencepiece itself gives of the same file, on texts of many kinds: a model that cannot be
expressed is refused, and never read almost right. What stands beside it is read too:
tokenizer_config.json, special_tokens_map.json, added_tokens.json.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

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

from loaders.checkpoint.files import read_json
from loaders.checkpoint.sentencepiece_file import (
    Algorithm,
    PieceKind,
    SentencePieceFile,
    read_sentencepiece_file,
)
from loaders.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MODEL_FILE = "tokenizer.model"
_CONFIG_FILE = "tokenizer_config.json"
_SPACE = "▁"
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
# Ours to answer: who read them again would answer otherwise.
_ANSWERED = ("add_bos_token", "add_eos_token", "tokenizer_class", "auto_map", "legacy")
# Classes whose ids are not those of their file: theirs begin with pieces of fairseq's.
_OTHER_NUMBERING = re.compile(
    "(XGLM|Camembert|XLMRoberta|MBart|MBart50|Barthez|M2M100|Pegasus|BigBirdPegasus|Nllb)Tokenizer"
)
_TEMPLATES = ("chat_template.jinja", "chat_template.json")
_MORE_TEMPLATES = "additional_chat_templates"  # a folder of them, by name
_MAX_PROBED = 256  # of pieces that users defined
# Texts on which both libraries must agree.
_PROBES = (
    'The quick brown fox jumps over the lazy dog, doesn\'t it? "Yes!" (2.718281828)',
    "def f(x):\n    if x > 10_000:\n\treturn x ** 2  # twice\n\n\n    return None\n",
    "  two spaces before, three   between, one behind ",
    "Größe naïve œuvre — ½ “quoted” … ﬁ ＡＢＣ é",
    "漢字とかな, 한국어, русский, العربية, हिन्दी 😀👩‍👩‍👧 ₿ 𝔘",
    "a=b;c<d>e</d>\r\nhttps://example.org/x?y=1&z=%20 #tag @me $x {y} [z] \\n `q` ~",
)


def load_sentencepiece_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a folder that has a tokenizer.model. Raises CheckpointError."""
    file = read_sentencepiece_file(folder / MODEL_FILE)
    settings = _read_settings(folder)
    named = str(settings.get("tokenizer_class"))
    if _OTHER_NUMBERING.match(named):
        raise CheckpointError(
            f"{folder} has a tokenizer of the class {named}, whose ids are not those of its"
            f" {MODEL_FILE}; add the tokenizer.json that belongs to the checkpoint"
        )
    tokenizer = make_tokenizer(file)
    _check_ids(tokenizer, file)
    vocabulary = _Vocabulary(file, settings, _read_added(folder, settings))
    vocabulary.check()
    tokenizer = make_tokenizer(file, vocabulary.added_ids())
    if settings.get("add_prefix_space") is False or settings.get("legacy") is False:
        _set_prefix_once(tokenizer, settings.get("add_prefix_space") is not False)
    _add_tokens(tokenizer, vocabulary)
    _add_ends(tokenizer, vocabulary)
    return _with_settings(tokenizer, folder, vocabulary)


def make_tokenizer(file: SentencePieceFile, added: Mapping[str, int] | None = None) -> Tokenizer:
    """Express a model's pieces and its ways with text; `added` pieces have ids of their own.

    Raises CheckpointError for what cannot be expressed.
    """
    if file.spaces_end_words or not file.marks_spaces or file.restores_characters:
        raise CheckpointError(
            f"{MODEL_FILE} marks spaces behind words, not at all, or restores characters; only"
            f" spaces marked by {_SPACE} before words are read: add a tokenizer.json"
        )
    tokenizer = Tokenizer(_model(file, added or {}))
    tokenizer.normalizer = normalizers.Sequence([*_cleaning(file), *_marking(file)])
    strip = [decoders.Strip(" ", 1, 0)] if file.adds_prefix else []
    from_bytes = [decoders.ByteFallback()] if file.falls_back_to_bytes else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), *from_bytes, decoders.Fuse(), *strip]
    )
    # The library panics where a text has got shorter before they are searched in it (0.23).
    is_marked = not (file.charsmap or file.trims_spaces)
    tokenizer.add_tokens(
        [AddedToken(text, special=False, normalized=is_marked) for text in _user_defined(file)]
    )
    return tokenizer


def _user_defined(file: SentencePieceFile) -> list[str]:
    return [piece.text for piece in file.pieces if piece.kind == PieceKind.USER_DEFINED]


def merges_by_score(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """List every way to make a piece of two others, the best piece first.

    SentencePiece joins whatever makes the piece of the highest score; expressed as merges, that is
    their order. Longer first halves come first, as in the tokenizer.json that Transformers writes.
    """
    found = [
        (-score, -cut, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    found.sort(key=lambda merge: merge[:2])
    return [(left, right) for _, _, left, right in found]


def _model(file: SentencePieceFile, added: Mapping[str, int]) -> models.Model:
    ids = {piece.text: number for number, piece in enumerate(file.pieces)}
    if len(ids) < len(file.pieces):
        raise CheckpointError(f"{MODEL_FILE} holds a piece twice")
    unknown = [n for n, piece in enumerate(file.pieces) if piece.kind == PieceKind.UNKNOWN]
    if len(unknown) != 1:
        raise CheckpointError(f"{MODEL_FILE} has {len(unknown)} unknown pieces, expected one")
    if file.algorithm == Algorithm.BPE:
        scores = {p.text: p.score for p in file.pieces if p.kind == PieceKind.NORMAL}
        return models.BPE(
            vocab={**ids, **added},
            merges=merges_by_score(scores),
            unk_token=file.pieces[unknown[0]].text,
            fuse_unk=True,
            byte_fallback=file.falls_back_to_bytes,
        )
    if file.algorithm == Algorithm.UNIGRAM:
        entries = [(piece.text, piece.score) for piece in file.pieces]
        for number, text in sorted((n, t) for t, n in added.items() if n >= len(ids)):
            if number != len(entries):
                raise CheckpointError(f"added_tokens.json leaves ids before {text!r} out")
            entries.append((text, 0.0))
        return models.Unigram(entries, unknown[0], file.falls_back_to_bytes)
    raise CheckpointError(
        f"{MODEL_FILE} cuts text by {file.algorithm.name.lower()}; BPE and unigram are read:"
        " add a tokenizer.json"
    )


def _cleaning(file: SentencePieceFile) -> Iterator[normalizers.Normalizer]:
    if file.charsmap:
        try:
            yield normalizers.Precompiled(file.charsmap)
        except Exception as error:  # the library raises just that
            raise CheckpointError(f"{MODEL_FILE} has a damaged normaliser: {error}") from error
    if file.trims_spaces:
        yield normalizers.Replace(Regex(r"\A +| +\z"), "")
        yield normalizers.Replace(Regex(" {2,}"), " ")


def _marking(file: SentencePieceFile) -> Iterator[normalizers.Normalizer]:
    """Put the space before a text, and mark all spaces.

    User-defined pieces are searched in text that went through this, and so do they before: they
    must get no space. What is typed never looks like one that has marks, as marks are made later.
    """
    pieces = [re.escape(text) for text in _user_defined(file)]
    if file.adds_prefix and pieces:
        yield normalizers.Replace(Regex(rf"\A(?!(?:{'|'.join(pieces)})\z)(?=[\s\S])"), _SPACE)
    elif file.adds_prefix:
        yield normalizers.Prepend(_SPACE)
    yield normalizers.Replace(" ", _SPACE)


def _check_ids(tokenizer: Tokenizer, file: SentencePieceFile) -> None:
    """Raise CheckpointError unless sentencepiece cuts the same texts into the same pieces."""
    from sentencepiece import SentencePieceProcessor

    try:
        processor: Any = SentencePieceProcessor(model_proto=file.content)
    except RuntimeError as error:
        raise CheckpointError(f"sentencepiece cannot read {MODEL_FILE}: {error}") from error
    marked = [text.replace(_SPACE, " ") for text in _user_defined(file)[:_MAX_PROBED]]
    for text in (*_PROBES, *(f"x{text}y" for text in marked)):
        found = tokenizer.encode(text, add_special_tokens=False).ids
        expected = processor.encode(text)
        if found != expected:
            raise CheckpointError(
                f"{MODEL_FILE} cannot be turned into a fast tokenizer: it makes {text[:40]!r}… into"
                f" {found[:12]}… here, sentencepiece into {expected[:12]}…; add the tokenizer.json"
                " that belongs to the checkpoint"
            )


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """Pieces of the model, and what the files beside it add and name."""

    file: SentencePieceFile
    settings: Mapping[str, Any]
    added: Mapping[int, AddedToken]

    def check(self) -> None:
        """Raise CheckpointError where an added piece has another piece's id."""
        pieces = self.file.pieces
        known = {piece.text: number for number, piece in enumerate(pieces)}
        for number, token in self.added.items():
            own = known.get(token.content, number)
            if number < 0 or own != number or (own < len(pieces) and token.content not in known):
                there = pieces[number].text if 0 <= number < len(pieces) else "nothing"
                raise CheckpointError(
                    f"the files beside {MODEL_FILE} give {token.content!r} the id {number}, where"
                    f" {MODEL_FILE} has {there!r}; they are from different revisions"
                )

    def added_ids(self) -> dict[str, int]:
        return {token.content: number for number, token in self.added.items()}

    def special(self, role: str, *, default: str | None) -> str | None:
        """Name the piece of a role; an empty one says nothing, as in the first conversions."""
        value = self.settings.get(role)
        text = value.get("content") if isinstance(value, dict) else value
        return text if isinstance(text, str) and text else default

    def default_of(self, role: str) -> str | None:
        """Name the model's own piece for a role, as sentencepiece names them."""
        if role == "unk_token":
            return next(p.text for p in self.file.pieces if p.kind == PieceKind.UNKNOWN)
        names = {"bos_token": "<s>", "eos_token": "</s>"}
        controls = {p.text for p in self.file.pieces if p.kind == PieceKind.CONTROL}
        return names.get(role) if names.get(role) in controls else None

    def roles(self) -> dict[str, str]:
        found = {role: self.special(role, default=self.default_of(role)) for role in _ROLES}
        return {role: text for role, text in found.items() if text is not None}


def _read_settings(folder: Path) -> dict[str, Any]:
    """Join tokenizer_config.json and the special pieces' own file; the first has the last word."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", _CONFIG_FILE):
        if (folder / name).exists():
            settings |= {k: v for k, v in read_json(folder / name).items() if v is not None}
    return settings


def _read_added(folder: Path, settings: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Read what was added to the model's pieces: by id, or in older files by text."""
    added: dict[int, AddedToken] = {}
    try:
        for number, entry in (settings.get("added_tokens_decoder") or {}).items():
            added[int(number)] = AddedToken(**entry)
        path = folder / "added_tokens.json"
        for text, number in (read_json(path) if path.exists() else {}).items():
            added.setdefault(int(number), AddedToken(text, special=True, normalized=False))
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"the tokens added to {MODEL_FILE} of {folder} are damaged: {error}"
        ) from error
    return added


def _set_prefix_once(tokenizer: Tokenizer, has_prefix: bool) -> None:
    """Put a space before the first stretch of text alone, or before none."""
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    if has_prefix:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, "first", split=False)


def _add_tokens(tokenizer: Tokenizer, vocabulary: _Vocabulary) -> None:
    controls = [
        AddedToken(piece.text, special=True, normalized=False)
        for piece in vocabulary.file.pieces
        if piece.kind in (PieceKind.CONTROL, PieceKind.UNKNOWN)
    ]
    added = [token for _, token in sorted(vocabulary.added.items())]
    texts = {token.content for token in added}
    every = [*(token for token in controls if token.content not in texts), *added]
    tokenizer.add_special_tokens([token for token in every if token.special])
    tokenizer.add_tokens([token for token in every if not token.special])


def _add_ends(tokenizer: Tokenizer, vocabulary: _Vocabulary) -> None:
    """Put the beginning of a text before every text, and the end behind it where that is asked."""
    roles, settings = vocabulary.roles(), vocabulary.settings
    before = roles.get("bos_token") if settings.get("add_bos_token", True) else None
    after = roles.get("eos_token") if settings.get("add_eos_token", False) else None
    ends = {text: tokenizer.token_to_id(text) for text in (before, after) if text is not None}
    if missing := [text for text, number in ends.items() if number is None]:
        raise CheckpointError(
            f"{_CONFIG_FILE} puts {missing[0]!r} at an end of every text; {MODEL_FILE} has no such"
            " piece"
        )
    first, last = [[text] if text is not None else [] for text in (before, after)]
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*first, "$A", *last],
            pair=[*first, "$A", *last, *first, "$B", *last],
            special_tokens=list(ends.items()),
        )


def _with_settings(
    tokenizer: Tokenizer, folder: Path, vocabulary: _Vocabulary
) -> PreTrainedTokenizerFast:
    """Read it again as the tokenizer.json that should have been there, beside its settings."""
    dropped = (*_ANSWERED, *_ROLES, "added_tokens_decoder")
    settings = {k: v for k, v in vocabulary.settings.items() if k not in dropped}
    with TemporaryDirectory(prefix="tetrad-tokenizer-") as name:
        beside = Path(name)
        tokenizer.save(str(beside / "tokenizer.json"))
        text = json.dumps({**settings, **vocabulary.roles()})
        (beside / _CONFIG_FILE).write_text(text)
        for template in _TEMPLATES:
            if (folder / template).is_file():
                shutil.copyfile(folder / template, beside / template)
        if (folder / _MORE_TEMPLATES).is_dir():
            (beside / _MORE_TEMPLATES).mkdir()
            for file in (folder / _MORE_TEMPLATES).glob("*.jinja"):
                shutil.copyfile(file, beside / _MORE_TEMPLATES / file.name)
        made: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(
            beside, local_files_only=True, trust_remote_code=False
        )
    made.name_or_path = str(folder)
    return made
