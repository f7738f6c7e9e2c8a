"""The API's composition root: what is refused before anything starts, and what is not loaded."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from service.app import batch_keeper, make_variants, resolve_served_name
from service.errors import SettingsError
from service.settings import Settings, load_settings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("variant", "message"),
    [("./no-such-folder", "no folder"), ("x/y/z:main", "x/y/z"), (" ", "empty")],
)
def test_names_that_cannot_be_right_are_refused_before_loading(variant, message):
    with pytest.raises(SettingsError, match=message):
        make_variants(Settings(variant=variant))
    with pytest.raises(SettingsError, match=message):
        make_variants(Settings(variant="a/b", also=[{"variant": variant}]))


@pytest.mark.parametrize("variant", ["owner/name", "owner/name:branch", "owner/name@0123abc"])
def test_variant_is_served_as_it_was_named(variant):
    assert resolve_served_name(Settings(variant=variant)) == variant
    assert resolve_served_name(Settings(variant=variant, served_model_name="mine")) == "mine"


def test_folder_is_served_without_its_path(tmp_path: Path):
    assert resolve_served_name(Settings(variant=str(tmp_path))) == tmp_path.name


def test_demo_has_a_short_name():
    assert resolve_served_name(Settings()) == "demo"
    assert resolve_served_name(Settings(variant="demo")) == "demo"
    assert resolve_served_name(Settings(served_model_name="mine")) == "mine"


def test_several_variants_have_names_and_rules_of_their_own():
    entry = {"variant": "c/d", "on_demand": True, "idle_unload_s": 60}
    settings = load_settings({"variant": "a/b", "also": ["small=a/b:x", entry]}, None)
    variants = make_variants(settings)
    assert [variant.name for variant in variants] == ["a/b", "small", "c/d"]
    assert [variant.rules.is_on_demand for variant in variants] == [False, False, True]
    assert [variant.rules.idle_unload_s for variant in variants] == [None, None, 60]


def test_two_variants_cannot_share_a_name():
    with pytest.raises(SettingsError, match="two variants are served as 'a/b'"):
        make_variants(Settings(variant="a/b", also=["a/b"]))


def test_a_name_that_one_variant_has_twice_is_not_called_two_variants():
    for aliases in (["a", "a"], ["a/b"]):
        with pytest.raises(SettingsError, match=f"'a/b' has the name '{aliases[0]}' twice"):
            make_variants(Settings(variant="a/b", aliases=aliases))


def test_a_chat_template_is_of_one_variant(tmp_path: Path):
    """Of another model it would be wrong, so further variants have their own."""
    template = tmp_path / "mine.jinja"
    template.write_text("{{ messages }}")
    entry = {"variant": "c/d", "chat_template": "chatml"}
    settings = Settings(variant="a/b", chat_template=str(template), also=["e/f", entry])
    assert [one.chat_template for one in settings.variants()] == [str(template), None, "chatml"]
    assert len(make_variants(settings)) == 3


def test_an_order_around_gaps_is_of_one_variant():
    """Of another family it would be wrong, so further variants have their own."""
    entry = {"variant": "c/d", "infill_order": "psm"}
    settings = Settings(variant="a/b", infill_order="spm", also=["e/f", entry])
    assert [one.infill_order for one in settings.variants()] == ["spm", "auto", "psm"]
    assert [one._source._infill_order for one in make_variants(settings)] == ["spm", None, "psm"]


def test_a_chat_template_that_cannot_be_read_is_told_before_loading(tmp_path: Path):
    missing = str(tmp_path / "missing.jinja")
    for named in (
        {"chat_template": missing},
        {"also": [{"variant": "c", "chat_template": missing}]},
    ):
        with pytest.raises(SettingsError, match=r"chat_template: cannot read .*missing\.jinja"):
            make_variants(Settings(variant="a/b", **named))


def test_api_process_brings_in_nothing_that_computes_with_weights():
    """It takes hundreds of megabytes and seconds, and one process more would hold a device."""
    code = "import service.app, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({}, 1001),
        ({"api_key": "sk-team"}, 501),
        ({"max_files_size_per_caller": 70}, 70),
        ({"max_files_size_per_caller": 70, "api_key": "sk-team"}, 70),
    ],
)
def test_a_caller_may_fill_half_of_the_room_for_files_where_there_are_keys(settings, share):
    limits = batch_keeper(Settings(variant="demo", max_files_size=1001, **settings)).limits
    assert (limits.max_files_bytes, limits.max_files_bytes_per_caller) == (1001, share)


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({}, 5),
        ({"api_key": "sk-team"}, 3),
        ({"max_open_batches_per_caller": 4, "api_key": "sk-team"}, 4),
    ],
)
def test_a_caller_may_have_half_of_the_open_batches_where_there_are_keys(settings, share):
    limits = batch_keeper(Settings(variant="demo", max_open_batches=5, **settings)).limits
    assert (limits.max_open_batches, limits.max_open_batches_per_caller) == (5, share)
