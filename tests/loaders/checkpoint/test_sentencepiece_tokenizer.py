"""Fast tokenizers made of tokenizer.model: ids are those that sentencepiece gives."""

import json
import random
from pathlib import Path

import pytest

from loaders.checkpoint.tokenizer import load_tokenizer
from loaders.errors import CheckpointError
from loaders.gguf.files import open_files
from tests.sentencepiece_models import sentencepiece_ids, train_sentencepiece, write_sentencepiece

LLAMA_VOCABULARY = Path(__file__).parents[4] / "shared" / "data" / "ggml-vocab-llama-spm.gguf"
MODELS = {
    "llama": {},
    "gemma": {
        "add_dummy_prefix": False,
        "user_defined_symbols": ["▁▁", "▁▁▁", "\n\n", "<start_of_turn>", "<b>"],
    },
    "spaces of its own, after a prefix": {"user_defined_symbols": ["▁▁", "▁▁▁▁", "<|user|>"]},
    "spaces trimmed, characters normalised": {
        "normalization_rule_name": "nmt_nfkc",
        "remove_extra_whitespaces": True,
    },
    "unigram": {"model_type": "unigram", "vocab_size": 500},
    "no bytes": {"byte_fallback": False, "vocab_size": 400},
}
PARTS = [
    *"ab3.(é漢😀\n\t",
    "the ", "ing", " in", "  ", "   ", "\n\n", "x<b>y", "ﬁ", "\u00a0", "▁", "def f(x):\n    return",
]  # fmt: skip


def write(folder, *, content=None, **files):
    """Write a folder with a tokenizer.model, and JSON files by their names without the ending."""
    (folder / "tokenizer.model").write_bytes(content or train_sentencepiece())
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("model", MODELS)
def test_ids_and_text_are_sentencepieces_own(tmp_path, model):
    content = train_sentencepiece(**MODELS[model])
    tokenizer = load_tokenizer(write(tmp_path, content=content))
    draw = random.Random(0)
    for _ in range(300):
        text = "a" + "".join(draw.choices(PARTS, k=draw.randint(0, 12)))
        ids = ids_of(tokenizer, text)
        assert ids == sentencepiece_ids(content, text), text
        if model == "llama":
            assert tokenizer.decode(ids) == text.replace("▁", " ")


@pytest.mark.parametrize(
    "named", ["LlamaTokenizer", "LLaMATokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", None]
)
def test_texts_begin_with_bos_whatever_class_is_named(tmp_path, named):
    config = {"tokenizer_class": named, "bos_token": "", "eos_token": "", "unk_token": ""}
    tokenizer = load_tokenizer(write(tmp_path, tokenizer_config=config))
    ids = tokenizer("Hello").input_ids
    assert ids == [tokenizer.bos_token_id, *ids_of(tokenizer, "Hello")]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == (
        "<s>", "</s>", "<unk>",
    )  # fmt: skip


def test_ends_are_added_as_the_config_says(tmp_path):
    config = {"add_bos_token": False, "add_eos_token": True}
    tokenizer = load_tokenizer(write(tmp_path, tokenizer_config=config))
    assert tokenizer("Hello").input_ids == [*ids_of(tokenizer, "Hello"), tokenizer.eos_token_id]


def test_control_pieces_are_found_in_text_and_left_out_of_answers(tmp_path):
    tokenizer = load_tokenizer(write(tmp_path))
    ids = ids_of(tokenizer, "<s>a</s>")
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a"


def test_pieces_added_beside_the_model_keep_their_ids(tmp_path):
    added = {"<|im_start|>": 600, "<|im_end|>": 601, "[PAD]": 605}
    special = {"eos_token": {"content": "<|im_end|>"}, "pad_token": "[PAD]"}
    folder = write(tmp_path, added_tokens=added, special_tokens_map=special)
    tokenizer = load_tokenizer(folder)
    found = ids_of(tokenizer, "<|im_start|>a<|im_end|>[PAD]")
    assert [i for i in found if i >= 600] == [600, 601, 605]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (601, 605)


