from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from loaders.errors import InvalidSpecError
from loaders.repository.spec import VariantSpec, parse_spec

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


@pytest.mark.parametrize(
    ("text", "repo", "revision", "file"),
    [
        ("owner/repo@release/v1//m.gguf", "owner/repo", "release/v1", "m.gguf"),
        ("owner/repo:release/v1//sub/m.gguf", "owner/repo", "release/v1", "sub/m.gguf"),
        ("owner/repo//@release/v1//m.gguf", "owner/repo", "release/v1", "m.gguf"),
        ("owner/repo//@odd.gguf//", "owner/repo", "odd.gguf", None),
        ("gpt2//sub/m.gguf", "gpt2", None, "sub/m.gguf"),
        ("owner/repo:a@b#c", "owner/repo", "a@b#c", None),
    ],
)
def test_names_with_slashes_have_a_form_that_leaves_nothing_open(text, repo, revision, file):
    spec = parse_spec(text)
    assert (spec.repo, spec.revision, spec.file, spec.folder) == (repo, revision, file, None)
    assert parse_spec(str(spec)) == spec


@pytest.mark.parametrize(
    "text", ["owner/repo//@a..b//m.gguf", "owner/repo//../m.gguf", "a/b/c//m.gguf", "./no//m.gguf"]
)
def test_the_form_that_leaves_nothing_open_is_checked_as_the_others(text):
    with pytest.raises(InvalidSpecError, match=r"repo@branch//file\.gguf"):
        parse_spec(text)


def test_the_handy_form_is_printed_where_it_says_the_same(tmp_path):
    assert str(VariantSpec("a/b", None, "v1", "m.gguf")) == "a/b@v1/m.gguf"
    assert str(VariantSpec("a/b", None, None, "m.gguf")) == "a/b/m.gguf"
    assert str(VariantSpec("a/b", None, "release/v1", "m.gguf")) == "a/b@release/v1//m.gguf"
    (tmp_path / "model").mkdir()
    assert str(parse_spec(f"{tmp_path}/model:v1")) == f"{tmp_path}/model:v1"
    (tmp_path / "model" / "m.gguf").touch()
    assert str(parse_spec(f"{tmp_path}/model/m.gguf")) == f"{tmp_path}/model/m.gguf"


def test_a_folder_with_a_colon_in_its_name_has_revisions_too(tmp_path):
    (tmp_path / "a:b@c").mkdir()
    spec = parse_spec(f"{tmp_path}/a:b@c:main")
    assert (spec.folder, spec.revision) == (tmp_path / "a:b@c", "main")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders whose names are each other's names with a revision or a file."""
    root = tmp_path_factory.mktemp("folders")
    names = ["a", "a:b", "a@b", "a:b:c", "a/x", "a@b/x", "a b", "a@main", "x.gguf", " b ", "a/@v"]
    for name in names:
        (root / name / "sub").mkdir(parents=True)
    for file in ("a/m.gguf", "a/sub/m.gguf", "a:b/m.gguf", "a@main/m.gguf"):
        (root / file).touch()
    return [root / name for name in names] + [Path("/")]


PARTS = st.text("ab.@:# -_Q4", min_size=1, max_size=5).filter(
    lambda part: part.strip() == part and part not in (".", "..")
)
REVISIONS = st.sampled_from(
    [None, "main", "b", "c", "release/v1", "x/m", "v", "sub", "Q4_K_M", "a@b", "x.gguf", "b//c"]
)
FILES = st.one_of(
    st.sampled_from([None, None, "m.gguf", "sub/m.gguf", "m.gguf-split-a"]),
    st.lists(PARTS, max_size=2).map(lambda parts: "/".join([*parts, "m.GGUF"])),
)


@given(data=st.data(), revision=REVISIONS, file=FILES)
def test_a_name_always_parses_back_to_the_same(folders, data, revision, file):
    """The process that serves is told by name what another one chose."""
    assume(revision != "b//c" or file is None)
    repo = data.draw(st.sampled_from(["a/b", "gpt2", "TheBloke/CodeLlama-7B.x", *folders]))
    local = isinstance(repo, Path)
    spec = VariantSpec("any" if local else repo, repo if local else None, revision, file)
    found = parse_spec(str(spec))
    assert (found.folder, found.revision, found.file) == (spec.folder, revision, file)
    assert local or found.repo == repo
    assert parse_spec(str(found)) == found
