"""The catalogue: every branch, tag and GGUF file, from small files and headers alone."""

import json
import struct
import subprocess
import time

import pytest
import structlog

from loaders.catalogue.disagreements import disagreement_in_size
from loaders.catalogue.find import find_variants
from loaders.catalogue.variants import ModelCardRow, VariantKind, list_variants
from loaders.errors import HubError, RepositoryNotFoundError
from loaders.gguf.parts import group_parts
from loaders.repository.hub import CachedFiles
from loaders.repository.hub.repository import HubFiles
from loaders.repository.local import CloneFiles, FolderFiles
from loaders.repository.protocol import RepositoryFile, Revision
from loaders.repository.spec import parse_spec
from tests import published
from tests.hub_server import Fault, HubRepository, SparseFile, running_hub
from tests.published import (
    CODELLAMA_7B,
    CODELLAMA_13B,
    GPTQ_BRANCHES,
    GptqBranch,
    LlamaShape,
    gptq_files,
    header_only,
)

SMALL = LlamaShape(64, 2, 128, 100, kv_heads=2, heads=4, head_dim=16)
MAIN = GptqBranch("main", 4, 32, True, "0.01")


class Files:
    """A repository in memory: branch → file → content; tags name branches."""

    name = "someone/model"

    def __init__(self, branches, tags=None):
        self.repository = HubRepository(branches, tags=tags or {})
        self.reads = []

    def revisions(self):
        tags = self.repository.tags
        return [
            Revision(name, "tag" if name in tags else "branch", commit)
            for name, commit in self.repository.commits.items()
        ]

    def files(self, revision):
        self.reads.append((revision.commit, None))
        files = self.repository.files_at(revision.commit)
        return [RepositoryFile(path, len(content), None, None) for path, content in files.items()]

    def read(self, revision, path, *, start=0, num_bytes=None):
        self.reads.append((revision.commit, path))
        content = self.repository.files_at(revision.commit)[path]
        return content[start : len(content) if num_bytes is None else start + num_bytes]


def small_files(branch=MAIN, **changed):
    """One small GPTQ branch; a file that is None is left out."""
    files = {**gptq_files(SMALL, branch), "README.md": b"# card", **changed}
    return {path: content for path, content in files.items() if content is not None}


def with_config(**settings):
    config = json.loads(gptq_files(SMALL, MAIN)["config.json"])
    return json.dumps({**config, **settings}).encode()


def indexed(shard):
    """An index that names one shard, and no file that is opened before it."""
    index = json.dumps({"weight_map": {"a": shard}}).encode()
    return {"model.safetensors.index.json": index, "model.safetensors": None}


def only(files):
    (variant,) = list_variants(Files({"main": files}))
    return variant


def renamed(base, **settings):
    """A GPTQ branch whose weights AutoGPTQ named, beside another quantisation of the model."""
    small, other = small_files(), small_files(GPTQ_BRANCHES[1])
    own = json.dumps({**json.loads(small["quantize_config.json"]), **settings}).encode()
    return {
        **{path: content for path, content in small.items() if path != "model.safetensors"},
        "quantize_config.json": own,
        f"{base}.safetensors": small["model.safetensors"],
        "another.safetensors": other["model.safetensors"],
    }


@pytest.mark.parametrize("base", ["gptq_model-4bit-128g", "codellama.4bit"])
def test_of_two_files_the_one_that_the_settings_name_is_listed(base):
    expected = only(small_files())
    found = only(renamed(base, model_file_base_name=base))
    assert found.refusal is None
    assert (found.weight_bytes, set(found.tensors)) == (
        expected.weight_bytes,
        set(expected.tensors),
    )
    assert "which belong together" in only(renamed("one")).refusal


def test_an_index_left_over_beside_model_safetensors_is_not_followed():
    expected = only(small_files())
    found = only(small_files(**{"model.safetensors.index.json": b'{"weight_map": {"a": "b"}}'}))
    assert (found.refusal, found.weight_bytes) == (None, expected.weight_bytes)


