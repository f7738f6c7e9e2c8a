"""What the doctor says of chat templates, from small files alone."""

from __future__ import annotations

import shutil

import pytest

from loaders.demo.repository import find_snapshot
from loaders.errors import HubError
from loaders.repository.spec import parse_spec
from service.doctor.chat_template import check_chat_template
from service.doctor.examine import checks
from service.doctor.finding import Level
from service.doctor.needs import Needs, read_needs
from service.settings import Settings
from tests.gguf_writer import model_metadata, model_tensors, write_gguf
from tests.models import tiny_llama, tiny_tokenizer


@pytest.fixture
def finding_of(tiny_repo):
    def check(variant: str | None = None, **own: str):
        settings = Settings(
            variant=variant or f"{tiny_repo.gptq_repo}:main",
            cache_dir=tiny_repo.cache_dir,
            local_files_only=True,
            device="cpu",
            **own,
        )
        (needs,) = (named.needs for named in read_needs(settings.variants()))
        return check_chat_template(settings.variants()[0], needs)

    return check


def test_doubts_are_told_with_their_codes(finding_of, tiny_repo):
    finding = finding_of()
    assert (finding.name, finding.level) == ("chat template", Level.WARNING)
    assert finding.found.startswith(f"{tiny_repo.gptq_repo}:main: ")
    assert "writes no <s>" in finding.found
    assert finding.found.endswith("(missing_bos)")


def test_the_operators_choice_is_looked_at(finding_of, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text(
        "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    finding = finding_of(chat_template=str(file))
    assert (finding.level, finding.found.rpartition(": ")[2]) == (Level.OK, "mine.jinja")


def test_a_choice_that_names_none_is_to_be_fixed(finding_of):
    finding = finding_of(chat_template="other")
    assert finding.level is Level.FIX
    assert "chatml" in finding.found
    assert finding.command


def test_a_folder_is_looked_at_and_a_clone_is_not(finding_of, tiny_repo, tmp_path):
    folder = find_snapshot(tiny_repo.cache_dir, tiny_repo.gptq_repo, "main")
    copy = shutil.copytree(folder, tmp_path / "CodeLlama-7B-Instruct")
    assert "(missing_bos)" in finding_of(str(copy)).found
    (copy / ".git").mkdir()
    assert check_in_clone(finding_of, str(copy)) == "seen when it is loaded, out of its git clone"


def check_in_clone(finding_of, folder: str) -> str:
    settings = Settings(variant=folder)
    found = check_chat_template(settings.variants()[0], Needs(0, 1, parse_spec(folder)))
    assert found.level is Level.OK
    return found.found.rpartition(": ")[2]


def test_a_gguf_file_is_read_where_it_lies(finding_of, tmp_path):
    model, tokenizer = tiny_llama(), tiny_tokenizer(chat_template="{{ messages[0].content }}")
    path = tmp_path / "tiny.Q8_0.gguf"
    metadata = model_metadata(model, tokenizer)
    write_gguf(path, metadata, model_tensors(model, lambda name: "F32"))
    found = finding_of(str(path)).found
    assert "(lost_text)" in found
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("needs", [HubError("away"), Needs(10, 10), Needs(0, 10)])
def test_nothing_is_known_before_the_files_are_here(needs):
    settings = Settings(variant="a/b")
    finding = check_chat_template(settings.variants()[0], needs)
    assert (finding.level, finding.found) == (Level.OK, "a/b: seen once its files are here")


def test_each_named_variant_is_looked_at(tiny_repo):
    access = {"local_files_only": True, "cache_dir": tiny_repo.cache_dir, "device": "cpu"}
    also = [{"variant": f"{tiny_repo.gptq_repo}:main", "chat_template": "llama-2"}]
    settings = Settings(variant=tiny_repo.gptq_repo, also=also, **access)
    of_first, of_second = (check() for name, check in checks(settings) if name == "chat template")
    assert of_first.level is Level.WARNING
    assert of_second.found.endswith("Llama 2")
