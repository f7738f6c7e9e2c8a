"""A repository's variants: its branches, tags and GGUF files, with everything that a choice needs.

Reads small files and headers only, never weights. What a variant needs of memory is a question for
`loaders.planning.plan`, how its files get here one for `loaders.repository.download`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from loaders.catalogue.disagreements import (
    disagreement_in_size,
    disagreements_in_gguf_type,
    disagreements_with_model_card,
    disagreements_with_name,
)
from loaders.catalogue.model_card import MAX_MODEL_CARD_BYTES, ModelCard, read_model_card
from loaders.catalogue.model_card_table import ModelCardRow
from loaders.catalogue.survey import (
    MODEL_CARD_FILE,
    about_checkpoint,
    read_gguf,
    read_shard,
    survey_commit,
)
from loaders.checkpoint.config import make_model_config
from loaders.checkpoint.files import gather_tensors
from loaders.errors import CheckpointError, LoadError, UnsupportedQuantizationError
from loaders.gguf.config import file_type, make_config
from loaders.quantization.embedded import embedded_settings
from loaders.quantization.settings import resolve_quantization
from loaders.repository.protocol import HUB_FAILURES, Replaceable
from loaders.repository.spec import VariantSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from loaders.catalogue.survey import Survey
    from loaders.checkpoint.files import TensorInfo
    from loaders.gguf.header import GgufHeader
    from loaders.gguf.parts import GgufParts
    from loaders.quantization.quantization import Quantization
    from loaders.repository.protocol import RepositoryFiles, Revision

__all__ = ["ModelCardRow", "Variant", "VariantKind", "list_variants"]

log = structlog.get_logger(__name__)

# Questions that are out at once: enough to hide a hub's latency, few enough to be no burden.
NUM_THREADS = 16
MAX_REVISIONS = 500


class VariantKind(StrEnum):
    """What sort of checkpoint a variant is."""

    GPTQ = "gptq"
    AWQ = "awq"
    GGUF = "gguf"
    COMPRESSED = "compressed-tensors"
    DENSE = "dense"  # fp16, bf16 or fp32
    OTHER = "other"  # quantised in a way that is not read here; `refusal` says which


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One checkpoint that a repository holds."""

    repo: str
    revision: str | None  # branch or tag; None for a plain folder
    commit: str | None
    kind: VariantKind
    file: str | None = None  # of a GGUF variant: its file, the first where it is split
    quantization: Quantization | None = None  # of GPTQ and AWQ
    gguf_type: str | None = None  # Q4_K_M, as the file's name or header says
    damp: float | None = None
    dataset: str | None = None
    seq_len: int | None = None  # of the dataset, in tokens
    weight_bytes: int = 0  # of all tensors, as stored
    # Every tensor by name, from headers. GGUF ones keep GGUF's names, their shapes are PyTorch's.
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)
    # config.json without what could run code; of a GGUF file, what its metadata amounts to.
    config: Mapping[str, Any] = field(default_factory=dict)
    model_card: ModelCardRow | None = None
    # What model card and files, or two files, say differently: sentences for people.
    disagreements: tuple[str, ...] = ()
    refusal: str | None = None  # why it cannot be loaded here; None where nothing speaks against it

    @property
    def spec(self) -> str:
        """Name it as `tetrad serve` takes it."""
        return str(VariantSpec(self.repo, None, self.revision, self.file))


def list_variants(
    repository: RepositoryFiles, *, revisions: Sequence[Revision] | None = None
) -> list[Variant]:
    """List what a repository offers: every branch and tag, each GGUF file by itself.

    Each commit is read once, several at a time. What is wrong with one variant is in its `refusal`
    and does not hide the others. revisions: only these. Where the hub fails half-way, all of it is
    read from the cache instead. Raises HubError or RepositoryNotFoundError where the repository
    itself cannot be read.
    """
    try:
        return _list_variants(repository, revisions)
    except HUB_FAILURES as error:
        found = _list_substitutes(repository, revisions, error)
        if all(variant.refusal is not None for variant in found):
            raise
        return found


def _list_substitutes(
    repository: RepositoryFiles, revisions: Sequence[Revision] | None, error: LoadError
) -> list[Variant]:
    """List the same of what stands in for a repository that failed; nothing where nothing does."""
    instead = repository.substitute(error) if isinstance(repository, Replaceable) else None
    if instead is None:
        return []
    try:
        # By name: the commit may be another one there.
        named = None if revisions is None else [instead.find_revision(r.name) for r in revisions]
        return _list_variants(instead, named)
    except LoadError:
        return []


