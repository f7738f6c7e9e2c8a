"""A folder that holds variants of a repository for machines without a network, with their hashes.

The folder is a cache in the hub's own layout, not a plain folder for each branch:
`tetrad serve REPO:BRANCH --cache-dir FOLDER --local-files-only` serves from it as it is, and so do
Transformers and others (HF_HUB_CACHE=FOLDER HF_HUB_OFFLINE=1). Names and commits stay what they are
on the hub, content that branches share is kept once, a repository's GGUF files stay apart, and an
interrupted mirror goes on where it stopped. Copy it with its links (`rsync -a`, `tar`).

`tetrad-mirror.json` says what is there. It is written last, so it never promises what is missing.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from loaders.errors import CheckpointError, InvalidSpecError, LoadError
from loaders.repository.cache_layout import CachedRepository, cache_errors
from loaders.repository.hub import download
from loaders.repository.manifest import (
    CheckedFile,
    Damage,
    find_damage,
    read_checked_file,
    write_whole,
)
from loaders.repository.protocol import DEFAULT_BRANCH
from loaders.repository.spec import VariantSpec, parse_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from loaders.repository.hub import HubAccess

MIRROR_FILE = "tetrad-mirror.json"
_VERSION = 1
_MAX_BYTES = 64_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class MirroredVariant:
    """One variant in a mirror, as it was on the hub when it was fetched."""

    spec: str  # as `tetrad serve` takes it
    repo: str
    revision: str  # branch, tag or commit
    commit: str
    endpoint: str  # where it came from
    created: str  # ISO 8601, UTC
    files: Mapping[str, CheckedFile]  # of its commit


def mirror(
    repo: str,
    branches: Sequence[str] | None,
    access: HubAccess,
    *,
    choose: Callable[[], Sequence[VariantSpec]] | None = None,
    on_variant: Callable[[str], None] = lambda _: None,
) -> Sequence[MirroredVariant]:
    """Fetch branches (or GGUF files, or quantisations) into the mirror `access.cache_dir`.

    branches: None leaves them to `choose`. on_variant: called with each variant's name before it
    is fetched. What the mirror holds already stays. Raises LoadError.
    """
    if branches is None:
        if choose is None:
            raise ValueError("no branches, and nobody to choose them")
        specs = choose()
    else:
        specs = [_spec(repo, branch) for branch in branches]
    for spec in specs:
        on_variant(str(spec))
        snapshot = download(spec, access)
        _add(access.cache_dir, _describe(spec, access.cache_dir, str(snapshot.commit)))
    return read_mirror(access.cache_dir)


def read_mirror(folder: Path) -> Sequence[MirroredVariant]:
    """Read what a mirror holds. Raises CheckpointError where the folder is none."""
    path = folder / MIRROR_FILE
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"{path} is larger than {_MAX_BYTES} bytes; it is no such list")
        value = json.loads(path.read_bytes())
        if value["version"] != _VERSION:
            raise CheckpointError(f"{path} has version {value['version']!r}, expected {_VERSION}")
        return [_read_variant(entry) for entry in value["variants"]]
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} is no mirror: it has no {MIRROR_FILE}; make one with `tetrad mirror`"
        ) from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def check_mirror(folder: Path) -> Sequence[Damage]:
    """Compare every file and every branch of a mirror with its list; return what differs."""
    damage: list[Damage] = []
    commits: dict[tuple[str, str], dict[str, CheckedFile]] = {}
    for variant in read_mirror(folder):
        cached = CachedRepository(folder, variant.repo)
        found = cached.commit_of(variant.revision)
        if found != variant.commit:
            where = f"{variant.repo} at {variant.revision}"
            damage.append(Damage(where, f"commit {variant.commit}", f"commit {found}"))
        commits.setdefault((variant.repo, variant.commit), {}).update(variant.files)
    for (repo, commit), files in commits.items():
        damage += _damage_of(CachedRepository(folder, repo), commit, files)
    return damage


def _damage_of(
    cached: CachedRepository, commit: str, files: Mapping[str, CheckedFile]
) -> Sequence[Damage]:
    snapshot = cached.snapshot(commit)
    # A link that leaves the mirror would be missing wherever the mirror is carried.
    outside = {
        path
        for path in files
        if not (snapshot / path).resolve().is_relative_to(cached.cache_dir.resolve())
    }
    inside = {path: entry for path, entry in files.items() if path not in outside}
    found = [
        *(Damage(path, "a file in the mirror", "a link out of it") for path in sorted(outside)),
        *find_damage(snapshot, inside),
    ]
    return [Damage(f"{cached.repo}@{commit[:12]}/{d.path}", d.expected, d.found) for d in found]


def _spec(repo: str, branch: str) -> VariantSpec:
    is_file = ".gguf" in branch.lower()
    return spec_on_hub(f"{repo}/{branch}" if is_file else f"{repo}:{branch}")


def spec_on_hub(text: str) -> VariantSpec:
    """Parse a name. Raises InvalidSpecError for what lies on this machine, so needs no mirror."""
    spec = parse_spec(text)
    if spec.folder is not None:
        raise InvalidSpecError(f"{spec.folder} is on this machine; name a repository on the hub")
    return spec


def _describe(spec: VariantSpec, folder: Path, commit: str) -> MirroredVariant:
    cached = CachedRepository(folder, spec.repo)
    manifest = cached.manifest(commit)
    if manifest is None:
        raise CheckpointError(f"the manifest of {spec} at {commit} vanished while it was mirrored")
    # A quantisation is no revision, so the name that the cache has is taken.
    asked = spec.revision or DEFAULT_BRANCH
    names = [name for name in (asked, *cached.revisions()) if cached.commit_of(name) == commit]
    return MirroredVariant(
        spec=str(spec),
        repo=spec.repo,
        revision=names[0] if names else commit,
        commit=commit,
        endpoint=manifest.endpoint,
        created=manifest.created,
        files=manifest.files,
    )


def _add(folder: Path, variant: MirroredVariant) -> None:
    """Put a variant on the list, in place of what the list said of it before."""
    with cache_errors(folder), FileLock(folder / ".locks" / "mirror.lock"):
        listed = read_mirror(folder) if (folder / MIRROR_FILE).exists() else []
        by_spec = {entry.spec: entry for entry in listed}
        _write(folder, list({**by_spec, variant.spec: variant}.values()))


def _read_variant(entry: Any) -> MirroredVariant:
    texts = {name: entry[name] for name in ("spec", "repo", "revision", "commit")}
    if not all(isinstance(text, str) for text in texts.values()):
        raise ValueError(f"an entry's names are {texts}")
    try:
        spec = parse_spec(f"{texts['repo']}:{texts['revision']}")
    except LoadError as error:
        raise ValueError(str(error)) from error
    return MirroredVariant(
        **{**texts, "repo": spec.repo},
        endpoint=str(entry["endpoint"]),
        created=str(entry["created"]),
        files={path: read_checked_file(path, file) for path, file in entry["files"].items()},
    )


def _write(folder: Path, variants: Sequence[MirroredVariant]) -> None:
    value = {"version": _VERSION, "variants": [asdict(variant) for variant in variants]}
    write_whole(folder / MIRROR_FILE, json.dumps(value, indent=1).encode())
