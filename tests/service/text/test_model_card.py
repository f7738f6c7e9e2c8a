"""Model cards, as they were published and as they were damaged since."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.text.model_card import ModelCard, parse_card

CARDS = Path(__file__).parents[3].parent / "shared" / "cards"

CARD = """---
base_model: codellama/CodeLlama-70b-Instruct-hf
model_name: Codellama 70B Instruct
prompt_template: "Source: system\\n\\n  {system_message}<step> Source: user\\n\\n  {prompt}\\
  \\ <step> Source: assistant\\n   \\n"
tags:
- llama-2
---
<!-- header -->
# Codellama 70B Instruct - AWQ

## Prompt template: CodeLlama-70B-Instruct

```
Source: system

  {system_message}<step> Source: user
```

<!-- prompt-template end -->
## Provided files
| Branch | Bits |
| ------ | ---- |
"""


def card(number: str) -> ModelCard:
    found = list(CARDS.glob(f"{number}_*.txt"))
    if not found:
        pytest.skip("no cards in the folder beside the checkout")
    return parse_card(found[0].read_text())


def test_a_card_tells_names_and_template():
    assert parse_card(CARD) == ModelCard(
        model_name="Codellama 70B Instruct",
        base_model="codellama/CodeLlama-70b-Instruct-hf",
        template_name="CodeLlama-70B-Instruct",
        template_text=(
            "Source: system\n\n  {system_message}<step> Source: user\n\n  {prompt} <step> Source: "
            "assistant\n   \n"
        ),
    )


def test_without_front_matter_the_block_under_the_heading_counts():
    found = parse_card(CARD.split("---\n", 2)[2])
    assert found.template_text == "Source: system\n\n  {system_message}<step> Source: user"
    assert found.model_name is None


def test_a_bar_after_every_line_is_mended():
    barred = "|\n" + "".join(f"{line} |\n|\n" if line else "|\n|\n" for line in CARD.splitlines())
    assert parse_card(barred) == parse_card(CARD)


def test_lost_newlines_leave_names_and_block():
    found = parse_card(" ".join(CARD.split()))
    assert found.model_name == "Codellama 70B Instruct"
    assert found.base_model == "codellama/CodeLlama-70b-Instruct-hf"
    assert found.template_name == "CodeLlama-70B-Instruct"
    assert "{system_message}<step>" in (found.template_text or "")


@pytest.mark.parametrize("ending", ["\r\n", "\n"])
def test_line_endings_and_byte_order_marks_do_not_matter(ending):
    assert parse_card("\ufeff" + CARD.replace("\n", ending)) == parse_card(CARD)


@pytest.mark.parametrize("text", ["", "---", "---\n", "--- ---", "## Prompt template:", "|\n|\n|"])
def test_a_card_without_anything_tells_nothing(text):
    assert parse_card(text) == ModelCard()


def test_a_template_to_be_decided_is_none():
    assert parse_card("# X\n\n## Prompt template: TBC\n\n## More").template_name is None


@given(st.text())
def test_any_text_is_read_without_complaint(text):
    parse_card(text)
    parse_card(f"---\n{text}\n---\n## Prompt template: {text}")


@pytest.mark.parametrize(
    "text",
    [
        "---\n" + "[" * 100_000 + "\n---\n",
        "---\na: &a [x]\n" + "".join(f"b{n}: &b{n} [*a, *a]\n" for n in range(2000)) + "---\n",
        "## Prompt template: " + " " * 500_000 + "|",
        "|\n" * 500_000,
        "---\n" + "model_name: " * 50_000,
        "```" * 300_000,
    ],
)
def test_time_is_bounded_for_cards_made_to_take_long(text):
    start = time.process_time()
    parse_card(text)
    assert time.process_time() - start < 3


def test_the_card_of_codellama_7b_instruct():
    found = card("000")
    assert (found.model_name, found.template_name) == ("CodeLlama 7B Instruct", "CodeLlama")
    assert (found.template_text or "").endswith("using ```:\n{prompt}\n[/INST]")


def test_the_card_of_codellama_13b_python_without_newlines():
    found = card("001")
    assert (found.model_name, found.template_name) == ("CodeLlama 13B Python", "CodeLlama")
    assert "[/INST]" in (found.template_text or "")


@pytest.mark.parametrize("number", ["002", "003"])
def test_the_cards_of_codellama_70b_instruct_with_and_without_bars(number):
    found = card(number)
    assert found.model_name == "Codellama 70B Instruct"
    assert found.base_model == "codellama/CodeLlama-70b-Instruct-hf"
    assert found.template_name == "CodeLlama-70B-Instruct"
    assert "<step> Source: user" in (found.template_text or "")


def test_the_card_of_codellama_34b_fp16():
    assert card("004") == ModelCard()
