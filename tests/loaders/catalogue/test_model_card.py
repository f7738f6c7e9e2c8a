"""Model cards, as they were published and as they were damaged since."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders.catalogue.model_card import ModelCard, parse_model_card, read_model_card
from loaders.catalogue.model_card_table import ModelCardRow
from tests.published import GGUF_FILES, GPTQ_BRANCHES

GPU_MODELS = Path(__file__).parents[3].parent / "shared" / "cards"

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


def model_card(number: str) -> ModelCard:
    found = list(GPU_MODELS.glob(f"{number}_*.txt"))
    if not found:
        pytest.skip("no cards in the folder beside the checkout")
    return parse_model_card(found[0].read_text())


def test_a_card_tells_names_and_template():
    assert parse_model_card(CARD) == ModelCard(
        model_name="Codellama 70B Instruct",
        base_model="codellama/CodeLlama-70b-Instruct-hf",
        template_name="CodeLlama-70B-Instruct",
        template_text=(
            "Source: system\n\n  {system_message}<step> Source: user\n\n  {prompt} <step> Source: "
            "assistant\n   \n"
        ),
    )


def test_without_front_matter_the_block_under_the_heading_counts():
    found = parse_model_card(CARD.split("---\n", 2)[2])
    assert found.template_text == "Source: system\n\n  {system_message}<step> Source: user"
    assert found.model_name is None


def test_a_bar_after_every_line_is_mended():
    barred = "|\n" + "".join(f"{line} |\n|\n" if line else "|\n|\n" for line in CARD.splitlines())
    assert parse_model_card(barred) == parse_model_card(CARD)


def test_lost_newlines_leave_names_and_block():
    found = parse_model_card(" ".join(CARD.split()))
    assert found.model_name == "Codellama 70B Instruct"
    assert found.base_model == "codellama/CodeLlama-70b-Instruct-hf"
    assert found.template_name == "CodeLlama-70B-Instruct"
    assert "{system_message}<step>" in (found.template_text or "")


@pytest.mark.parametrize("ending", ["\r\n", "\n"])
def test_line_endings_and_byte_order_marks_do_not_matter(ending):
    assert parse_model_card("\ufeff" + CARD.replace("\n", ending)) == parse_model_card(CARD)


@pytest.mark.parametrize("text", ["", "---", "---\n", "--- ---", "## Prompt template:", "|\n|\n|"])
def test_a_card_without_anything_tells_nothing(text):
    assert parse_model_card(text) == ModelCard()


def test_a_template_to_be_decided_is_none():
    assert parse_model_card("# X\n\n## Prompt template: TBC\n\n## More").template_name is None


@given(st.text())
def test_any_text_is_read_without_complaint(text):
    parse_model_card(text)
    parse_model_card(f"---\n{text}\n---\n## Prompt template: {text}")


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
    parse_model_card(text)
    assert time.process_time() - start < 3


def test_the_card_of_codellama_7b_instruct():
    found = model_card("000")
    assert (found.model_name, found.template_name) == ("CodeLlama 7B Instruct", "CodeLlama")
    assert (found.template_text or "").endswith("using ```:\n{prompt}\n[/INST]")


def test_the_card_of_codellama_13b_python_without_newlines():
    found = model_card("001")
    assert (found.model_name, found.template_name) == ("CodeLlama 13B Python", "CodeLlama")
    assert "[/INST]" in (found.template_text or "")


@pytest.mark.parametrize("number", ["002", "003"])
def test_the_cards_of_codellama_70b_instruct_with_and_without_bars(number):
    found = model_card(number)
    assert found.model_name == "Codellama 70B Instruct"
    assert found.base_model == "codellama/CodeLlama-70b-Instruct-hf"
    assert found.template_name == "CodeLlama-70B-Instruct"
    assert "<step> Source: user" in (found.template_text or "")


def test_the_card_of_codellama_34b_fp16():
    assert model_card("004") == ModelCard()


GPTQ_TABLE = """
| Branch | Bits | GS | Act Order | Damp % | GPTQ Dataset | Seq Len | Size | ExLlama | Desc |
| ------ | ---- | -- | --------- | ------ | ------------ | ------- | ---- | ------- | ---- |
| [main](https://example.org/a/b/tree/main) | 4 | 128 | No | 0.1 | [Code](https://e.org/x) | 8192 \
| 3.90 GB | Yes | Compatible. |
| gptq-8bit--1g-actorder_True | 8 | None | Yes | 0.01 | Code | 4096 | 7.01 GB | No | Slow. |

| Model | MMLU | GSM8K |
| ----- | ---- | ----- |
| main | 1 | 2 |
"""
GGUF_TABLE = """
| Name | Quant method | Bits | Size | Max RAM required | Use case |
| ---- | ---- | ---- | ---- | ---- | ----- |
| [a.Q2_K.gguf](https://e.org/a.Q2_K.gguf) | Q2_K | 2 | 5.43 GB| 7.93 GB | smallest |
| a.Q8_0.gguf | Q8_0 | 8 | 13.79 GB| 16.29 GB | largest |

**Note**: words
"""
GPTQ_ROWS = (
    ModelCardRow("main", 4, 128, False, 0.1, "Code", 8192, 3_900_000_000, None, "Compatible."),
    ModelCardRow(
        "gptq-8bit--1g-actorder_True", 8, -1, True, 0.01, "Code", 4096, 7_010_000_000,
        description="Slow.",
    ),
)  # fmt: skip


def gguf_row(kind, bits, size, description):
    return ModelCardRow(
        f"a.{kind}.gguf", bits=bits, num_bytes=size, quant_method=kind, description=description
    )


GGUF_ROWS = (
    gguf_row("Q2_K", 2, 5_430_000_000, "smallest"),
    gguf_row("Q8_0", 8, 13_790_000_000, "largest"),
)


def test_the_table_of_branches_is_read():
    assert parse_model_card(GPTQ_TABLE).rows == GPTQ_ROWS


def test_the_table_of_files_is_read():
    assert parse_model_card(GGUF_TABLE).rows == GGUF_ROWS


def test_a_table_with_other_titles_is_read_by_their_meaning():
    table = "Filename | Quant type | File Size\n--- | --- | ---\nx.gguf | Q4_K_M | 512.5MB\n"
    (row,) = parse_model_card(table).rows
    assert (row.name, row.quant_method, row.num_bytes) == ("x.gguf", "Q4_K_M", 512_500_000)


@pytest.mark.parametrize("table", [GPTQ_TABLE, GGUF_TABLE])
def test_a_table_survives_lost_newlines_and_a_bar_after_every_line(table):
    rows = parse_model_card(table).rows
    assert parse_model_card(" ".join(table.split())).rows == rows
    barred = "|\n" + "".join(f"{line} |\n|\n" if line else "|\n|\n" for line in table.splitlines())
    assert parse_model_card(barred).rows == rows


def test_what_a_cell_says_never_reaches_a_terminal_raw():
    table = GGUF_TABLE.replace("smallest", "a\x1b[2Jb\u202ec")
    assert all(row.description.isprintable() for row in parse_model_card(table).rows)


@pytest.mark.parametrize("cell", ["", "many", "1e99", "9" * 500, "-3", "None"])
def test_a_cell_that_makes_no_sense_says_nothing(cell):
    table = GPTQ_TABLE.replace("| 4 | 128 |", f"| 4 | {cell} |")
    row = parse_model_card(table).rows[0]
    assert row.bits == 4
    assert row.group_size is None or -1 <= row.group_size < 10**9


@pytest.mark.parametrize(
    "text",
    [
        GPTQ_TABLE.strip().splitlines()[0] + "\n" + "| x | 4 | 32 " * 200_000,
        (GPTQ_TABLE.strip().splitlines()[0] + "\n") * 20_000,
        "| Branch | Bits | GS | Size " * 80_000,
        "\n".join("| " + "[" * 50 + " | 4 | 32 | Yes |" for _ in range(20_000)),
        GPTQ_TABLE.strip().splitlines()[0] + "\n" + f"| {'[' * 1_000_000} | 4 | 32 |\n",
        "|" * 2_000_000,
        "\n| a" * 500_000,
    ],
)
def test_time_is_bounded_for_tables_made_to_take_long(text):
    start = time.process_time()
    model_card = parse_model_card(text)
    assert time.process_time() - start < 3
    assert len(model_card.rows) <= 1000


def test_a_card_of_ten_megabytes_is_cut_and_says_so():
    long = (CARD + GPTQ_TABLE).encode() + b"words \xff\xfe\n" * 1_100_000
    start = time.process_time()
    model_card = read_model_card(long)
    assert time.process_time() - start < 3
    assert model_card.rows == GPTQ_ROWS
    assert "the rest of it was not read" in model_card.remarks[0]
    assert read_model_card(CARD.encode()).remarks == ()


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n" + bytes(range(256)) * 50, b"{}", b"<html>"]
)
def test_what_is_no_card_tells_nothing_and_does_not_fail(content):
    assert read_model_card(content) == ModelCard()


@given(st.binary(max_size=2000))
def test_any_bytes_are_read_without_complaint(content):
    read_model_card(content)
    read_model_card(GPTQ_TABLE.encode() + b"| " + content + b" | " + content)


def test_the_table_of_the_7b_gptq_card_is_as_published():
    rows = {row.name: row for row in model_card("000").rows}
    assert list(rows) == [branch.name for branch in GPTQ_BRANCHES]
    for branch in GPTQ_BRANCHES:
        row = rows[branch.name]
        assert (row.bits, row.group_size, row.desc_act) == (
            branch.bits,
            branch.group_size,
            branch.desc_act,
        )
        assert (row.damp, row.dataset, row.seq_len) == (0.1, "Evol Instruct Code", 8192)
        assert row.num_bytes == round(float(branch.gigabytes) * 1e9)


def test_the_table_of_the_13b_gguf_card_is_read_without_newlines():
    found = {row.quant_method: row.num_bytes for row in model_card("001").rows}
    assert found == {kind: round(float(size) * 1e9) for kind, size in GGUF_FILES.items()}


def test_the_tables_of_the_70b_cards_are_read_with_and_without_bars():
    files = {row.quant_method: row for row in model_card("002").rows}
    assert len(files) == 12
    assert files["Q6_K"].name == "codellama-70b-instruct.Q6_K.gguf"
    assert files["Q8_0"].num_bytes == 73_290_000_000
    (awq,) = model_card("003").rows
    assert (awq.name, awq.bits, awq.group_size, awq.seq_len) == ("main", 4, 128, 4096)
    assert awq.num_bytes == 36_610_000_000
