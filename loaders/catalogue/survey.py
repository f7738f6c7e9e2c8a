"""Surveys one commit of a repository: its settings, and which headers are to be read.

In two steps, so that a pool of threads can take all commits' steps side by side: the list of files
and the small files first, then the headers that these ask for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loaders.checkpoint.config import scrub_config
from loaders.checkpoint.files import (
    HEADER_START_BYTES,
    parse_header,
    parse_json,
    read_header_length,
)
from loaders.checkpoint.weight_files import INDEX_SUFFIX, WeightFiles, choose_weight_files
from loaders.errors import CheckpointError, LoadError, RevisionNotFoundError
from loaders.gguf.header import read_header as read_gguf_header
from loaders.gguf.parts import GgufParts, group_parts
from loaders.quantization.foreign import MODELOPT_FILE
from loaders.quantization.settings import OWN_FILES
from loaders.repository.protocol import HUB_FAILURES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loaders.checkpoint.files import TensorInfo
    from loaders.gguf.header import GgufHeader
    from loaders.repository.protocol import RepositoryFile, RepositoryFiles, Revision

CONFIG_FILE = "config.json"
MODEL_CARD_FILE = "README.md"
# Settings have kilobytes; an index of the largest models has some megabytes.
_MAX_SETTINGS_BYTES = 4_000_000
_MAX_INDEX_BYTES = 32_000_000
_MAX_SHARDS = 1000
# One request brings the whole header of most shards: 108 KB for a 7B model in GPTQ.
_FIRST_PIECE_BYTES = 262_144
_MAX_HEADER_BYTES = 25_000_000  # of one shard; the longest known ones have 3 MB


@dataclass(slots=True)
class Survey:
    """What the small files of one commit say, and what was found wrong with them."""

    revision: Revision
    files: Mapping[str, RepositoryFile] = field(default_factory=dict)
    config: dict[str, Any] | None = None  # scrubbed; None where there is no config.json
    own: tuple[str, dict[str, Any]] | None = None  # the quantizer's own file: name and content
    modelopt: dict[str, Any] | None = None  # what ModelOpt's file holds; None where there is none
    weights: WeightFiles = field(default_factory=lambda: WeightFiles(()))
    gguf: tuple[GgufParts, ...] = ()
    problem: LoadError | None = None  # why it cannot be loaded, besides GGUF files

    @property
    def shards(self) -> tuple[str, ...]:
        """The safetensors files of the checkpoint."""
        return self.weights.shards

    @property
    def weight_map(self) -> dict[str, str] | None:
        """Tensor → shard, as the index says; None without an index."""
        return self.weights.weight_map

    @property
    def offers_folder(self) -> bool:
        """Whether the commit is a checkpoint besides the GGUF files that it may hold."""
        return bool(self.shards) or not self.gguf


def survey_commit(repository: RepositoryFiles, revision: Revision) -> Survey:
    """Read one commit's list of files and its small files.

    What is wrong with the commit is kept in `problem`; errors of the hub itself are raised.
    """
    survey = Survey(revision)
    try:
        survey.files = {file.path: file for file in repository.files(revision)}
        survey.gguf = tuple(group_parts(survey.files))
        _choose_shards(repository, survey)
        _read_settings(repository, survey)
    except LoadError as error:
        survey.problem = about_checkpoint(error)
    return survey


def about_checkpoint(error: LoadError) -> LoadError:
    """Return an error that is a verdict on a checkpoint; raise one that is about the hub."""
    if isinstance(error, (*HUB_FAILURES, RevisionNotFoundError)):
        raise error
    return error


def _choose_shards(repository: RepositoryFiles, survey: Survey) -> None:
    names = [path for path in survey.files if "/" not in path]
    if survey.gguf and not any(name.endswith(".safetensors") for name in names):
        return

    def read(name: str) -> dict[str, Any]:
        most = _MAX_INDEX_BYTES if name.endswith(INDEX_SUFFIX) else _MAX_SETTINGS_BYTES
        return _read_json(repository, survey, name, most)

    where = f"{repository.name}:{survey.revision.name}" if survey.revision.name else repository.name
    survey.weights = choose_weight_files(names, read, where=where)
    if len(survey.shards) > _MAX_SHARDS:
        raise CheckpointError(
            f"{where} holds {len(survey.shards)} shards, at most {_MAX_SHARDS} are read"
        )


def _read_settings(repository: RepositoryFiles, survey: Survey) -> None:
    if not survey.shards:
        return
    for name in OWN_FILES:
        if name in survey.files:
            survey.own = name, _read_json(repository, survey, name, _MAX_SETTINGS_BYTES)
            break
    if MODELOPT_FILE in survey.files:
        survey.modelopt = _read_json(repository, survey, MODELOPT_FILE, _MAX_SETTINGS_BYTES)
    if CONFIG_FILE not in survey.files:
        raise CheckpointError(
            f"{repository.name} holds no {CONFIG_FILE}, so it is no Transformers checkpoint"
        )
    config = _read_json(repository, survey, CONFIG_FILE, _MAX_SETTINGS_BYTES)
    survey.config, _ = scrub_config(config)


def _read_json(repository: RepositoryFiles, survey: Survey, name: str, most: int) -> dict[str, Any]:
    found = survey.files[name].num_bytes
    if found > most:
        raise CheckpointError(f"{name} has {found} bytes, at most {most} are read as settings")
    # The hub's word on the size is not trusted either.
    return parse_json(name, repository.read(survey.revision, name, num_bytes=most))


def read_shard(repository: RepositoryFiles, survey: Survey, shard: str) -> list[TensorInfo]:
    """Read one shard's header, by ranges. Raises CheckpointError for a damaged one."""
    size = survey.files[shard].num_bytes
    piece = repository.read(
        survey.revision, shard, num_bytes=min(_FIRST_PIECE_BYTES, max(size, HEADER_START_BYTES))
    )
    length = read_header_length(shard, piece[:HEADER_START_BYTES], size)
    if length > _MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{shard} claims a header of {length} bytes, at most {_MAX_HEADER_BYTES} are read here"
        )
    end = HEADER_START_BYTES + length
    if end > len(piece):
        piece += repository.read(
            survey.revision, shard, start=len(piece), num_bytes=end - len(piece)
        )
    text = piece[HEADER_START_BYTES:end]
    if len(text) < length:
        raise CheckpointError(f"{shard} ends within its header; download it again")
    return parse_header(Path(shard), text, size)


def read_gguf(repository: RepositoryFiles, survey: Survey, parts: GgufParts) -> list[GgufHeader]:
    """Read the header of each file of a GGUF variant, by ranges; one for a file that was cut."""
    parts.check_complete()
    if not parts.is_set:
        size = sum(survey.files[path].num_bytes for path in parts.paths)
        return [_read_gguf_file(repository, survey, parts.first, size)]
    return [
        _read_gguf_file(repository, survey, path, survey.files[path].num_bytes)
        for path in parts.paths[:_MAX_SHARDS]
    ]


def _read_gguf_file(
    repository: RepositoryFiles, survey: Survey, path: str, size: int
) -> GgufHeader:
    def read(start: int, num_bytes: int) -> bytes:
        return repository.read(survey.revision, path, start=start, num_bytes=num_bytes)

    return read_gguf_header(path, read, num_bytes=size)
