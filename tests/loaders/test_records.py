"""What is learnt of a commit is found again, and nothing else is."""

from concurrent.futures import ThreadPoolExecutor

from loaders.records import Records

COMMIT = "a" * 40


def test_what_was_recorded_is_read_by_another(tmp_path):
    Records(tmp_path).write(COMMIT, "perplexity", 9.5)
    assert Records(tmp_path).read(COMMIT, "perplexity") == 9.5
    assert Records(tmp_path).read("b" * 40, "perplexity") is None
    assert Records(tmp_path).read(COMMIT, "memory") is None


def test_several_writers_lose_nothing(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: Records(tmp_path).write(COMMIT, f"key{i}", i), range(16)))
    assert [Records(tmp_path).read(COMMIT, f"key{i}") for i in range(16)] == list(range(16))


def test_damage_counts_as_absence(tmp_path):
    Records(tmp_path).write(COMMIT, "perplexity", 9.5)
    (tmp_path / "records" / f"{COMMIT}.json").write_text("{")
    assert Records(tmp_path).read(COMMIT, "perplexity") is None
    Records(tmp_path).write(COMMIT, "perplexity", 9.6)
    assert Records(tmp_path).read(COMMIT, "perplexity") == 9.6


def test_a_name_that_is_no_commit_writes_nothing(tmp_path):
    Records(tmp_path).write("../../elsewhere", "perplexity", 1)
    Records(tmp_path).write(None, "perplexity", 1)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "records").write_text("a file stands in the way")
    Records(tmp_path).write(COMMIT, "perplexity", 1)
    assert Records(tmp_path).read(COMMIT, "perplexity") is None


def test_files_of_one_commit_have_records_of_their_own(tmp_path):
    for number, file in enumerate((None, "a.gguf", "b.gguf")):
        Records(tmp_path).of(file).write(COMMIT, "perplexity", number)
    found = [Records(tmp_path).of(f).read(COMMIT, "perplexity") for f in (None, "a.gguf", "b.gguf")]
    assert found == [0, 1, 2]
