"""Faults: the outcome of a request, and the time it takes.

done        the usual
repeated    acknowledged, and done once more, later
unanswered  done, but nobody hears of it
delayed     nobody hears of it, and it is done later
lost        nobody hears of it, and it is never done
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TypeVar

from tables.model.errors import OutcomeUnknownError, TreasureMapError
from tests.simulation.loop import SimulatedLoop

Result = TypeVar("Result")

# In parts of all requests, at hardness 1, as in the model that the protocol was found with.
LOST, DELAYED, UNANSWERED, REPEATED = 0.03, 0.08, 0.12, 0.16

LATE_S_MEAN = 3.0
"""How much later a delayed or repeated request is done."""

LINGERING_S_MEAN = 30.0
"""How much later half of those are done whose receivers must bear it."""


class Faults:
    """Decides over requests, from one seed.

    Args:
        loop: whose clock requests take time of.
        rng: draws every decision.
        hardness: factor of the shares of failing requests.
    """

    def __init__(self, loop: SimulatedLoop, rng: random.Random, hardness: float) -> None:
        self.loop = loop
        self.rng = rng
        self.hardness = hardness
        self.calm = False
        self.done = 0
        self.counts: dict[str, int] = {}
        self._late: dict[int, tuple[Callable[[], object], bool]] = {}
        self._number = 0

    async def delay(self) -> None:
        """Let a request or its answer travel: often no time at all, now and then long."""
        x = self.rng.random()
        await asyncio.sleep(0 if x < 0.7 else self.rng.expovariate(50 if x < 0.96 else 2))

    async def request(
        self,
        act: Callable[[], Result],
        error: type[TreasureMapError] = OutcomeUnknownError,
        *,
        lingers: bool = False,
    ) -> Result:
        """Do ``act`` as the faults will have it; return its result.

        A call that ``lingers`` may be done late even when all else is calm.

        Raises:
            TreasureMapError: of type ``error``, whether it was done or not.
        """
        await self.delay()
        x = 1.0 if self.calm else self.rng.random() / self.hardness
        if x <= REPEATED:
            if x > UNANSWERED:
                self.put_off("repeated", act, lingers=lingers)
            elif x > DELAYED:
                self.counts["unanswered"] = self.counts.get("unanswered", 0) + 1
                act()
            elif x > LOST:
                self.put_off("delayed", act, lingers=lingers)
            if x <= UNANSWERED:
                await self.delay()
                raise error("no answer came")
        self.done += 1
        result = act()
        await self.delay()
        return result

    @property
    def under_way(self) -> int:
        """How many requests will still be done."""
        return len(self._late)

    def put_off(self, fate: str, act: Callable[[], object], *, lingers: bool) -> None:
        """Do ``act`` later, whatever becomes of who asked for it."""
        self.counts[fate] = self.counts.get(fate, 0) + 1
        self._number += 1
        number = self._number
        self._late[number] = act, lingers
        mean = LINGERING_S_MEAN if lingers and self.rng.random() < 0.5 else LATE_S_MEAN
        self.loop.later(self.rng.expovariate(1 / mean), lambda: self._do_late(number))

    def heal(self) -> None:
        """Fail no more requests; do those under way at once, unless they linger."""
        self.calm = True
        numbers = [number for number, (_, lingers) in self._late.items() if not lingers]
        self.rng.shuffle(numbers)
        for number in numbers:
            self._do_late(number)

    def _do_late(self, number: int) -> None:
        act, _ = self._late.pop(number, (None, False))
        if act is not None:
            self.done += 1
            act()
