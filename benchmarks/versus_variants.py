"""The weights that `versus` serves: packed ones that several servers read, and a dense copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import AutoTokenizer, GenerationConfig

from benchmarks.peers import stock_model
from loaders.cache import default_cache_dir
from loaders.demo import DEMO_REPO, build_demo
from loaders.demo.branches import AWQ_BRANCHES, DemoBranch
from loaders.demo.checkpoint import write_branch
from loaders.demo.source import read_source
from loaders.repository.opening import open_snapshot
from loaders.repository.spec import parse_spec

if TYPE_CHECKING:
    from pathlib import Path

# vLLM reads GPTQ on the CPU only without act order and with the middle code as every zero point.
SYMMETRIC = DemoBranch(
    DEMO_REPO, "gptq-4bit-64g-symmetric", "gptq", 4, 64, False, "For benchmarks.", symmetric=True
)
NAMES = ("awq", "gptq")


@dataclass(frozen=True, slots=True)
class Variant:
    """One variant's files, twice."""

    name: str
    description: str
    packed: Path
    dense: Path  # the packed weights, dequantised to bfloat16


def prepare(name: str, folder: Path) -> Variant:
    """Make a variant's files, in a folder of its own where the demo's cache does not have them."""
    if name == "awq":
        demo = build_demo(default_cache_dir(), AWQ_BRANCHES, on_progress=print)
        description = str(AWQ_BRANCHES[0])
        spec = parse_spec(description)
        snapshot = open_snapshot(spec, cache_dir=demo.cache_dir, local_files_only=True)
        packed = snapshot.folder
    else:
        description = f"{SYMMETRIC}, not among the demo's branches"
        packed = folder / SYMMETRIC.name
        write_branch(packed, read_source(), SYMMETRIC)
    return Variant(name, description, packed, _write_dense(packed, folder / f"{name}-dense"))


def _write_dense(packed: Path, folder: Path) -> Path:
    """Write a plain bfloat16 checkpoint whose settings let no token end an answer."""
    model = stock_model(str(packed), None, torch.bfloat16)
    model.generation_config = GenerationConfig(do_sample=False)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(packed).save_pretrained(folder)
    return folder
