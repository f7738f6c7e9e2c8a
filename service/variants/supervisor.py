"""The served variants together: which there are, which one a request means, and how all stand.

Each keeps itself running (`service.variants.variant`); here they are started, told apart by name,
changed while the API runs, and ended. Touched from the event loop only.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from engine.errors import EngineError, QueueFullError
from service.errors import ModelNotFoundError, VariantStateError
from service.server.changes import Changes
from service.server.lifecycle import Phase
from service.variants.variant import ON_ITS_WAY, VariantState, names_of

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable
    from contextlib import ExitStack

    from service.serving.served_model import ServedModel
    from service.variants.variant import ServedVariant, VariantStatus

log = structlog.get_logger(__name__)

_AT_REST = (VariantState.UNLOADED, VariantState.FAILED)  # nothing runs that could be ended
# What clients send that must send some name, and have been told of none.
PLACEHOLDERS = frozenset({"dummy", "tgi"})
CLOSING_LIMIT_S = 0.0  # for requests; they have been waited for by then


class Supervisor:
    """Every variant that is served here, by the name that clients send as `model`."""

    def __init__(
        self, variants: Iterable[ServedVariant], *, drain_limit_s: float, load_wait_s: float
    ) -> None:
        self._variants = {variant.name: variant for variant in variants}
        self.changes = Changes()  # of any variant, and of which there are
        for variant in self._variants.values():
            variant.changes.listen(self.changes.announce)
        self._incoming: list[ServedVariant] = []  # load beside those whose places they will take
        self._outgoing: list[ServedVariant] = []  # are drained, their places taken
        self._failed_swaps: dict[str, str] = {}  # why the last one by a name failed
        self._drain_limit_s = drain_limit_s
        self._load_wait_s = load_wait_s
        self._changes: set[asyncio.Task[None]] = set()  # on their way

    # ── how things stand ────────────────────────────────────────────────────────────────────────

    @property
    def variants(self) -> list[ServedVariant]:
        """Every variant: first those that requests go to, then what a swap brings or leaves."""
        return [*self._variants.values(), *self._incoming, *self._outgoing]

    @property
    def statuses(self) -> list[VariantStatus]:
        """How each variant stands that requests go to."""
        return [variant.status for variant in self._variants.values()]

    def roles(self) -> list[tuple[VariantStatus, str]]:
        """How every variant stands, and whether it is "routed", "incoming" or "outgoing"."""
        groups = {
            "routed": self._variants.values(),
            "incoming": self._incoming,
            "outgoing": self._outgoing,
        }
        return [(variant.status, role) for role, group in groups.items() for variant in group]

    def failed_swap(self, name: str) -> str | None:
        """Why the last swap by this name failed; None where it did not."""
        return self._failed_swaps.get(name)

    @property
    def phase(self) -> Phase:
        """Whether requests are answered by every variant that is required, and by any at all.

        Where not, what keeps the first required one from it, else the one with most hope.
        """
        routed = self._variants.values()
        for variant in routed:
            if _is_waited_for(variant):
                return _phase_of(variant)
        if any(_can_answer(variant) for variant in routed):
            return Phase.SERVING
        return min(map(_phase_of, routed), key=_HOPE.index, default=Phase.EMPTY)

    @property
    def is_hopeless(self) -> bool:
        """Whether nothing can answer any more, and nothing will by itself."""
        return bool(self.variants) and all(
            variant.state is VariantState.FAILED and not variant.comes_on_demand
            for variant in self.variants
        )

    def find(self, name: str) -> tuple[VariantStatus, ServedModel | None]:
        """Return how a variant stands, and its model while it is loaded.

        Raises ModelNotFoundError.
        """
        variant = self.require(name)
        return variant.status, variant.served

    def resolve(self, name: str | None) -> str:
        """Return the served name that a request's `model` means; an unknown one stays as it is.

        Raises ModelNotFoundError where none is given and several are served.
        """
        if name is not None and name in self._variants:
            return name
        for variant in self._variants.values():
            if name in variant.rules.aliases:
                return variant.name
        if name is not None and name not in PLACEHOLDERS:
            return name
        if len(self._variants) == 1:
            return next(iter(self._variants))
        raise ModelNotFoundError(
            f"model: name one; this server serves {self._served_names()}", param="model"
        )

    def require(self, name: str) -> ServedVariant:
        """Return a variant by name, or raise ModelNotFoundError."""
        variant = self._variants.get(name)
        if variant is None:
            raise ModelNotFoundError(
                f"no such model is served; this server serves {self._served_names()}", param="model"
            )
        return variant

    def _served_names(self) -> str:
        names = [name for variant in self._variants.values() for name in names_of(variant)]
        return ", ".join(repr(name) for name in names) or "none now"

    def require_room(self, num_ahead: int = 0) -> None:
        """Raise QueueFullError where every variant is loaded and none lets another request wait.

        num_ahead: requests that were let pass, and have not reserved a place yet. Where there are
        several variants, nobody knows whose: each is taken to get an equal share.
        """
        each = num_ahead // max(1, len(self._variants))
        refusal: QueueFullError | None = None
        for variant in self._variants.values():
            if variant.served is None:
                return
            try:
                variant.served.engine.require_room(each)
            except QueueFullError as error:
                refusal = error
            except EngineError:
                return  # what happens to it is told to whoever asks for it
            else:
                return
        if refusal is not None:
            raise refusal

    async def acquire(self, name: str, until_answered: ExitStack) -> ServedModel:
        """Return the model of this name, and keep it loaded until the request is answered.

        One that is loaded on demand is waited for, for a while. Raises ModelNotFoundError or
        UnavailableError.
        """
        variant = self.require(name)
        if variant.comes_on_demand:
            await self._until_loaded(variant)
        variant = self.require(name)  # it may have been swapped meanwhile
        served = variant.require_served()
        until_answered.enter_context(variant.in_use())
        return served

    async def _until_loaded(self, variant: ServedVariant) -> None:
        """Have a variant loaded, and wait for it, for a while."""

        def has_come_to_rest() -> bool:
            if variant.waits_for_demand:  # also once it has been unloaded for being idle
                variant.load_on_demand()
            return variant.state not in ON_ITS_WAY

        await variant.changes.until(has_come_to_rest, limit_s=self._load_wait_s)

    # ── changes ─────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Begin to load what is not loaded on demand."""
        for variant in self._variants.values():
            if not variant.rules.is_on_demand:
                variant.load()

    async def close(self) -> None:
        """End every engine that there is."""
        for change in self._changes:
            change.cancel()
        endings = [
            variant.unload(drain_limit_s=CLOSING_LIMIT_S, for_good=True)
            for variant in self.variants
            if variant.state not in _AT_REST
        ]
        await asyncio.gather(*endings, *self._changes, return_exceptions=True)

    def add(self, variant: ServedVariant) -> None:
        """Serve one more variant. Raises VariantStateError where one of its names is taken."""
        if any(variant.name == other.name for other in self.variants):
            raise VariantStateError(
                f"{variant.name} is served already; swap it, or unload and remove it first"
            )
        _require_own_names(variant, self.variants)
        variant.changes.listen(self.changes.announce)
        self._variants[variant.name] = variant
        variant.load()

    def swap(self, variant: ServedVariant) -> None:
        """Load a variant beside the one of the same name; let it take over, then drain that one.

        The old one stays where the new one cannot be loaded. Raises ModelNotFoundError, or
        VariantStateError while another swap is on its way.
        """
        old = self.require(variant.name)
        if any(variant.name == other.name for other in self._incoming):
            raise VariantStateError(f"{variant.name} is being swapped already; wait for its end")
        _require_own_names(variant, self.variants)
        self._failed_swaps.pop(variant.name, None)
        variant.changes.listen(self.changes.announce)
        self._incoming.append(variant)
        variant.load()
        self._spawn(self._take_over(old, variant))

    def unload(self, name: str) -> None:
        """Drain a variant, then unload it; no request loads it again. Raises ModelNotFoundError."""
        self.require(name).unload(drain_limit_s=self._drain_limit_s, for_good=True)

    def remove(self, name: str) -> None:
        """Forget a variant that is not loaded. Raises ModelNotFoundError or VariantStateError."""
        if self.require(name).state not in _AT_REST:
            raise VariantStateError(f"{name} is loaded; unload it first")
        if any(name == other.name for other in self._incoming):
            raise VariantStateError(f"{name} is being swapped; wait for its end")
        del self._variants[name]
        self._failed_swaps.pop(name, None)
        self.changes.announce()

    async def _take_over(self, old: ServedVariant, new: ServedVariant) -> None:
        try:
            await new.changes.until(lambda: new.state not in ON_ITS_WAY)
            if new.state is VariantState.SERVING:
                self._variants[new.name] = new
                self._outgoing.append(old)
        finally:
            self._incoming.remove(new)
            self.changes.announce()
        if old not in self._outgoing:
            self._failed_swaps[new.name] = new.status.reason or "it was ended"
            log.error("swap_failed", model=new.name, reason=new.status.reason, kept="the old model")
            return
        log.info("swapped", model=new.name)
        # Shielded: this is cancelled at the server's end, where unloading must go on.
        await asyncio.shield(old.unload(drain_limit_s=self._drain_limit_s, for_good=True))
        self._outgoing.remove(old)
        self.changes.announce()

    def _spawn(self, change: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)