@pytest.fixture(scope="module")
def server():
    with running_hub() as running:
        yield running


@pytest.fixture
def hub(server):
    server.repositories, server.faults, server.latency_s = {}, [], 0.0
    server.requests.clear()
    return server


def test_the_7b_cards_branches_have_its_parameters_and_sizes(hub):
    """Weight bytes follow from the headers alone, and agree with the card's sizes within 3 %."""
    hub.repositories[published.GPTQ_7B] = published.gptq_repository()
    sent = hub.num_bytes_sent
    variants = list_variants(HubFiles(published.GPTQ_7B, endpoint=hub.url))
    assert hub.num_bytes_sent - sent < 10_000_000
    assert [variant.revision for variant in variants] == [b.name for b in GPTQ_BRANCHES]
    for variant, branch in zip(variants, GPTQ_BRANCHES, strict=True):
        base = variant.quantization.base
        assert (base.bits, base.group_size) == (branch.bits, branch.group_size)
        assert variant.quantization.desc_act == branch.desc_act
        assert (variant.damp, variant.dataset, variant.seq_len) == (0.1, "Evol Instruct Code", 8192)
        assert variant.weight_bytes == pytest.approx(float(branch.gigabytes) * 1e9, rel=0.03)
        assert variant.kind is VariantKind.GPTQ
        assert (variant.disagreements, variant.refusal) == ((), None)
        assert variant.config["hidden_size"] == CODELLAMA_7B.hidden
        assert len(variant.tensors) == 3 + 32 * (2 + 7 * 4)


def test_a_sharded_awq_repository_is_one_variant(hub):
    hub.repositories[published.AWQ_70B] = published.awq_repository()
    (variant,) = list_variants(HubFiles(published.AWQ_70B, endpoint=hub.url))
    assert (variant.kind, variant.quantization.base.checkpoint_format) == (VariantKind.AWQ, "gemm")
    assert variant.weight_bytes == pytest.approx(36.61e9, rel=0.01)
    assert (variant.quantization.sym, variant.seq_len, variant.refusal) == (False, 4096, None)


def test_a_dense_repository_loses_what_names_code_and_keeps_its_rope_base(hub):
    hub.repositories[published.FP16_34B] = published.dense_repository()
    (variant,) = list_variants(HubFiles(published.FP16_34B, endpoint=hub.url))
    assert (variant.kind, variant.quantization, variant.refusal) == (VariantKind.DENSE, None, None)
    assert variant.weight_bytes == pytest.approx(67.5e9, rel=0.01)
    assert variant.config["rope_theta"] == 1_000_000
    assert "auto_map" not in variant.config


def test_each_gguf_file_is_a_variant_of_its_own(hub):
    hub.repositories[published.GGUF_13B] = published.gguf_repository()
    variants = list_variants(HubFiles(published.GGUF_13B, endpoint=hub.url))
    assert {v.gguf_type for v in variants} == set(published.GGUF_FILES)
    for variant in variants:
        assert variant.kind is VariantKind.GGUF
        size = float(published.GGUF_FILES[variant.gguf_type])
        assert variant.weight_bytes == pytest.approx(size * 1e9, rel=0.01)
        assert (variant.disagreements, variant.refusal) == ((), None)
        assert variant.config["hidden_size"] == CODELLAMA_13B.hidden
        assert variant.config["rope_parameters"]["rope_theta"] == 1_000_000
        assert variant.spec == f"{published.GGUF_13B}@main/{variant.file}"


def gguf_pieces():
    whole = published.gguf_file(SMALL_256, "Q4_0")
    middle = len(whole.head) + 100
    return whole[:middle], whole[middle : len(whole)]


SMALL_256 = LlamaShape(256, 2, 512, 100, kv_heads=2, heads=4, head_dim=64)