def test_pieces_of_the_newer_form_keep_their_ids_and_flags(tmp_path):
    end = {"content": "<|end|>", "lstrip": False, "rstrip": True, "normalized": False,
           "single_word": False, "special": True}  # fmt: skip
    config = {"added_tokens_decoder": {"600": end}, "eos_token": "<|end|>"}
    tokenizer = load_tokenizer(write(tmp_path, tokenizer_config=config))
    assert ids_of(tokenizer, "a<|end|>  b") == [
        *ids_of(tokenizer, "a"),
        600,
        *ids_of(tokenizer, "b"),
    ]


def test_the_template_beside_the_model_is_read(tmp_path):
    folder = write(tmp_path, tokenizer_config={"chat_template": "old", "model_max_length": 77})
    assert load_tokenizer(folder).chat_template == "old"
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.chat_template, tokenizer.model_max_length) == ("{{ messages }}", 77)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ documents }}")
    named = {"default": "{{ messages }}", "rag": "{{ documents }}"}
    assert load_tokenizer(folder).chat_template == named


def test_without_legacy_only_the_first_stretch_of_text_gets_a_space(tmp_path):
    legacy = load_tokenizer(write(tmp_path))
    newer = load_tokenizer(write(tmp_path, tokenizer_config={"legacy": False}))
    assert ids_of(newer, "the") == ids_of(legacy, "the")
    spaced, joined = (ids_of(tokenizer, "</s>the") for tokenizer in (legacy, newer))
    assert spaced[1:] == ids_of(legacy, "the")
    assert newer.convert_ids_to_tokens(joined)[1][0] != "▁"


def test_a_tokenizer_json_is_read_before_the_model(tmp_path, tiny_tokenizer):
    tiny_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"damaged")
    assert len(load_tokenizer(tmp_path)) == len(tiny_tokenizer)


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "word"},
        {"model_type": "char"},
        {"treat_whitespace_as_suffix": True},
        {  # The library begins what follows a piece of the user's with a space of its own.
            "user_defined_symbols": ["<b>"],
            "normalization_rule_name": "nmt_nfkc",
            "remove_extra_whitespaces": True,
        },
    ],
)
def test_what_cannot_be_expressed_is_refused_and_not_read_almost_right(tmp_path, settings):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json") as refused:
        load_tokenizer(write(tmp_path, content=train_sentencepiece(**settings)))
    assert "tokenizer.model" in str(refused.value)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"added_tokens": {"[PAD]": 5}}, r"'\[PAD\]' the id 5"),
        ({"added_tokens": {"</s>": 600}}, "'</s>' the id 600"),
        ({"added_tokens": {"x": -1}}, "the id -1"),
        ({"added_tokens": {"x": "y"}}, "damaged"),
        ({"tokenizer_config": {"added_tokens_decoder": {"600": 1}}}, "damaged"),
        ({"tokenizer_config": {"bos_token": "<absent>"}}, "no such piece"),
        ({"tokenizer_config": {"tokenizer_class": "XGLMTokenizer"}}, "ids are not those"),
    ],
)
def test_files_beside_the_model_that_contradict_it_are_refused(tmp_path, files, reason):
    with pytest.raises(CheckpointError, match=reason):
        load_tokenizer(write(tmp_path, **files))


@pytest.mark.parametrize("name", ["tekken.json", "qwen.tiktoken", "sentencepiece.bpe.model"])
def test_vocabularies_of_other_libraries_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=f"as {name}, which is not read here"):
        load_tokenizer(tmp_path)


@pytest.mark.skipif(
    not LLAMA_VOCABULARY.exists(),
    reason=f"needs the vocabulary {LLAMA_VOCABULARY.name}, which is not beside the checkout",
)
def test_llama_2s_own_vocabulary_gives_its_own_ids(tmp_path):
    metadata = open_files(LLAMA_VOCABULARY).metadata
    tokens, scores, kinds = (
        metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type")
    )
    content = write_sentencepiece(list(zip(tokens, scores, kinds, strict=True)))
    tokenizer = load_tokenizer(write(tmp_path, content=content))
    assert tokenizer("Hello world").input_ids == [1, 15043, 3186]
    texts = ("def f(x):\n    return 1", "a  b", "漢字😀", " ▁ ", "x = {'ß': 0.5}\t# é")
    for text in texts:
        assert ids_of(tokenizer, text) == sentencepiece_ids(content, text)
