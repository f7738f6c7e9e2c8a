"""Trained models that predict nothing are suspect; random and foreign ones are not."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from loaders.model.plausibility.prediction import (
    NUM_TOKENS,
    TEXTS,
    check_prediction,
    choose_texts,
    is_trained,
)
from tests.models import tiny_llama, tiny_tokenizer

RUSSIAN = (
    "Утром над рекой стоял туман, и лодки ждали у берега. Старик вышел из дома, посмотрел на"
    " небо и сказал, что к полудню станет жарко. Дети собирали камни и бросали их в воду."
    " Женщины несли корзины с рыбой на рынок, а мужчины чинили сети. Никто не знал, когда"
    " вернутся корабли, но все говорили, что это будет скоро. Вечером на холмах зажгли огни, и"
    " музыка была слышна до самого моря. Первый день лета всегда был праздником в этом городе."
    " Солнце садилось за горами, и ветер приносил запах травы. Тогда старик снова вышел из дома,"
    " чтобы посмотреть на реку."
)
KOREAN = (
    "아침 강 위에 안개가 끼었고 배들은 강가에서 기다렸다. 노인은 집에서 나와"
    " 하늘을 보고 낮에는 더워질 것이라고 말했다. 아이들은 돌을 모아 물에"
    " 던졌다. 여자들은 생선 바구니를 시장으로 가져갔고 남자들은 그물을 고쳤다."
    " 배가 언제 돌아올지 아무도 몰랐지만 모두 곧 올 것이라고 말했다. 저녁에는"
    " 언덕에 불을 켰고 음악이 바다까지 들렸다. 여름의 첫날은 언제나 이 도시의"
    " 축제였다."
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token a byte."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def trained_on(text: str, tokenizer: Any, *, num_steps: int = 60) -> Any:
    """Train a model of two layers on one text for a few seconds."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    token_ids = torch.tensor(tokenizer(text)["input_ids"])
    for _ in range(num_steps):
        starts = torch.randint(0, len(token_ids) - 48, (8, 1))
        batch = token_ids[starts + torch.arange(48)]
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    return model.requires_grad_(False).eval()


@pytest.mark.parametrize("text", [RUSSIAN, KOREAN], ids=["Russian", "Korean"])
def test_a_model_that_knows_no_english_is_not_suspect(text):
    tokenizer = byte_tokenizer()
    model = trained_on(text, tokenizer)
    assert is_trained(model)
    assert check_prediction(model, tokenizer) == []


def test_the_same_model_with_its_token_ids_mixed_up_is_suspect():
    tokenizer = byte_tokenizer()
    model = trained_on(RUSSIAN, tokenizer)
    table = model.get_input_embeddings().weight
    table.copy_(table[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))])
    model.model.norm.weight.mul_(4)  # as sure of itself as one that was trained for long
    (suspicion,) = check_prediction(model, tokenizer)
    assert suspicion.check == "predicts_nothing"
    assert "guessing costs 5.5" in suspicion.reason


@pytest.mark.parametrize("seed", range(3))
def test_random_models_are_not_suspect(seed):
    model = tiny_llama(seed=seed).float()
    assert not is_trained(model)
    assert check_prediction(model, tiny_tokenizer()) == []


@pytest.mark.parametrize(
    "fill",
    [
        lambda table: table.normal_(0, 0.02),
        lambda table: table.uniform_(-1, 1),
        lambda table: table.uniform_(0, 1),
        lambda table: table.normal_().mul_(torch.rand(len(table), 1)),
        lambda table: table.zero_(),
        lambda table: table.fill_(torch.nan),
    ],
    ids=["normal", "uniform", "positive", "of different lengths", "zero", "no numbers"],
)
def test_embeddings_of_no_training_are_recognised(fill):
    model = tiny_llama().float()
    fill(model.get_input_embeddings().weight)
    assert not is_trained(model)


def test_repetition_counts_only_where_the_tokenizer_is_made_for_none_of_the_texts():
    texts = choose_texts(tiny_tokenizer(), 512)
    assert [text.name for text in texts[:2]] == ["code", "English"]
    assert texts[-1].name == "repetition"
    assert {len(text.token_ids) for text in texts} == {NUM_TOKENS}
    english = json.loads(TEXTS.read_text(encoding="utf-8"))["languages"]["English"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([english] * 2, trainer)
    made_for_english = PreTrainedTokenizerFast(tokenizer_object=backend)
    names = [text.name for text in choose_texts(made_for_english, 600)]
    assert names[:2] == ["code", "English"]
    assert not {"repetition", "Hindi"} & set(names)


def test_tokens_that_the_model_does_not_have_are_not_asked_for():
    texts = choose_texts(tiny_tokenizer(), 300)
    assert all(max(text.token_ids) < 300 for text in texts)
    assert check_prediction(tiny_llama(vocab_size=40).float(), tiny_tokenizer()) == []
