import pytest

from loaders.errors import CheckpointError
from loaders.quantization.setting_values import boolean, read_values, whole_number


@pytest.mark.parametrize("value", [4, "4", " 4 ", 4.0])
def test_whole_numbers_are_read_however_they_are_written(value):
    assert whole_number("bits", value, "x") == 4


def test_a_negative_number_may_be_text():
    assert whole_number("group_size", "-1", "x") == -1


@pytest.mark.parametrize("value", [True, 4.5, "4.5", "four", "128g", [4], float("inf"), "٤x"])
def test_what_is_no_whole_number_is_refused_with_its_name_and_value(value):
    with pytest.raises(CheckpointError, match=r"config\.json says bits=.*whole number"):
        whole_number("bits", value, "config.json")


@pytest.mark.parametrize(
    ("value", "meaning"),
    [(True, True), ("True", True), ("false", False), (1, True), (0, False), ("0", False)],
)
def test_booleans_are_read_however_they_are_written(value, meaning):
    assert boolean("sym", value, "x") is meaning


@pytest.mark.parametrize("value", ["maybe", 2, 1.0, [], {"a": 1}])
def test_what_is_no_boolean_is_refused_with_its_name_and_value(value):
    with pytest.raises(CheckpointError, match=r"x says sym=.*true or false"):
        boolean("sym", value, "x")


@pytest.mark.parametrize("nothing", [None, "None", "null", "", " none "])
def test_what_says_nothing_is_left_out(nothing):
    assert read_values({"group_size": nothing, "sym": "true"}, "x") == {"sym": True}


def test_other_words_for_a_setting_get_its_usual_name():
    assert read_values({"w_bit": "4", "q_group_size": 128}, "x") == {"bits": 4, "group_size": 128}


def test_two_words_for_a_setting_must_agree():
    assert read_values({"w_bit": 4, "bits": "4"}, "x") == {"bits": 4}
    with pytest.raises(CheckpointError, match="x says bits twice, 8 and w_bit=4"):
        read_values({"bits": 8, "w_bit": 4}, "x")


def test_settings_of_other_names_are_left_as_they_are():
    assert read_values({"damp_percent": "0.1", "dataset": [1]}, "x") == {
        "damp_percent": "0.1",
        "dataset": [1],
    }


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(CheckpointError) as raised:
        read_values({"bits": "x" * 10_000}, "x")
    assert len(str(raised.value)) < 200
