"""What any API asks of a served model: the one internal request that all of them translate to.

Knows no HTTP and no API's names. `service.serving.generation` runs it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from engine.request import Terms
from service.serving.sampling import SamplingOptions, resolve_sampling, seed_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.sampling_params import SamplingParams
    from service.grammars.wanted import TextForm
    from service.serving.prompts import Prompt
    from service.serving.served_model import ServedModel
    from service.serving.thought_tokens import ThoughtMarks


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerForm:
    """How the tokens of an answer become text, and what is told beside it."""

    stop_strings: Sequence[str] = ()
    keeps_stop: bool = False  # what ended the answer is part of its text
    keeps_stop_string: bool = False  # only a stop string is, an end token is not
    skips_special_tokens: bool = True
    kept_token_ids: frozenset[int] = frozenset()  # special ones that are text all the same
    thought_marks: ThoughtMarks | None = None  # between which tokens are counted as thoughts
    echoes: bool = False  # the text begins with the prompt
    reports_tokens: bool = False  # each token of the answer with its place in the text
    reports_ends: bool = False  # of those also an end token that is no text
    reports_token_ids: bool = False
    max_seconds_of_text: float | None = None  # from the first token; the next line's end ends it
    min_indent: int = 0  # spaces and tabs before each further line; one with fewer ends the text
    is_timed: bool = False  # when its tokens came is noted


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """Prompts, how many answers to each, how tokens are picked, and what the text is like."""

    prompts: Sequence[Prompt]
    max_tokens: Sequence[int]  # of each prompt's answers; 0 only reads the prompt
    num_choices: int = 1  # answers to each prompt
    options: SamplingOptions = field(default_factory=SamplingOptions)
    end_token_ids: frozenset[int] = frozenset()  # end an answer like the variant's own
    form: AnswerForm = field(default_factory=AnswerForm)
    text_form: TextForm | None = None  # that each answer's text must have
    terms: Terms = field(default_factory=Terms)


@dataclass(frozen=True, slots=True)
class PlannedChoice:
    """One answer asked for; its index is its place in the list of all."""

    prompt: Prompt
    params: SamplingParams
    is_prompt_only: bool = False  # the prompt is read, and the one token that comes of it dropped


def plan_choices(request: GenerationRequest, model: ServedModel) -> list[PlannedChoice]:
    """Return the choices in the order of their index: all of the first prompt, then the next.

    Raises an InvalidRequestError or an InvalidTextError.
    """
    # Once for all: many bad words take as long as a second.
    shared = resolve_sampling(
        request.options,
        model,
        max_tokens=max(1, *request.max_tokens),
        end_token_ids=request.end_token_ids,
    )
    return [
        PlannedChoice(
            prompt,
            replace(shared, max_tokens=max(1, most), seed=seed_of(shared.seed, index)),
            is_prompt_only=most == 0,
        )
        for prompt, most in zip(request.prompts, request.max_tokens, strict=True)
        for index in range(request.num_choices)
    ]
