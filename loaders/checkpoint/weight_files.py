"""Says which of a folder's files hold a checkpoint's weights, whatever their maker called them.

Decided by names, and by the small files that name others: an index of shards, and the quantizer's
settings (`model_file_base_name`). Folders, clones, caches and hubs all ask here, so what is fetched
and planned for is what is loaded. In this order:

1. what the settings name, where several checkpoints lie side by side,
2. `model.safetensors`, which Transformers opens before it looks for an index,
3. AutoGPTQ's own name, `gptq_model-4bit-128g`,
4. `model.safetensors.index.json`, or the shards of `model` where all of them are there,
5. the only other checkpoint there is.

An index none of whose shards is there was left over from the model that was quantised.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import structlog

from loaders.errors import CheckpointError, UnsafeCheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    # Reads one of the small files by name: a JSON object. Raises LoadError.
    ReadJson: TypeAlias = Callable[[str], Mapping[str, Any]]

log = structlog.get_logger(__name__)

INDEX_FILE = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
WEIGHTS_SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
# May say which files they belong to, under either name of AutoGPTQ's.
_SETTINGS_FILES = ("quantize_config.json", "quant_config.json", "config.json")
_BASE_NAMES = ("model_file_base_name", "model_basename")
_PART = re.compile(r"(.+?)[-_.]([0-9]{1,6})-of-([0-9]{1,6})\.safetensors")
# Lie beside a checkpoint and are not read as one: Mistral's own files, and fine-tunings.
_ADAPTER = "adapter_model"
_ASIDE = re.compile(rf"consolidated|{_ADAPTER}")
# Models of 126 layers have about 4 000 tensors when they are quantised.
MAX_TENSORS = 100_000
_MAX_NAMES = 20  # that an error message lists


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files of one checkpoint."""

    shards: tuple[str, ...]
    index_file: str | None = None  # which names them; None where none does
    index: Mapping[str, Any] | None = None  # its content

    @property
    def weight_map(self) -> dict[str, str] | None:
        """Tensor → shard, as the index says; None without an index."""
        if self.index is None or self.index_file is None:
            return None
        return weight_map_of(self.index_file, self.index)


def choose_weight_files(names: Collection[str], read: ReadJson, *, where: str) -> WeightFiles:
    """Choose among the file names of one folder; `where` it lies is for errors.

    Raises UnsafeCheckpointError for pickles and for an index that leaves the folder,
    CheckpointError where shards are missing or the choice is not clear.
    """
    names = frozenset(names)  # a list would be searched through for each shard
    found = _group(names)
    if not found:
        raise _without_weights(names, where)
    misses: list[CheckpointError] = []
    for candidate in _in_order(found, names, read):
        try:
            return candidate.choose(names, read, where)
        except _AllMissingError as error:
            misses.append(error)
    raise misses[0] if misses else _not_clear(where, found.values())


class _AllMissingError(CheckpointError):
    """None of an index's shards is there."""


@dataclass(slots=True)
class _Candidate:
    """All files that share one base name, as `gptq_model-4bit-128g`."""

    base: str
    whole: str | None = None
    index: str | None = None
    parts: dict[int, dict[int, str]] = field(default_factory=dict)  # of how many → number → name

    def choose(self, names: Collection[str], read: ReadJson, where: str) -> WeightFiles:
        if self.base.startswith(_ADAPTER):
            raise CheckpointError(
                f"{where} holds an adapter ({_listed(self.names())}) and no model; merge it into"
                " the model that it was trained on, and load what that gives"
            )
        if self.whole is not None:
            if self.index is not None:
                log.info("index_left_over", file=self.index, using=self.whole)
            return WeightFiles((self.whole,))
        if self.index is None:
            return WeightFiles(self._complete_parts(where))
        try:
            return _indexed(self.index, read(self.index), names, where)
        except _AllMissingError:
            if not self.parts:
                raise
            log.info("index_left_over", file=self.index, using=self.base)
            return WeightFiles(self._complete_parts(where))

    def _complete_parts(self, where: str) -> tuple[str, ...]:
        if len(self.parts) > 1:
            raise _not_clear(where, [self])
        ((count, parts),) = self.parts.items()
        if missing := [n for n in range(1, count + 1) if n not in parts]:
            example = next(iter(parts.values()))
            raise CheckpointError(
                f"{where} lacks {len(missing)} of the {count} shards that {example} is one of:"
                f" {_listed(f'{self.base}-{n:05}-of-{count:05}' for n in missing)}; download them"
                " again"
            )
        return tuple(parts[number] for number in sorted(parts))

    def names(self) -> list[str]:
        parts = (name for numbered in self.parts.values() for name in numbered.values())
        return [*([self.whole] if self.whole else []), *parts]