def _list_variants(
    repository: RepositoryFiles, revisions: Sequence[Revision] | None
) -> list[Variant]:
    wanted = _bounded(repository, repository.revisions() if revisions is None else revisions)
    if not wanted:
        return []
    firsts = {revision.commit: revision for revision in reversed(wanted)}  # one for each commit
    with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="catalogue") as pool:
        model_card_asked = pool.submit(_read_model_card_of, repository, wanted[0])
        survey = partial(survey_commit, repository)
        surveys = {s.revision.commit: s for s in pool.map(survey, firsts.values())}
        headers = {
            commit: _HeadersAsked.submit(pool, repository, survey)
            for commit, survey in surveys.items()
        }
        model_card = model_card_asked.result()
        read = {
            commit: list(_variants_of(repository, survey, headers[commit], model_card))
            for commit, survey in surveys.items()
        }
    found = [
        replace(variant, revision=revision.name)
        for revision in wanted
        for variant in read[revision.commit]
    ]
    return _with_missing_rows(found, model_card, {r.name for r in repository.revisions()})


def _bounded(repository: RepositoryFiles, revisions: Sequence[Revision]) -> Sequence[Revision]:
    if len(revisions) > MAX_REVISIONS:
        log.warning(
            "revisions_left_out",
            repo=repository.name,
            found=len(revisions),
            read=MAX_REVISIONS,
            reason="more branches and tags than a repository of variants has",
        )
    return revisions[:MAX_REVISIONS]


def _read_model_card_of(repository: RepositoryFiles, revision: Revision) -> ModelCard:
    """Read the default branch's model card; one that cannot be had says nothing."""
    try:
        if not any(file.path == MODEL_CARD_FILE for file in repository.files(revision)):
            return ModelCard()
        content = repository.read(revision, MODEL_CARD_FILE, num_bytes=MAX_MODEL_CARD_BYTES + 1)
    except LoadError as error:
        about_checkpoint(error)
        return ModelCard()
    model_card = read_model_card(content)
    for remark in model_card.remarks:
        log.warning("card_cut", repo=repository.name, reason=remark)
    return model_card


@dataclass(frozen=True, slots=True)
class _HeadersAsked:
    """Headers of one commit that threads are reading."""

    shards: Mapping[str, Future[list[TensorInfo]]]
    gguf: Mapping[str, Future[list[GgufHeader]]]

    @classmethod
    def submit(
        cls, pool: ThreadPoolExecutor, repository: RepositoryFiles, survey: Survey
    ) -> _HeadersAsked:
        """Have all headers read that a survey asks for."""
        shards = () if survey.problem else survey.shards
        return cls(
            {name: pool.submit(read_shard, repository, survey, name) for name in shards},
            {p.name: pool.submit(read_gguf, repository, survey, p) for p in survey.gguf},
        )


def _variants_of(
    repository: RepositoryFiles, survey: Survey, headers: _HeadersAsked, model_card: ModelCard
) -> Iterator[Variant]:
    if survey.offers_folder:
        yield _judge_folder(repository, survey, headers.shards, model_card)
    for parts in sorted(survey.gguf, key=partial(_bytes_of, survey)):
        yield _judge_gguf(repository, survey, parts, headers.gguf[parts.name], model_card)


def _judge_folder(
    repository: RepositoryFiles,
    survey: Survey,
    shards: Mapping[str, Future[list[TensorInfo]]],
    model_card: ModelCard,
) -> Variant:
    """Put together what is known of one commit's safetensors, and whether they can be loaded."""
    tensors: dict[str, TensorInfo] = {}
    quantization: Quantization | None = None
    is_foreign = False
    config = survey.config or {}
    try:
        if survey.problem is not None:
            raise survey.problem
        found = {name: asked.result() for name, asked in shards.items()}
        tensors = gather_tensors(found, survey.weight_map)
        quantization = resolve_quantization(survey.own, config, tensors, modelopt=survey.modelopt)
        make_model_config(config)
        refusal = None
    except LoadError as error:
        refusal = str(about_checkpoint(error))
        is_foreign = isinstance(error, UnsupportedQuantizationError)
    row = _row_named(model_card, survey.revision.name)
    settings = _settings_of(survey)
    damp = _number_in(settings, "damp_percent")
    weight_bytes = sum(tensor.num_bytes for tensor in tensors.values()) or sum(
        survey.files[name].num_bytes for name in survey.shards if name in survey.files
    )
    dataset = settings.get("dataset")
    return Variant(
        repo=repository.name,
        revision=survey.revision.name,
        commit=survey.revision.commit,
        kind=VariantKind.OTHER if is_foreign else _kind_of(quantization, settings, tensors),
        quantization=quantization,
        damp=row.damp if damp is None and row else damp,
        dataset=row.dataset if row and row.dataset else _text(dataset),
        seq_len=row.seq_len if row else None,
        weight_bytes=weight_bytes,
        tensors=tensors,
        config=config,
        model_card=row,
        disagreements=(
            *(quantization.remarks if quantization else ()),
            *disagreements_with_name(survey.revision.name, quantization),
            *(disagreements_with_model_card(row, quantization, damp) if row else ()),
            *(disagreement_in_size(row, weight_bytes) if row else ()),
        ),
        refusal=refusal,
    )