def test_a_gguf_file_in_parts_is_one_variant_named_by_its_first():
    first, second = gguf_pieces()
    variant = only({"m.Q4_0.gguf-split-b": second, "m.Q4_0.gguf-split-a": first})
    assert (variant.file, variant.gguf_type) == ("m.Q4_0.gguf-split-a", "Q4_0")
    assert variant.refusal is None
    whole = only({"m.Q4_0.gguf": first + second})
    assert variant.weight_bytes == whole.weight_bytes


def test_a_part_that_is_missing_is_told():
    first, second = gguf_pieces()
    variant = only({"m.gguf-split-a": first, "m.gguf-split-c": second})
    assert "parts of m.gguf are missing" in variant.refusal
    variant = only({"m-00001-of-00003.gguf": first, "m-00003-of-00003.gguf": second})
    assert "parts of m.gguf are missing" in variant.refusal


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 16, b"ggjt" * 9])
def test_a_damaged_gguf_file_is_refused_and_the_others_listed(content):
    whole = published.gguf_file(SMALL_256, "Q4_0")
    files = {"a.Q4_0.gguf": whole, "b.Q4_0.gguf": content}
    bad, good = list_variants(Files({"main": files}))  # the smaller one first
    assert good.refusal is None
    assert "b.Q4_0.gguf" in bad.refusal
    assert bad.gguf_type == "Q4_0"


def test_a_tag_is_listed_and_its_commit_read_once():
    files = Files({"main": small_files(), "other": small_files()}, tags={"v1": "main"})
    found = {variant.revision: variant for variant in list_variants(files)}
    assert set(found) == {"main", "other", "v1"}
    assert found["v1"].commit == found["main"].commit
    assert found["v1"].weight_bytes == found["main"].weight_bytes
    assert len(files.reads) == len(set(files.reads)) + 1  # the default branch's list, for its card


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model.safetensors": None, "pytorch_model.bin": b"x"}, "can run any code"),
        ({"model.safetensors": None}, "holds no .safetensors file"),
        ({"config.json": None}, "no config.json"),
        ({"config.json": b"{"}, "config.json is not valid JSON"),
        ({"config.json": b"[" * 100_000}, "config.json is not valid JSON"),
        ({"config.json": SparseFile(b"{", 10**9)}, "at most 4000000 are read"),
        ({"config.json": with_config(hidden_size=10**30)}, "hidden_size 1000"),
        ({"config.json": with_config(num_hidden_layers=10**9)}, "from 1 to 4096"),
        ({"config.json": with_config(vocab_size=-1)}, "vocab_size -1"),
        ({"config.json": with_config(num_local_experts=8)}, "a mixture of 8 experts"),
        ({"config.json": with_config(model_type="brand_new")}, "brand_new"),
        ({"quantize_config.json": b'{"bits": 8, "group_size": 32}'}, "bits=8"),
        ({"quantize_config.json": b'{"quant_method": "aqlm"}'}, "aqlm"),
        ({"model.safetensors": struct.pack("<Q", 2**60) + b"{}"}, "claims 1152921504606846976"),
        ({"model.safetensors": SparseFile(struct.pack("<Q", 10**8), 10**9)}, "header of 100000000"),
        ({"model.safetensors": SparseFile(b"\xff" * 8 + b"x" * 50, 10**9)}, "its header claims"),
        ({"model.safetensors": b""}, "truncated"),
        ({"../../outside.json": b"{}"}, "outside.json"),
        (indexed("../x.safetensors"), "outside"),
        (indexed("b.safetensors"), "missing"),
    ],
)
def test_what_cannot_be_loaded_says_why_in_the_loaders_words(changes, reason, hub):
    hub.repositories["someone/model"] = HubRepository({"main": small_files(**changes)})
    (variant,) = list_variants(HubFiles("someone/model", endpoint=hub.url))
    assert reason in variant.refusal
    assert "\n" not in variant.refusal


