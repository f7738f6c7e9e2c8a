"""Plans the filling of a gap: the prompt that fits, how long the answer may be, what ends it.

What every API that infills needs, and nothing of their names. How a prompt is put together is
`service.text.infilling`'s business; here the context is shared between it and the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from service.errors import ContextLengthError
from service.serving.prompts import CutTokens, Prompt, context_words
from service.serving.text_lanes import run_in_lane

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.serving.served_model import ServedModel
    from service.text.infilling.infilling import InfillFile

# Kept free for an answer that may be longer, of a context that its prompt would fill: some dozen
# lines of code. Of a short context a quarter.
OPEN_ANSWER_ROOM = 256
_OPEN_ANSWER_SHARE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """What stands around a gap."""

    prefix: str
    suffix: str
    prompt: str = ""  # behind the prefix: what was typed of the answer already
    files: Sequence[InfillFile] = ()  # others of the project; those that matter most last

    @property
    def size(self) -> int:
        """Count the characters that are to be encoded."""
        files = sum(len(file.filename) + len(file.text) for file in self.files)
        return len(self.prefix) + len(self.prompt) + len(self.suffix) + files


@dataclass(frozen=True, slots=True)
class PlannedInfill:
    """A gap's prompt, and what is said of its answer."""

    prompt: Prompt  # with what of it had no room
    max_tokens: int
    end_token_ids: frozenset[int]  # the family's: they end the middle and are no part of it


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRoom:
    """How long an answer may be, and how much of the context is kept free for it."""

    max_tokens: int | None  # None: up to the end of the context
    reserved: int  # where the prompt must be cut

    @classmethod
    def exactly(cls, asked: int, limit: int, *, length_param: str) -> AnswerRoom:
        """Keep all that is asked for, however much of the prompt must be cut.

        limit: the model's context. Raises ContextLengthError where nothing is left for a prompt.
        """
        if asked >= limit:
            raise ContextLengthError(
                f"{context_words(limit)}, the prompt included; {length_param} asks for {asked}: ask"
                " for less",
                param=length_param,
            )
        return cls(max_tokens=asked, reserved=max(asked, 1))

    @classmethod
    def at_most(cls, most: int | None, limit: int) -> AnswerRoom:
        """Allow so many tokens, as far as the prompt leaves room; None: all that it leaves.

        limit: the model's context. Of a prompt that would fill it, as much is cut as the answer may
        need, but no more than `OPEN_ANSWER_ROOM` tokens and a quarter.
        """
        room = min(OPEN_ANSWER_ROOM, limit // _OPEN_ANSWER_SHARE)
        return cls(max_tokens=most, reserved=max(1, room if most is None else min(most, room)))


async def plan_infill(
    gap: Gap,
    model: ServedModel,
    room: AnswerRoom,
    *,
    most_prompt: int | None = None,
    echo: str = "",
) -> PlannedInfill:
    """Put a gap's prompt together, cut from its far ends where it has no room.

    most_prompt: the prompt's own bound in tokens. echo: what an answer that echoes its prompt
    begins with.
    Raises InfillingNotSupportedError, InvalidInfillingError where nothing fits, InvalidPromptError,
    TokenizerFailedError.
    """
    infilling = model.require_infilling()
    limit = model.engine.max_model_len
    fits = limit - room.reserved
    # Beside the event loop, however short it is: some expressions are slow on short texts.
    assemble = partial(
        infilling.assemble,
        gap.prefix,
        gap.suffix,
        max_tokens=fits if most_prompt is None else min(fits, most_prompt),
        files=gap.files,
        prompt=gap.prompt,
    )
    made = await run_in_lane(gap.size, assemble)
    cut = CutTokens(made.num_cut_prefix, made.num_cut_suffix, made.num_cut_files)
    left = limit - len(made.token_ids)
    return PlannedInfill(
        prompt=Prompt(made.token_ids, echo, cut),
        max_tokens=left if room.max_tokens is None else min(room.max_tokens, left),
        end_token_ids=infilling.stop_token_ids,
    )
