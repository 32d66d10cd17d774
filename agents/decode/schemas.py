"""The schemas of a registry by id, as far as records have needed them.

An id has one schema for ever, so it is asked for once. One that the registry does not know is asked
for again after a while: a copy of a registry may be behind. A registry that does not answer is
waited for, because its schemas decide about events::

    records -> ids without schema -> registry --- away: ask again, the source waits
                                        `-> schema, or unknown: the record is unreadable
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from agents.decode.avro_schema import AvroError, AvroSchema
from agents.outage import Outage
from tables.model.errors import TreasureMapError

ID_MAX = 2**31 - 1
"""The largest id: registries keep ids in 32 bits with a sign, and take others for a wrong path."""

UNKNOWN_S = 10.0
"""Seconds for which an id without schema is not asked for again."""

UNKNOWN_MAX = 10_000
"""Ids without schema that are remembered: hostile records may have any."""

AGAIN_S = (1.0, 5.0)
"""The bounds of the pause before a registry that does not answer is asked again."""


class RegistryAwayError(TreasureMapError):
    """The registry does not answer, or refuses; it may answer later."""


class Registry(Protocol):
    """A schema registry."""

    async def schema(self, number: int) -> str:
        """Return the text of the Avro schema of an id.

        Raises:
            AvroError: the registry has no such schema, or one that events cannot be read with.
            RegistryAwayError: it does not answer.
        """


class Schemas:
    """The schemas that are known.

    Args:
        registry: the registry.
        clock_s: seconds of a clock that never goes back.

    Attributes:
        outage: whether the registry answers.
    """

    def __init__(self, registry: Registry, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._registry = registry
        self._clock_s = clock_s
        self._known: dict[int, AvroSchema] = {}
        self._unknown: dict[int, tuple[float, str]] = {}
        self.outage = Outage("the schema registry", "records that need a schema of it wait")

    def get(self, number: int) -> AvroSchema:
        """Return the schema of an id that was learnt.

        Raises:
            AvroError: the registry had no such schema, or can have none.
        """
        if number not in self._known:
            unasked = "it was not asked for" if number <= ID_MAX else f"ids end at {ID_MAX}"
            _, why = self._unknown.get(number, (0.0, unasked))
            raise AvroError(f"cannot read schema {number} of the registry: {why}")
        return self._known[number]

    def lacking(self, numbers: Iterable[int]) -> set[int]:
        """Return the ids that have to be learnt."""
        now_s = self._clock_s()
        return {
            number
            for number in numbers
            if number <= ID_MAX
            and number not in self._known
            and (number not in self._unknown or self._unknown[number][0] <= now_s)
        }

    async def learn(self, numbers: Collection[int]) -> None:
        """Ask for schemas; return when each is known, or known to be missing."""
        for number in sorted(numbers):
            await self._learn(number)

    async def _learn(self, number: int) -> None:
        while True:
            try:
                self._known[number] = AvroSchema(await self._registry.schema(number))
            except RegistryAwayError as error:
                self.outage.failed(error)
                await asyncio.sleep(random.uniform(*AGAIN_S))  # noqa: S311 - spreads only
                continue
            except AvroError as error:
                if len(self._unknown) >= UNKNOWN_MAX:
                    self._unknown.clear()
                self._unknown[number] = (self._clock_s() + UNKNOWN_S, str(error))
            self.outage.answered()
            return