def test_tensors_that_share_bytes_do_not_add_up_to_a_giant():
    entry = {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}
    text = json.dumps({f"t{number}": entry for number in range(1000)}).encode()
    shard = struct.pack("<Q", len(text)) + text + bytes(8)
    assert "share bytes" in only(small_files(**{"model.safetensors": shard})).refusal


def test_a_header_longer_than_the_first_piece_is_read_to_its_end():
    tensors = published.gptq_tensors(
        LlamaShape(64, 100, 128, 100, kv_heads=2, heads=4, head_dim=16), bits=4, group_size=32
    )
    shard = header_only(tensors)
    assert len(shard.head) > 262_144
    variant = only(small_files(**{"model.safetensors": shard}))
    assert len(variant.tensors) == len(tensors)


def test_one_bad_branch_does_not_hide_the_others():
    good, bad = list_variants(
        Files({"main": small_files(), "bad": small_files(**{"config.json": b"nonsense"})})
    )
    assert good.refusal is None
    assert "config.json" in bad.refusal


def test_an_old_branch_without_settings_is_told_from_its_tensors():
    config = json.loads(with_config())
    del config["quantization_config"]
    variant = only(
        small_files(**{"config.json": json.dumps(config).encode(), "quantize_config.json": None})
    )
    assert (variant.kind, variant.quantization.source) == (VariantKind.GPTQ, "tensors")
    assert variant.refusal is None


CARD = """
| Branch | Bits | GS | Act Order | Damp % | GPTQ Dataset | Seq Len | Size |
| ------ | ---- | -- | --------- | ------ | ------------ | ------- | ---- |
| main | {bits} | {group} | {order} | {damp} | Code | 8192 | {size} |
"""


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"bits": 8}, "the model card says 8 bits, config.json says 4"),
        ({"group": "None"}, "the model card says no groups, config.json says group 32"),
        ({"order": "No"}, "the model card says act order False, config.json says True"),
        ({"damp": 0.01}, "the model card says damp 0.01, config.json says 0.1"),
        ({"size": "3.90 GB"}, "the model card says 3.90 GB, the files hold"),
    ],
)
def test_what_card_and_files_say_differently_is_told(changed, sentence):
    said = {"bits": 4, "group": 32, "order": "Yes", "damp": 0.1, "size": "", **changed}
    variant = only(small_files(**{"README.md": CARD.format(**said).encode()}))
    (found,) = variant.disagreements
    assert found.startswith(sentence)
    assert variant.refusal is None


@pytest.mark.parametrize(("size", "num_told"), [("0.11", 0), ("0.12", 0), ("0.10", 1), ("0.15", 1)])
def test_a_size_may_be_off_by_three_percent_and_by_its_rounding(size, num_told):
    row = ModelCardRow("main", num_bytes=round(float(size) * 1e9))
    assert len(list(disagreement_in_size(row, 114_900_000))) == num_told


def test_a_branch_whose_name_promises_something_else_is_told():
    name = "gptq-8bit-128g-actorder_False"
    (variant,) = list_variants(Files({name: small_files()}))
    assert variant.disagreements == (
        "the branch's name says 8 bits, config.json says 4",
        "the branch's name says group 128, config.json says group 32",
        "the branch's name says act order False, config.json says True",
    )


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_settings_that_the_tensors_contradict_are_told_and_the_tensors_shown(key):
    lie = {"quant_method": "gptq", "bits": 8, "group_size": 128, "desc_act": True, "sym": True}
    config = json.loads(with_config(**{key: lie}))
    if key != "quantization_config":
        del config["quantization_config"]
    files = {"config.json": json.dumps(config).encode(), "quantize_config.json": None}
    (variant,) = list_variants(Files({"gptq-4bit-128g-actorder_True": small_files(**files)}))
    assert variant.refusal is None
    assert str(variant.quantization) == "gptq 4-bit group 32 act-order"
    assert variant.disagreements == (
        "config.json says gptq of 8 bits, group size 128, the tensors are gptq of 4 bits,"
        " group size 32",
        "the branch's name says group 128, the tensors say group 32",
    )