def _group(names: Iterable[str]) -> dict[str, _Candidate]:
    """Sort the weights and indexes among names by what they are called."""
    found: dict[str, _Candidate] = {}
    for name in sorted(names):
        if name.endswith(INDEX_SUFFIX):
            _candidate(found, name.removesuffix(INDEX_SUFFIX)).index = name
        elif (part := _PART.fullmatch(name)) is not None:
            base, number, count = part[1].removesuffix(WEIGHTS_SUFFIX), int(part[2]), int(part[3])
            _candidate(found, base).parts.setdefault(count, {})[number] = name
        elif name.endswith(WEIGHTS_SUFFIX):
            _candidate(found, name.removesuffix(WEIGHTS_SUFFIX)).whole = name
    return found


def _candidate(found: dict[str, _Candidate], base: str) -> _Candidate:
    return found.setdefault(base, _Candidate(base))


def _in_order(
    found: Mapping[str, _Candidate], names: Collection[str], read: ReadJson
) -> Iterator[_Candidate]:
    """Yield what may be the checkpoint, the likeliest first; no rivals that nothing tells apart."""
    named = _named_bases(names, read) if len(found) > 1 else _NamedBases()
    order = [
        named.explicit,
        "model" if "model" in found and found["model"].whole else None,
        named.by_default,
        "model",
    ]
    first = list(dict.fromkeys(base for base in order if base is not None and base in found))
    yield from (found[base] for base in first)
    others = [candidate for base, candidate in found.items() if base not in first]
    others = [c for c in others if not _ASIDE.match(c.base)] or ([] if first else others)
    # What the one index names are its shards, and no rivals.
    indexed = [candidate for candidate in others if candidate.index is not None]
    if len(indexed) == 1:
        yield indexed[0]
        others.remove(indexed[0])
    if len(others) == 1:
        yield others[0]


@dataclass(frozen=True, slots=True)
class _NamedBases:
    """What the quantizer's settings call the weights."""

    explicit: str | None = None
    by_default: str | None = None  # what AutoGPTQ calls them where nobody named them


def _named_bases(names: Collection[str], read: ReadJson) -> _NamedBases:
    explicit = by_default = None
    for name in _SETTINGS_FILES:
        if name not in names:
            continue
        content = read(name)
        settings = content if name != "config.json" else content.get("quantization_config")
        if not isinstance(settings, dict):
            continue
        values = [settings[key] for key in _BASE_NAMES if isinstance(settings.get(key), str)]
        explicit = explicit or next((v.removesuffix(WEIGHTS_SUFFIX) for v in values if v), None)
        if "bits" in settings and "group_size" in settings:
            by_default = f"gptq_model-{settings['bits']}bit-{settings['group_size']}g"
    return _NamedBases(explicit, by_default)


def _indexed(
    file: str, index: Mapping[str, Any], names: Collection[str], where: str
) -> WeightFiles:
    """Name the shards of an index, all of which must be there."""
    shards = sorted(set(weight_map_of(file, index).values()))
    for shard in shards:
        _check_shard(shard)
    if missing := [shard for shard in shards if shard not in names]:
        kind = _AllMissingError if len(missing) == len(shards) else CheckpointError
        raise kind(
            f"shard {missing[0]} is missing from {where}, and {file} names it; found"
            f" {_listed(sorted(names))}; download it again"
        )
    return WeightFiles(tuple(shards), file, index)


def weight_map_of(file: str, index: Mapping[str, Any]) -> dict[str, str]:
    """Return which file holds each tensor, as the index in `file` says."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{file} has no weight_map")
    check_count(file, len(weight_map))
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{file} maps a tensor to something that is not a file name")
    return weight_map


def check_count(where: str, num_tensors: int) -> None:
    """Raise CheckpointError for more tensors than any model has."""
    if num_tensors > MAX_TENSORS:
        raise CheckpointError(
            f"{where} names {num_tensors} tensors; at most {MAX_TENSORS} are read, and no model"
            " that runs here has as many"
        )


def _check_shard(name: str) -> None:
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        raise UnsafeCheckpointError(
            f"the index names {name!r}, which is outside the checkpoint's folder"
        )
    if not name.endswith(WEIGHTS_SUFFIX):
        raise UnsafeCheckpointError(f"the index names {name!r}; only .safetensors files are read")


def _not_clear(where: str, candidates: Iterable[_Candidate]) -> CheckpointError:
    names = [name for candidate in candidates for name in candidate.names()]
    return CheckpointError(
        f"{where} holds {_listed(names)} and no {INDEX_FILE} to say which belong together; add the"
        " index, name the file in quantize_config.json (model_file_base_name), or keep one file"
    )


def _without_weights(names: Collection[str], where: str) -> CheckpointError | UnsafeCheckpointError:
    pickles = sorted(name for name in names if name.endswith(PICKLE_SUFFIXES))
    if pickles:
        return UnsafeCheckpointError(
            f"{where} holds its weights as {', '.join(pickles[:4])}: a pickle can run any code"
            " when it is opened, so only safetensors are read; choose a revision that has them, or"
            " convert it"
        )
    return CheckpointError(f"{where} holds no .safetensors file; found {_listed(sorted(names))}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(list(names)[:_MAX_NAMES]) or "nothing"
