"""A dialogue's turns alternate, and can be kept."""

from __future__ import annotations

import json
import stat

import pytest

from service.client.errors import WrongQuestionError
from service.commands.conversation.dialogue import Dialogue


@pytest.fixture
def dialogue():
    dialogue = Dialogue("Be brief.")
    dialogue.ask("Größe?")
    dialogue.answer("42")
    return dialogue


MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Größe?"},
    {"role": "assistant", "content": "42"},
]


def test_the_system_prompt_comes_first_if_there_is_one(dialogue):
    assert dialogue.messages() == MESSAGES
    dialogue.system = None
    assert dialogue.messages() == MESSAGES[1:]


def test_a_question_without_an_answer_goes(dialogue):
    dialogue.ask("And?")
    dialogue.answer("")
    assert dialogue.messages() == MESSAGES


def test_it_is_saved_as_json_or_as_markdown_for_the_user_alone(dialogue, tmp_path):
    dialogue.save(tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == {"messages": MESSAGES}
    dialogue.save(tmp_path / "a.md")
    assert (tmp_path / "a.md").read_text() == (
        "## System\n\nBe brief.\n\n## You\n\nGröße?\n\n## Answer\n\n42\n"
    )
    assert stat.S_IMODE((tmp_path / "a.md").stat().st_mode) == 0o600


def test_no_file_is_written_over(dialogue, tmp_path):
    (tmp_path / "a.md").write_text("mine")
    with pytest.raises(WrongQuestionError, match=r"a\.md cannot be written: File exists"):
        dialogue.save(tmp_path / "a.md")
    assert (tmp_path / "a.md").read_text() == "mine"
    with pytest.raises(WrongQuestionError, match="No such file"):
        dialogue.save(tmp_path / "none" / "a.md")