def test_settings_that_cannot_be_true_refuse_a_branch_as_loading_it_would():
    lie = {"quant_method": "gptq", "bits": 4, "group_size": "128g"}
    files = {"config.json": with_config(quantization_config=lie), "quantize_config.json": None}
    assert "group_size='128g', expected a whole number" in only(small_files(**files)).refusal


def test_what_the_card_lists_and_nobody_has_is_told():
    model_card = (
        CARD.format(bits=4, group=32, order="Yes", damp=0.1, size="") + "| lost | 4 | 32 | No |"
    )
    variant = only(small_files(**{"README.md": model_card.encode()}))
    assert variant.disagreements == ("the model card lists lost, which was not found",)


def test_one_branch_alone_is_not_told_of_the_others(hub):
    hub.repositories[published.GPTQ_7B] = published.gptq_repository()
    repository = HubFiles(published.GPTQ_7B, endpoint=hub.url)
    one = repository.find_revision("gptq-8bit-128g-actorder_True")
    (variant,) = list_variants(repository, revisions=[one])
    assert (variant.revision, variant.disagreements) == (one.name, ())
    assert len(hub.requests) <= 8


@pytest.mark.parametrize(
    "model_card", [b"\x89PNG" + bytes(range(256)), b"", b"<html>", b"|" * 1000]
)
def test_a_card_that_is_no_card_changes_nothing(model_card):
    variant = only(small_files(**{"README.md": model_card}))
    assert (variant.model_card, variant.disagreements, variant.refusal) == (None, (), None)


def test_a_card_of_ten_megabytes_is_read_in_part_and_says_so():
    model_card = CARD.format(bits=4, group=32, order="Yes", damp=0.1, size="").encode()
    files = Files({"main": small_files(**{"README.md": model_card + b"words\n" * 1_700_000})})
    with structlog.testing.capture_logs() as logs:
        (variant,) = list_variants(files)
    assert variant.dataset == "Code"
    assert [entry["event"] for entry in logs] == ["card_cut"]


def test_a_folder_and_a_cache_are_listed_as_the_hub_is(tmp_path):
    published.write_files(tmp_path / "model", small_files())
    (in_folder,) = list_variants(FolderFiles(tmp_path / "model"))
    assert (in_folder.spec, in_folder.revision, in_folder.commit) == ("model", None, None)
    published.write_cache(tmp_path, "someone/model", HubRepository({"main": small_files()}))
    (in_cache,) = list_variants(CachedFiles("someone/model", tmp_path))
    assert in_cache.spec == "someone/model:main"
    assert in_cache.tensors == in_folder.tensors
    assert in_cache.quantization == in_folder.quantization


def test_a_hub_that_fails_half_way_is_no_verdict_on_a_branch(hub, quick_retries):
    hub.repositories["someone/model"] = HubRepository({"main": small_files()})
    hub.faults = [Fault("config.json", times=99, status=503)]
    with pytest.raises(HubError, match="status 503"):
        list_variants(HubFiles("someone/model", endpoint=hub.url))
    with pytest.raises(RepositoryNotFoundError):
        list_variants(HubFiles("someone/nothing", endpoint=hub.url))


@pytest.mark.slow
@pytest.mark.alone
def test_thirty_branches_are_read_within_ten_seconds_at_a_latency_of_50_ms(hub):
    """The issue's limit; about 120 answers of 50 ms each, several at a time."""
    branches = {
        f"gptq-4bit-{number}": gptq_files(CODELLAMA_7B, GPTQ_BRANCHES[number % 6])
        for number in range(30)
    }
    hub.repositories["someone/many"] = HubRepository({"main": {}, **branches})
    hub.latency_s, hub.redirects_large_files = 0.05, True
    started = time.monotonic()
    variants = list_variants(HubFiles("someone/many", endpoint=hub.url))
    assert time.monotonic() - started < 10
    assert len([variant for variant in variants if variant.weight_bytes]) == 30
    assert 4 < hub.max_at_once <= 16
    assert len(hub.requests) <= 31 * 5 + 2


