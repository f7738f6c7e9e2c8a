"""Where the key comes from, and where it is not sent."""

from __future__ import annotations

import pytest

from service.client.errors import WrongQuestionError
from service.client.key import find_key

HERE = "http://127.0.0.1:8000/v1"


@pytest.fixture
def files(tmp_path):
    for name in ("option", "variable"):
        (tmp_path / name).write_text(f"from-{name}-file\n")
    return tmp_path


def test_the_nearest_place_wins(files):
    everything = {
        "TETRAD_API_KEY": "from-variable",
        "TETRAD_API_KEY_FILE": str(files / "variable"),
        "OPENAI_API_KEY": "from-openai",
    }
    assert find_key(files / "option", everything, HERE) == "from-option-file"
    found = []
    for name in list(everything):
        found.append(find_key(None, everything, HERE))
        del everything[name]
    assert found == ["from-variable", "from-variable-file", "from-openai"]
    assert find_key(None, everything, HERE) is None


def test_empty_variables_are_absent():
    names = ("TETRAD_API_KEY", "TETRAD_API_KEY_FILE", "OPENAI_API_KEY")
    assert find_key(None, dict.fromkeys(names, ""), HERE) is None


@pytest.mark.parametrize(
    ("url", "is_sent"),
    [(HERE, True), ("https://api.example.org/v1", True), ("http://10.0.0.1:8000/v1", False)],
)
def test_openais_key_crosses_no_network_in_plain_text(url, is_sent):
    assert find_key(None, {"OPENAI_API_KEY": "sk-x"}, url) == ("sk-x" if is_sent else None)
    assert find_key(None, {"TETRAD_API_KEY": "sk-y"}, url) == "sk-y"


@pytest.mark.parametrize("content", ["", "two words", "schlüssel", "a\nb"])
def test_what_is_no_key_is_refused_and_not_repeated(tmp_path, content):
    (tmp_path / "key").write_text(content)
    with pytest.raises(WrongQuestionError, match="holds no") as caught:
        find_key(tmp_path / "key", {}, HERE)
    assert not content or content not in str(caught.value)
    if content:
        with pytest.raises(WrongQuestionError, match="TETRAD_API_KEY holds no usable key"):
            find_key(None, {"TETRAD_API_KEY": content}, HERE)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(WrongQuestionError, match="none-such"):
        find_key(tmp_path / "none-such", {}, HERE)
