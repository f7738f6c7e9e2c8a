"""Which files hold the weights, by names that published repositories have."""

from __future__ import annotations

import pytest

from loaders.checkpoint.weight_files import INDEX_FILE, choose_weight_files
from loaders.errors import CheckpointError, UnsafeCheckpointError

GPTQ = "gptq_model-4bit-128g"
OTHER = "gptq_model-4bit-32g"


def choose(*names, files=None):
    """Choose among names; files: the content of the small ones that have any."""
    content = {**{name: {} for name in names}, **(files or {})}
    return choose_weight_files(names, content.__getitem__, where="the folder").shards


def parts(base, count=2, separator="-"):
    return tuple(f"{base}{separator}{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1))


def index_of(*shards):
    return {"weight_map": {f"tensor{n}": shard for n, shard in enumerate(shards)}}


@pytest.mark.parametrize("key", ["model_file_base_name", "model_basename"])
@pytest.mark.parametrize("named", [GPTQ, f"{GPTQ}.safetensors", OTHER])
def test_of_two_files_the_settings_name_theirs(key, named):
    names = (f"{GPTQ}.safetensors", f"{OTHER}.safetensors", "quantize_config.json")
    expected = f"{named.removesuffix('.safetensors')}.safetensors"
    assert choose(*names, files={"quantize_config.json": {key: named}}) == (expected,)


def test_the_settings_in_config_json_name_a_file_too():
    names = (f"{GPTQ}.safetensors", f"{OTHER}.safetensors", "config.json")
    settings = {"quantization_config": {"model_file_base_name": OTHER}}
    assert choose(*names, files={"config.json": settings}) == (f"{OTHER}.safetensors",)


def test_a_named_file_wins_over_model_safetensors():
    names = ("model.safetensors", f"{GPTQ}.safetensors", "quantize_config.json")
    assert (
        choose(*names, files={"quantize_config.json": {"model_file_base_name": GPTQ}}) == names[1:2]
    )


@pytest.mark.parametrize("settings", [{}, {"model_file_base_name": "gone"}, {"bits": 4}])
def test_model_safetensors_wins_where_nothing_else_is_named(settings):
    names = ("model.safetensors", f"{GPTQ}.safetensors", "quantize_config.json")
    assert choose(*names, files={"quantize_config.json": settings}) == names[:1]


def test_unnamed_files_are_found_by_autogptqs_own_name():
    names = (f"{GPTQ}.safetensors", f"{OTHER}.safetensors", "quantize_config.json")
    settings = {"bits": 4, "group_size": 32}
    assert choose(*names, files={"quantize_config.json": settings}) == (f"{OTHER}.safetensors",)


@pytest.mark.parametrize("whole", ["model.safetensors", f"{GPTQ}.safetensors"])
@pytest.mark.parametrize("shards", [parts("model"), parts("model", 7)])
def test_an_index_without_its_shards_was_left_over(whole, shards):
    assert choose(whole, INDEX_FILE, files={INDEX_FILE: index_of(*shards)}) == (whole,)


def test_model_safetensors_wins_over_an_index_whose_shards_are_there():
    shards = parts("model")
    assert choose(
        "model.safetensors", INDEX_FILE, *shards, files={INDEX_FILE: index_of(*shards)}
    ) == ("model.safetensors",)


def test_an_index_of_the_quantisers_own_name_names_its_shards():
    index, shards = f"{GPTQ}.safetensors.index.json", parts(GPTQ, 3)
    assert choose(index, *shards, files={index: index_of(*shards)}) == shards
    elsewhere = ("one.safetensors", "two.safetensors")
    assert choose(index, *elsewhere, files={index: index_of(*elsewhere)}) == elsewhere


def test_of_two_sets_of_shards_the_settings_name_theirs():
    files = {"quantize_config.json": {"model_file_base_name": GPTQ}}
    for base in (GPTQ, "model"):
        files[f"{base}.safetensors.index.json"] = index_of(*parts(base))
    assert choose(*parts(GPTQ), *parts("model"), *files, files=files) == parts(GPTQ)


@pytest.mark.parametrize("base", ["model", GPTQ, "codellama-7b.4bit", "model.safetensors"])
@pytest.mark.parametrize("separator", ["-", "_", "."])
@pytest.mark.parametrize("count", [1, 2, 11])
def test_shards_without_an_index_are_taken_where_all_are_there(base, separator, count):
    shards = parts(base, count, separator)
    assert choose("config.json", *reversed(shards)) == shards


def test_a_shard_that_is_missing_from_its_set_is_named():
    with pytest.raises(CheckpointError, match=r"lacks 1 of the 3 shards .*model-00002-of-00003"):
        choose(*(name for name in parts("model", 3) if "00002" not in name))


def test_two_sets_of_one_name_are_refused():
    with pytest.raises(CheckpointError, match="which belong together"):
        choose(*parts("model", 2), *parts("model", 3))


def test_shards_are_taken_where_the_index_names_those_of_another_revision():
    old = index_of(*parts("model", 5))
    assert choose(INDEX_FILE, *parts("model", 2), files={INDEX_FILE: old}) == parts("model", 2)


@pytest.mark.parametrize("aside", ["consolidated.safetensors", "adapter_model.safetensors"])
def test_files_of_another_kind_beside_the_weights_do_no_harm(aside):
    assert choose(aside, f"{GPTQ}.safetensors") == (f"{GPTQ}.safetensors",)
    assert choose(aside, *parts("model")) == parts("model")
    assert choose(aside, *parts("consolidated"), "model.safetensors") == ("model.safetensors",)


def test_an_adapter_alone_is_refused_as_one():
    with pytest.raises(CheckpointError, match="an adapter"):
        choose("adapter_model.safetensors", "adapter_config.json")


def test_an_index_of_pickles_beside_safetensors_is_never_opened():
    names = ("pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin")
    files = {names[0]: index_of("../outside.bin")}
    assert choose(*names, f"{GPTQ}.safetensors", files=files) == (f"{GPTQ}.safetensors",)


def test_files_that_nothing_tells_apart_are_refused():
    with pytest.raises(CheckpointError, match="which belong together") as refused:
        choose(f"{GPTQ}.safetensors", f"{OTHER}.safetensors", "quantize_config.json")
    assert "model_file_base_name" in str(refused.value)


def test_a_name_in_the_settings_only_chooses_among_the_files_there():
    files = {"quantize_config.json": {"model_file_base_name": "../../etc/secret"}}
    names = (f"{GPTQ}.safetensors", "model.safetensors", "quantize_config.json")
    assert choose(*names, files=files) == ("model.safetensors",)


def test_an_index_that_leaves_the_folder_is_refused_under_any_name():
    index = f"{GPTQ}.safetensors.index.json"
    with pytest.raises(UnsafeCheckpointError, match="outside"):
        choose(index, *parts(GPTQ), files={index: index_of("../x.safetensors")})


def test_a_missing_shard_is_named_with_the_index_that_names_it():
    index, shards = f"{GPTQ}.safetensors.index.json", parts(GPTQ)
    with pytest.raises(CheckpointError, match=f"shard {shards[1]} is missing .*{index}"):
        choose(index, shards[0], files={index: index_of(*shards)})