def test_nothing_is_written_while_looking(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.chdir(tmp_path)
    hub.repositories["someone/model"] = HubRepository(
        {"main": small_files(**{"../../../../outside": b"x"})}
    )
    list_variants(HubFiles("someone/model", endpoint=hub.url))
    assert list(tmp_path.iterdir()) == []


def test_a_clone_whose_weights_were_not_fetched_is_known_by_its_pointers(tmp_path):
    files = small_files()
    size = len(files["model.safetensors"])
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize {size}\n"
    published.write_files(tmp_path, {**files, "model.safetensors": pointer.encode()})
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "--quiet", "-b", "main"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run(["git", *identity, "-C", str(tmp_path), *arguments], check=True)
    (variant,) = list_variants(CloneFiles(tmp_path))
    assert (variant.revision, variant.weight_bytes) == ("main", size)
    assert "git lfs pull" in variant.refusal
    assert variant.kind is VariantKind.GPTQ


def test_a_repository_without_branches_offers_nothing():
    assert list_variants(Files({})) == []


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["a.Q4_K_M.gguf", "b.gguf", "readme.md"], [("a.Q4_K_M.gguf", 1), ("b.gguf", 1)]),
        (["a.gguf-split-b", "a.gguf-split-a"], [("a.gguf", 2)]),
        (["a.gguf", "a.gguf-split-a", "a.gguf-split-b"], [("a.gguf", 1), ("a.gguf", 2)]),
        (["q/a-00002-of-00002.gguf", "q/a-00001-of-00002.gguf"], [("q/a.gguf", 2)]),
    ],
)
def test_parts_of_a_file_are_one(paths, expected):
    found = group_parts(paths)
    assert sorted((parts.name, len(parts.paths)) for parts in found) == expected
    for parts in found:
        parts.check_complete()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("codellama-13b.Q4_K_M.gguf", "Q4_K_M"),
        ("model-q8_0.gguf", "Q8_0"),
        ("Qwen2-7B-IQ2_XS.gguf", "IQ2_XS"),
        ("model-f16.gguf", "F16"),
        ("plain.gguf", None),
    ],
)
def test_a_files_name_tells_its_type(name, kind):
    (parts,) = group_parts([name])
    assert parts.type_in_name == kind


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 401}, {"cut_after": 5}], ids=str)
@pytest.mark.parametrize("named", [False, True])
def test_a_hub_that_fails_half_way_is_replaced_by_the_cache(
    hub, fault, named, tmp_path, monkeypatch, quick_retries
):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    old, new = HubRepository({"main": small_files()}), {**small_files(), "more.json": b"{}"}
    hub.repositories["someone/model"] = HubRepository({"main": new, "other": new})
    hub.faults = [Fault("config.json", times=999, **fault)]
    spec = parse_spec("someone/model:main" if named else "someone/model")
    with pytest.raises((HubError, RepositoryNotFoundError)):
        find_variants(spec, cache_dir=tmp_path)
    published.write_cache(tmp_path, "someone/model", old)
    with structlog.testing.capture_logs() as logs:
        (found,) = find_variants(spec, cache_dir=tmp_path)
    assert (found.revision, found.commit) == ("main", old.commit_of("main"))
    assert found.refusal is None
    assert "hub_unreachable" in [entry["event"] for entry in logs]
    with pytest.raises((HubError, RepositoryNotFoundError)):
        find_variants(parse_spec("someone/model:other"), cache_dir=tmp_path)
