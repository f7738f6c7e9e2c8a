"""What a client gets to read of one sequence: growing text, cut at the first stop string."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.text.detokenizer import Detokenizer
from service.text.stop_strings import StopStrings

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from transformers import PreTrainedTokenizerBase


class TextStream:
    """Turn one sequence's token ids into the text that may be sent.

    Once `stopped`, the sequence should be aborted: nothing more comes out.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt_token_ids: Sequence[int],
        *,
        stop_strings: Sequence[str] = (),
        stop_token_ids: Collection[int] = (),
        keep_stop_string: bool = False,
        skip_special_tokens: bool = True,
        kept_token_ids: Collection[int] = (),
        min_tokens: int = 0,
    ) -> None:
        """Begin behind a prompt.

        stop_token_ids: what never becomes text. kept_token_ids: what does, also where special
        tokens are skipped. min_tokens: of so many ids, as they come first, the
        text is not searched for stop strings.
        """
        self.num_chars = 0  # of the ids' text so far, also what is held back or cut off
        self.last_text = ""  # of the last id, also what is held back or cut off
        self._detokenizer = Detokenizer(
            tokenizer,
            prompt_token_ids,
            skip_special_tokens=skip_special_tokens,
            kept_token_ids=kept_token_ids,
        )
        self._stop_strings = StopStrings(stop_strings, keep=keep_stop_string)
        # Not every end piece is marked special (DeepSeek's "<|EOT|>" often isn't); none is text.
        self._stop_token_ids = stop_token_ids
        self._num_unsearched = min_tokens  # ids still to come

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text."""
        return self._stop_strings.found is not None

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text."""
        return self._stop_strings.found

    def push(self, token_id: int) -> str:
        """Take the next id; give the text that is safe to send now, possibly none."""
        is_searched = self._num_unsearched == 0
        if not is_searched:
            self._num_unsearched -= 1
        if token_id in self._stop_token_ids:
            self.last_text = ""
            return ""
        self.last_text = text = self._detokenizer.push(token_id)
        self.num_chars += len(text)
        return self._stop_strings.push(text) if is_searched else text

    def flush(self) -> str:
        """Give the rest, once the sequence has ended; this too may meet a stop string."""
        text = self._detokenizer.flush()
        self.num_chars += len(text)
        if self._num_unsearched:
            return text
        return self._stop_strings.push(text) + self._stop_strings.flush()
