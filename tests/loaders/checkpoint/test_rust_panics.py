import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from loaders.checkpoint.rust_panics import is_panic, panics_as
from loaders.errors import CheckpointError


def panic():
    """Have a library written in Rust break: its expression gives up after ten million steps."""
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+c"), "isolated")
    tokenizer.encode("a" * 40)


def test_a_panic_becomes_the_error_that_it_means():
    with pytest.raises(CheckpointError, match="retry-limit-in-match"), panics_as(CheckpointError):
        panic()


def test_a_panic_is_told_from_all_else():
    with pytest.raises(BaseException, match="retry-limit") as raised:
        panic()
    assert is_panic(raised.value)
    assert not isinstance(raised.value, Exception)
    assert not is_panic(KeyboardInterrupt())


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, ValueError])
def test_what_is_no_panic_passes_as_it_is(error):
    with pytest.raises(error), panics_as(CheckpointError):
        raise error


def test_a_decorated_function_is_guarded_at_each_call():
    guarded = panics_as(CheckpointError)(panic)
    for _ in range(2):
        with pytest.raises(CheckpointError):
            guarded()
