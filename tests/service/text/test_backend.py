"""Decoding of many ids at once."""

from __future__ import annotations

import pytest

from service.text.backend import decode_whole
from tests.service.fakes import ByteTokenizer


@pytest.mark.parametrize("skips", [True, False])
def test_ids_decode_as_the_tokenizer_itself_does_it(skips):
    backend = ByteTokenizer().backend_tokenizer
    ids = [0, *backend.encode("Grüße 世界", add_special_tokens=False).ids, 1]
    expected = backend.decode(ids, skip_special_tokens=skips)
    assert decode_whole(backend, tuple(ids), skip_special_tokens=skips) == expected


def test_python_goes_on_meanwhile():
    """`decode` would hold its lock; `decode_batch` of one text does not."""
    calls: list[str] = []

    class Backend:
        def decode_batch(self, batch: list[list[int]], skip_special_tokens: bool) -> list[str]:
            calls.append("batch")
            return ["text"] * len(batch)

    assert decode_whole(Backend(), [5]) == "text"
    assert calls == ["batch"]
