"""`tetrad variants`: what a repository offers, as a table for people or JSON for programs.

The document: `{"repo", "variants": [...]}`, each variant as `describe` says. Exit codes: 0, or 2
where the repository cannot be read. Reads no weights, and writes nothing.
"""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from service.commands.repository_options import (
    CacheOption,
    OfflineOption,
    TokenOption,
    find_named_variants,
    read_settings,
    read_spec,
)
from service.commands.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loaders.catalogue.variants import Variant

WRONG_QUESTION = 2
# Where neither a terminal nor COLUMNS says how wide lines may be; the 7B model card's table fits.
_WIDTH_OF_FILES = 100


def variants(
    repo: Annotated[
        str,
        typer.Argument(
            metavar="REPO",
            help="Repository, folder or git clone; with `:branch`, `@commit` or `/file.gguf` only"
            " that one.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    token: TokenOption = None,
    cache_dir: CacheOption = None,
    offline: OfflineOption = False,
) -> None:
    """List what a repository offers: branches, tags and GGUF files with their parameters."""
    from loaders.errors import LoadError

    settings = read_settings(token=token, cache_dir=cache_dir, offline=offline)
    try:
        with Console(stderr=True).status("looking at the repository"):
            spec = read_spec(repo)
            name, found = spec.repo, find_named_variants(spec, settings)
    except LoadError as error:
        sys.stderr.write(f"tetrad: {printable(str(error))}\n")
        raise typer.Exit(WRONG_QUESTION) from None
    if as_json:
        sys.stdout.write(json.dumps(as_document(name, found), indent=2) + "\n")
    else:
        show(name, found)


def as_document(repo: str, found: Sequence[Variant]) -> dict[str, Any]:
    """Make the JSON document."""
    return {"repo": repo, "variants": [describe(variant) for variant in found]}


def describe(variant: Variant) -> dict[str, Any]:
    """Make a variant's entry in JSON documents; null is "there is none", or "not known".

    group_size -1 is the whole input dimension, as in settings files; weight_bytes counts tensors
    as they are stored; seq_len is that of the dataset it was quantised with, in tokens.
    """
    quantization = variant.quantization
    base = quantization.base if quantization else None
    return {
        "variant": variant.spec,
        "revision": variant.revision,
        "commit": variant.commit,
        "file": variant.file,
        "kind": variant.kind.value,
        "format": base.checkpoint_format if base else None,
        "bits": base.bits if base else None,
        "group_size": base.group_size if base else None,
        "act_order": quantization.desc_act if quantization else None,
        "symmetric": quantization.sym if quantization else None,
        "gguf_type": variant.gguf_type,
        "damp": variant.damp,
        "dataset": variant.dataset,
        "seq_len": variant.seq_len,
        "weight_bytes": variant.weight_bytes,
        "num_tensors": len(variant.tensors),
        "disagreements": list(variant.disagreements),
        "refusal": variant.refusal,
    }


def show(repo: str, found: Sequence[Variant]) -> None:
    """Print the tables, and below them what is wrong with which variant."""
    width = shutil.get_terminal_size((_WIDTH_OF_FILES, 25)).columns
    console = Console(width=width, highlight=False)
    folders = [variant for variant in found if variant.file is None]
    files = [variant for variant in found if variant.file is not None]
    if folders:
        console.print(_table_of_branches(folders))
    if files:
        console.print(_table_of_files(files))
    if not found:
        console.print(Text(f"{printable(repo)} has no branches"))
    for variant in found:
        for line in _remarks(variant):
            console.print(Text(line), soft_wrap=True)


def _table_of_branches(found: Sequence[Variant]) -> Table:
    table = _empty_table("branch")
    for heading in ("kind", "bits", "group", "order", "sym", "damp"):
        table.add_column(heading, no_wrap=True)
    table.add_column("dataset", overflow="fold")
    table.add_column("seq", no_wrap=True, justify="right")
    table.add_column("GB", no_wrap=True, justify="right")
    table.add_column("commit", no_wrap=True)
    for variant in found:
        quantization = variant.quantization
        base = quantization.base if quantization else None
        table.add_row(
            *_cells(
                variant.revision or variant.repo,
                variant.kind.value,
                base and base.bits,
                base and ("none" if base.group_size == -1 else base.group_size),
                quantization and _yes(quantization.desc_act),
                quantization and _yes(quantization.sym),
                variant.damp,
                variant.dataset,
                variant.seq_len,
                _gigabytes(variant),
                variant.commit and variant.commit[:7],
            )
        )
    return table


def _table_of_files(found: Sequence[Variant]) -> Table:
    table = _empty_table("file")
    table.add_column("type", no_wrap=True)
    table.add_column("GB", no_wrap=True, justify="right")
    table.add_column("use, says the model card", overflow="fold")
    table.add_column("branch", overflow="fold")
    table.add_column("commit", no_wrap=True)
    for variant in found:
        table.add_row(
            *_cells(
                variant.file,
                variant.gguf_type,
                _gigabytes(variant),
                variant.model_card and variant.model_card.description,
                variant.revision,
                variant.commit and variant.commit[:7],
            )
        )
    return table


def _empty_table(name: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column(name, overflow="fold")
    return table


def _cells(*values: object) -> list[Text]:
    """Make cells of plain text: no mark-up of rich's, nothing that could steer a terminal."""
    return [Text("-" if value is None else printable(str(value))) for value in values]


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _gigabytes(variant: Variant) -> str:
    """In 10^9 bytes, as model cards count."""
    return f"{variant.weight_bytes / 1e9:.2f}" if variant.weight_bytes else "-"


def _remarks(variant: Variant) -> list[str]:
    name = printable(variant.file or variant.revision or variant.repo)
    lines = [f"{name}: {printable(sentence)}" for sentence in variant.disagreements]
    if variant.refusal is not None:
        lines.append(f"{name} cannot be loaded: {printable(variant.refusal)}")
    return lines