def _require_own_names(variant: ServedVariant, others: Iterable[ServedVariant]) -> None:
    """Raise VariantStateError where requests for another variant would go to this one, or back."""
    for other in others:
        if other.name == variant.name:
            continue
        for name in names_of(variant):
            if name in names_of(other):
                raise VariantStateError(
                    f"{name!r} is a name of {other.name} already; give {variant.name} another"
                )


def _is_waited_for(variant: ServedVariant) -> bool:
    """Whether the server is not ready for want of this variant."""
    if not variant.rules.is_required or variant.rules.is_on_demand:
        return False
    return variant.state is not VariantState.SERVING


def _can_answer(variant: ServedVariant) -> bool:
    """Whether requests are answered, perhaps after they have had the variant loaded."""
    if variant.state is VariantState.SERVING:
        return True
    if variant.has_failed:
        return False  # a request may have it tried again, be it just now, which promises nothing
    is_on_its_way = variant.state in ON_ITS_WAY and not variant.is_drained
    return variant.waits_for_demand or (variant.comes_on_demand and is_on_its_way)


def _phase_of(variant: ServedVariant) -> Phase:
    return _PHASES.get(variant.state, Phase.LOADING)


_PHASES = {
    VariantState.RESTARTING: Phase.RESTARTING,
    VariantState.FAILED: Phase.FAILED,
    VariantState.DRAINING: Phase.DRAINING,
    VariantState.UNLOADING: Phase.UNLOADED,
    VariantState.UNLOADED: Phase.UNLOADED,
}

# From that in which a variant will soon answer to that in which it needs somebody's help.
_HOPE = (
    Phase.LOADING,
    Phase.RESTARTING,
    Phase.DRAINING,
    Phase.UNLOADED,
    Phase.FAILED,
    Phase.EMPTY,
)
