"""A reader over real owners of a log in memory."""

from __future__ import annotations

from collections.abc import Sequence

from agents.partition.live_reads import read_live
from tables.model.cost import QueryCost
from tables.model.window import Window
from tables.query.cell_query import Limits
from tables.query.live import LiveRead, LiveRows
from tests.support.common import (
    HOUR_MS,
    dataclasses_replace,
    small_map,
)
from tests.support.local_worker import LocalWorker

HOURS, DAYS = small_map().layers
SIX_HOURS = dataclasses_replace(DAYS, name="six", window=Window(6 * HOUR_MS), finer="hour")
DAYS_OF_SIX = dataclasses_replace(DAYS, finer="six")
KEYED = small_map(layers=(HOURS, SIX_HOURS, DAYS_OF_SIX))
UNKEYED = small_map(
    sources=(dataclasses_replace(KEYED.sources[0], keyed_by=()),),
    layers=(dataclasses_replace(HOURS, merged=True), SIX_HOURS, DAYS_OF_SIX),
)
LIMITS = Limits()


class Owned:
    """A LiveSource over one house; some owners may be told not to answer."""

    def __init__(self, house: LocalWorker) -> None:
        self.house = house
        self.silent: set[tuple[str, int]] = set()
        self.asked: list[LiveRead] = []

    async def read(
        self, reads: Sequence[LiveRead], cost: QueryCost, until: float
    ) -> list[LiveRows]:
        """Answer from the house's owners."""
        del until
        self.asked += reads
        cost.workers_asked += 1
        return [
            read_live(
                [
                    owner
                    for owner in self.house.owners.each()
                    if read.layer in owner.plan.layers
                    and (owner.plan.topic, owner.partition) not in self.silent
                ],
                read,
            )
            for read in reads
        ]
