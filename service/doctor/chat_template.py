"""How the variants that shall be served would write chats, as their small files are here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loaders.checkpoint.config import read_config
from loaders.checkpoint.tokenizer import load_tokenizer
from loaders.demo.listing import built_cache
from loaders.errors import LoadError
from loaders.gguf.files import find_file
from loaders.gguf.model import open_model
from loaders.gguf.tokenizer import make_tokenizer
from loaders.repository.opening import open_snapshot
from service.doctor.finding import Finding, fix, ok, warning
from service.text.errors import TextError
from service.text.facts import read_facts
from service.variants.text import check_chat

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

    from loaders.repository.spec import VariantSpec
    from service.doctor.needs import Needs
    from service.settings import WorkerSettings
    from service.variants.text import CheckedChat

_NAME = "chat template"


def check_chat_template(settings: WorkerSettings, needs: Needs | LoadError) -> Finding:
    """Choose and check a variant's template, without its weights; write nothing."""
    if isinstance(needs, LoadError) or needs.spec is None or needs.download_bytes:
        return ok(_NAME, f"{settings.variant}: seen once its files are here")
    if needs.spec.folder is not None and (needs.spec.folder / ".git").exists():
        return ok(_NAME, f"{settings.variant}: seen when it is loaded, out of its git clone")
    try:
        checked = _check(settings, needs.spec)
    except TextError as error:
        return fix(_NAME, f"{settings.variant}: {error}", "tetrad serve --chat-template …")
    except LoadError as error:
        return warning(_NAME, f"{settings.variant}: {error}")
    name = "none; chats are refused"
    if checked.template is not None:
        checked.template.close()
        name = checked.template.name
    if checked.findings:
        found = "; ".join(f"{one.sentence} ({one.code})" for one in checked.findings)
        return warning(_NAME, f"{settings.variant}: {found}")
    return ok(_NAME, f"{settings.variant}: {name}")


def _check(settings: WorkerSettings, spec: VariantSpec) -> CheckedChat:
    cache_dir = built_cache(spec, settings.cache_dir) or settings.cache_dir
    snapshot = open_snapshot(spec, cache_dir=cache_dir, local_files_only=True)
    folder = snapshot.folder
    has_safetensors = next(folder.glob("*.safetensors"), None) is not None
    file = snapshot.file
    path = None if file is None and has_safetensors else find_file(folder, file)
    config, tokenizer = _read_folder(folder) if path is None else _read_gguf(path)
    beside = folder if path is None else path.parent
    facts = read_facts(beside, spec.repo, _Config.of(config), tokenizer)
    return check_chat(tokenizer, facts, settings.chat_template)


def _read_folder(folder: Path) -> tuple[Mapping[str, Any], PreTrainedTokenizerFast]:
    return read_config(folder), load_tokenizer(folder)


def _read_gguf(path: Path) -> tuple[Mapping[str, Any], PreTrainedTokenizerFast]:
    model = open_model(path)
    return model.config, make_tokenizer(model.files.metadata, model.config)


@dataclass(frozen=True, slots=True)
class _Config:
    """What `read_facts` looks at."""

    model_type: str
    vocab_size: int | None
    num_hidden_layers: int | None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> _Config:
        return cls(
            str(config.get("model_type")),
            config.get("vocab_size"),
            config.get("num_hidden_layers"),
        )
