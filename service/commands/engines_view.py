"""Says which engines load which variants: a line for each engine, as most treat most alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from loaders.planning.other_engines import CanLoad, Verdict

_NAMED = 2  # more variants than so many, with nothing after them, are "the others"


def engine_lines(names: Sequence[str], by_variant: Sequence[Sequence[Verdict]]) -> Iterator[str]:
    """Give the lines; by_variant: verdicts on the same engines in the same order."""
    unknown = []
    for verdicts in zip(*by_variant, strict=True):
        groups: dict[tuple[CanLoad, str], list[str]] = {}
        for name, verdict in zip(names, verdicts, strict=True):
            groups.setdefault((verdict.can_load, verdict.why), []).append(name)
        engine = verdicts[0].engine
        if all(can_load == "unknown" for can_load, _ in groups):
            reasons = ", ".join(why for _, why in groups if why)
            unknown.append(engine + _in_brackets(reasons))
        else:
            yield f"{engine}: {_say(groups)}"
    if unknown:
        yield f"unknown: {', '.join(unknown)}"


def _say(groups: Mapping[tuple[CanLoad, str], Sequence[str]]) -> str:
    if len(groups) == 1:
        ((can_load, why),) = groups
        return can_load + _in_brackets(why)
    parts = []
    for number, ((can_load, why), names) in enumerate(groups.items(), start=1):
        are_rest = number == len(groups) and len(names) > _NAMED
        whose = f"the other {len(names)}" if are_rest else ", ".join(names)
        parts.append(f"{can_load} for {whose}{_in_brackets(why)}")
    return "; ".join(parts)


def _in_brackets(reason: str) -> str:
    return f" ({reason})" if reason else ""
