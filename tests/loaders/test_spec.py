import pytest

from loaders.errors import InvalidSpecError
from loaders.spec import parse_spec

REPO = "TheBloke/CodeLlama-7B-Instruct-GPTQ"


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        (REPO, REPO, None),
        (f"{REPO}:gptq-4bit-32g-actorder_True", REPO, "gptq-4bit-32g-actorder_True"),
        (f"{REPO}:gptq-8bit--1g-actorder_True", REPO, "gptq-8bit--1g-actorder_True"),
        (f"{REPO}@{'a' * 40}", REPO, "a" * 40),
        (f"{REPO}:refs/pr/3", REPO, "refs/pr/3"),
        ("gpt2", "gpt2", None),
    ],
)
def test_repository_and_revision_are_told_apart(text, repo, revision):
    spec = parse_spec(text)
    assert (spec.repo, spec.revision, spec.folder) == (repo, revision, None)


def test_a_folder_is_local_and_keeps_its_revision(tmp_path):
    (tmp_path / "model").mkdir()
    assert parse_spec(str(tmp_path / "model")).folder == tmp_path / "model"
    spec = parse_spec(f"{tmp_path}/model:other-branch")
    assert (spec.folder, spec.revision) == (tmp_path / "model", "other-branch")


def test_a_folder_whose_name_holds_a_colon_is_found(tmp_path):
    (tmp_path / "a:b").mkdir()
    assert parse_spec(str(tmp_path / "a:b")).revision is None


def test_a_spec_prints_as_it_was_written(tmp_path):
    assert str(parse_spec(f"{REPO}:main")) == f"{REPO}:main"
    assert str(parse_spec(str(tmp_path))) == str(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "  ", "a/b/c", "./missing", "/missing", "~/missing", "a/../b", "-x", "owner/name:", "a b"],
)
def test_what_names_nothing_is_refused_with_the_forms_that_do(text):
    with pytest.raises(InvalidSpecError, match="repo:branch"):
        parse_spec(text)


@pytest.mark.parametrize(
    ("text", "repo", "revision", "file"),
    [
        ("owner/repo/model.Q4_K_M.gguf", "owner/repo", None, "model.Q4_K_M.gguf"),
        ("owner/repo@abc/model.gguf", "owner/repo", "abc", "model.gguf"),
        ("owner/repo:v2/model.gguf", "owner/repo", "v2", "model.gguf"),
        ("owner/repo/sub/model.gguf", "owner/repo", None, "sub/model.gguf"),
        ("owner/repo/model.gguf-split-a", "owner/repo", None, "model.gguf-split-a"),
    ],
)
def test_a_gguf_file_is_told_from_its_repository(text, repo, revision, file):
    spec = parse_spec(text)
    assert (spec.repo, spec.revision, spec.file) == (repo, revision, file)
    assert parse_spec(str(spec)) == spec


def test_a_gguf_file_on_this_machine_is_local(tmp_path):
    (tmp_path / "model.gguf").touch()
    spec = parse_spec(str(tmp_path / "model.gguf"))
    assert (spec.folder, spec.file) == (tmp_path, "model.gguf")


@pytest.mark.parametrize(
    "file", ["Model.Q4_K_M.gguf", "Model.Q4_K_M-00001-of-00003.gguf", "Model.Q4_K_M.gguf-split-a"]
)
def test_a_local_file_is_called_what_it_is_called_without_its_ending(tmp_path, file):
    (tmp_path / file).touch()
    assert parse_spec(str(tmp_path / file)).repo == "Model.Q4_K_M"


@pytest.mark.parametrize(
    "text",
    ["model.gguf", "owner/model.gguf", "./model.gguf", "owner/repo/../model.gguf", "a/b@ /m.gguf"],
)
def test_a_gguf_file_that_is_nowhere_is_refused(text):
    with pytest.raises(InvalidSpecError, match=r"repo/file\.gguf"):
        parse_spec(text)


@pytest.mark.parametrize(
    "text",
    ["x" * 5000, "x" * 900, "~nobody-of-that-name/model", "a\0b", "x/" * 300, "~nobody/a.gguf"],
)
def test_what_no_file_system_takes_is_refused_and_no_crash(text):
    with pytest.raises(InvalidSpecError) as raised:
        parse_spec(text)
    assert len(str(raised.value)) < 2500