def _judge_gguf(
    repository: RepositoryFiles,
    survey: Survey,
    parts: GgufParts,
    asked: Future[list[GgufHeader]],
    model_card: ModelCard,
) -> Variant:
    """Put together what is known of one GGUF file, and whether it can be loaded."""
    tensors: dict[str, TensorInfo] = {}
    config: dict[str, Any] = {}
    in_header = refusal = None
    try:
        headers = asked.result()
        in_header = file_type(headers[0].metadata)
        tensors = gather_tensors(_infos_of(headers, parts), None)
        every = {tensor.name: tensor for header in headers for tensor in header.tensors}
        config = make_config(headers[0].metadata, every)
        make_model_config(dict(config))
    except LoadError as error:
        refusal = str(about_checkpoint(error))
    row = _row_named(model_card, parts.name) or _row_named(model_card, parts.first)
    file_bytes = _bytes_of(survey, parts)
    return Variant(
        repo=repository.name,
        revision=survey.revision.name,
        commit=survey.revision.commit,
        kind=VariantKind.GGUF,
        file=parts.first,
        gguf_type=in_header or parts.type_in_name,
        weight_bytes=sum(tensor.num_bytes for tensor in tensors.values()) or file_bytes,
        tensors=tensors,
        config=config,
        model_card=row,
        disagreements=(
            *disagreements_in_gguf_type(row, parts.type_in_name, in_header),
            *(disagreement_in_size(row, file_bytes) if row else ()),
        ),
        refusal=refusal,
    )


def _bytes_of(survey: Survey, parts: GgufParts) -> int:
    return sum(survey.files[path].num_bytes for path in parts.paths)


def _infos_of(headers: Sequence[GgufHeader], parts: GgufParts) -> dict[str, list[TensorInfo]]:
    """List each file's tensors; a cut file's lie in its first part, as far as names go."""
    return {
        path: list(header.tensor_infos(Path(path)).values())
        for path, header in zip(parts.paths, headers, strict=False)
    }


def _settings_of(survey: Survey) -> dict[str, Any]:
    """Join what the two settings files say of the quantisation."""
    own = survey.own[1] if survey.own else {}
    try:
        embedded = embedded_settings(survey.config or {})
    except CheckpointError:  # which the variant's refusal tells
        embedded = None
    return {**own, **(embedded or {})}


def _kind_of(
    quantization: Quantization | None,
    settings: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
) -> VariantKind:
    named = quantization.base.quant_method if quantization else settings.get("quant_method")
    if named in ("gptq", "awq", "compressed-tensors"):
        return VariantKind(named)
    if settings or not tensors:
        return VariantKind.OTHER
    return VariantKind.DENSE


def _row_named(model_card: ModelCard, name: str | None) -> ModelCardRow | None:
    return next((row for row in model_card.rows if row.name == name), None)


def _number_in(settings: Mapping[str, Any], key: str) -> float | None:
    value = settings.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if 0 <= value <= 1 else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and len(value) <= 200 else None


def _with_missing_rows(
    variants: list[Variant], model_card: ModelCard, revisions: set[str | None]
) -> list[Variant]:
    """Add to the first variant what the model card lists and nobody found."""
    files = {
        name for v in variants for name in (v.file, v.model_card.name if v.model_card else None)
    }
    missing = [row.name for row in model_card.rows if row.name not in revisions | files]
    if not variants or not missing:
        return variants
    sentence = f"the model card lists {', '.join(missing[:8])}, which was not found"
    first = replace(variants[0], disagreements=(*variants[0].disagreements, sentence))
    return [first, *variants[1:]]
