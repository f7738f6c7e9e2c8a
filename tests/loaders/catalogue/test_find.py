"""Which variants a name means: all, a branch, a file, a quantisation."""

from __future__ import annotations

import pytest

from loaders.catalogue.find import list_named
from loaders.errors import RevisionNotFoundError
from loaders.repository.hub import CachedFiles
from loaders.repository.spec import parse_spec
from tests import published
from tests.hub_server import HubRepository

REPO = published.GGUF_13B
SMALL = published.LlamaShape(256, 2, 512, 100, kv_heads=2, heads=4, head_dim=64)


@pytest.fixture(scope="module")
def published_files(tmp_path_factory):
    """The 13B card's repository."""
    folder = tmp_path_factory.mktemp("cache")
    published.write_cache(folder, REPO, published.gguf_repository())
    return CachedFiles(REPO, folder)


def files_named(tmp_path, **kinds):
    """A repository of small GGUF files: their names (`__` for a dot) with what they hold."""
    files = {
        f"{name.replace('__', '.')}.gguf": published.gguf_file(SMALL, kind)
        for name, kind in kinds.items()
    }
    published.write_cache(tmp_path, REPO, HubRepository({"main": files}))
    return CachedFiles(REPO, tmp_path)


def types(repository, name):
    return [variant.gguf_type for variant in list_named(repository, parse_spec(REPO + name))]


def test_a_file_is_found_by_its_quantisation_and_by_its_name(published_files):
    assert types(published_files, ":Q4_K_M") == types(published_files, ":q4_k_m") == ["Q4_K_M"]
    assert types(published_files, "/codellama-13b-python.Q4_K_M.gguf") == ["Q4_K_M"]


def test_a_branch_means_all_that_is_in_it(published_files):
    assert set(types(published_files, ":main")) == set(published.GGUF_FILES)
    assert types(published_files, "") == types(published_files, ":main")


@pytest.mark.parametrize("name", [":Q4_K_X", "@nope/codellama-13b-python.Q4_K_M.gguf"])
def test_what_is_not_there_is_refused(published_files, name):
    with pytest.raises(RevisionNotFoundError):
        types(published_files, name)


def test_a_quantisation_is_what_the_name_says_as_for_a_download(tmp_path):
    """One header says otherwise; a download, which goes by names, would fetch the other file."""
    repository = files_named(tmp_path, a__Q4_0="Q8_0", b__Q8_0="Q4_0")
    (found,) = list_named(repository, parse_spec(f"{REPO}:Q4_0"))
    assert found.file == "a.Q4_0.gguf"


def test_a_quantisation_of_two_files_is_refused_with_both(tmp_path):
    repository = files_named(tmp_path, x__Q4_0="Q4_0", y__Q4_0="Q4_0")
    with pytest.raises(RevisionNotFoundError, match=r"x\.Q4_0\.gguf, y\.Q4_0\.gguf; name the file"):
        list_named(repository, parse_spec(f"{REPO}:Q4_0"))
