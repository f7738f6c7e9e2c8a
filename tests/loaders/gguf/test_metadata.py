"""Numbers of a GGUF file's settings, one for all layers or listed for each."""

import pytest

from loaders.errors import CheckpointError, UnsupportedModelError
from loaders.gguf.metadata import Settings


def settings(value):
    return Settings({"general.architecture": "llama", "llama.heads": value})


@pytest.mark.parametrize("value", [8, (8, 8, 8)])
def test_a_number_may_be_listed_for_every_layer(value):
    assert settings(value).whole_of_every_layer("heads", 64, 3) == 8


@pytest.mark.parametrize(
    ("value", "kind", "problem"),
    [
        ((8, 8), CheckpointError, "heads lists 2 layers, expected 3"),
        ((8, 4, 8), UnsupportedModelError, r"differ in llama\.heads \(\(8, 4, 8\)\)"),
        ((0, 0, 0), CheckpointError, "expected a whole number from 1 to 64"),
        (("8",) * 3, CheckpointError, "expected a whole number"),
        (65, CheckpointError, "heads is 65, expected a whole number from 1 to 64"),
        (True, CheckpointError, "heads is True"),
    ],
)
def test_what_no_model_of_transformers_can_have_is_refused(value, kind, problem):
    with pytest.raises(kind, match=problem):
        settings(value).whole_of_every_layer("heads", 64, 3)


def test_a_real_number_is_the_shortest_that_rounds_to_what_is_stored():
    assert settings(9.999999974752427e-07).real("heads") == 1e-6
    assert settings(10_000).real("heads") == 10_000.0
