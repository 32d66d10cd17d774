"""The reader: plans a request to a family, asks owners and archive, and makes one answer.

    facts known -> plan -> live tables of all owners -> archive -> rows
                    ^                             |
                    `--- torn: once more, soon ---'

Owners are asked before the archive, so that no cell is missed: a cell that leaves a table
meanwhile was read there. Coarser cells are used up to floors that were known before, so the base
layer's positions, which are the answer's, are never behind them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, Protocol

import polars as pl

from agents.query.base_reads import KEYS_MAX, BaseRead, Part
from tables.archive.cache import ArchiveCache
from tables.archive.protocol import CellRange
from tables.model.cost import QueryCost
from tables.model.errors import PartialError, QueryError
from tables.model.keyhash import key_hash
from tables.model.layer import Layer, Map
from tables.model.topic_partition import named
from tables.model.window import NEVER_ENDS_MS, NEVER_MS
from tables.query.cell_query import Limits
from tables.query.cover import Segment
from tables.query.facts import KnownFacts, PartitionFacts, check_began, later_measures
from tables.query.family import FamilyQuery, KeyFilter
from tables.query.live import LiveRead, LiveRows
from tables.query.planner import (
    LayerFacts,
    QueryPlan,
    boundaries_of,
    bounded,
    plan,
    unknown_ends,
    windows_at,
)
from tables.state.cell import no_rows, stacked, whole_only
from tables.threads import gathered

FACTS_S_MAX = 2.0
"""Seconds after which facts are asked for again before a plan is made: a coarser cell that is not
known to be sealed costs as many finer cells as it has."""

FACTS_AGAIN_S = 0.5
"""Seconds after which facts are asked for with the next answer, so that a busy reader never waits
for them."""

TORN_WAIT_S = 0.02
"""Approximate seconds that a contribution takes through a layer's topic."""

TORN_TRIES = 10

PATIENCE_S = 1.5
"""Seconds that one answer waits for owners: a rebalance without a crash takes less."""

STALE_AGAIN_S = 0.01
"""Seconds before an answer that is too old is made again."""

READS_AT_ONCE_MAX = 64
"""Ranges of one request that are read from the archive at once."""

PLAN_AT_ONCE_BOUNDARIES_MAX = 1_000
"""Boundaries up to which a plan is made at once, in some 5 ms, and not in a thread."""

THREAD_ROWS_MIN = 2_000
"""Rows from which on an answer is made in a thread; less takes less time than a thread's start."""


class LiveSource(Protocol):
    """The owners of all partitions, on any worker."""

    async def read(
        self, reads: Sequence[LiveRead], cost: QueryCost, until: float
    ) -> list[LiveRows]:
        """Return the rows of owners, in the order of ``reads``; each owner answers from one state.

        It waits for owners until ``until``, by the event loop's clock. Those that have not answered
        by then are missing among the facts. The owners that were asked are added to ``cost``.
        """


Exactness = Literal["exact", "settling", "partial"]


@dataclasses.dataclass(slots=True)
class FamilyResult:
    """Rows, with their exactness, age and cost.

    Attributes:
        query: the request, with open ends at the windows there are.
        rows: a cell frame of ``query.rows``; see :func:`tables.query.answer.rows_of`.
        plan: the plan by which they were read.
        exactness: ``exact`` rows are the fold of the raw log up to ``as_of``; late events may still
            change ``settling`` rows; for ``partial`` rows some owners did not answer.
        as_of: by source partition, the offset up to which events are in.
        watermark_ms: smallest watermark of the base layer; ``NEVER_MS`` before any event.
        data_age_ms: every event that was appended longer ago than this is in; None if not known.
        final: whether no later answer can have other rows; never if an end is open.
        cost: the work of the answer.
        whole: by measure that is not whole in all of the range, the time from which on it is; None
            while that is not known. In rows that start before, the measure is null.
    """

    query: FamilyQuery
    rows: pl.DataFrame
    plan: QueryPlan
    exactness: Exactness
    as_of: dict[int, int]
    watermark_ms: int
    data_age_ms: int | None
    final: bool
    cost: QueryCost
    whole: dict[str, int | None]


@dataclasses.dataclass(slots=True)
class LayerResult:
    """The rows of one layer, live and archived: archive frames, both of which may have a cell.

    Attributes:
        live: the rows of the owners that answered.
        archived: all rows that those owners may have evicted.
        partial: whether live cells may be missing.
        served: how many partitions of the layer's input have owners that answered.
        whole: as of a :class:`FamilyResult`.
    """

    live: pl.DataFrame
    archived: pl.DataFrame
    partial: bool
    served: int
    whole: dict[str, int | None]


class Reader:
    """Answers requests; cells expire by ``clock_ms``, and ``threads`` are those of the archive."""

    def __init__(
        self,
        themap: Map,
        live: LiveSource,
        archive: ArchiveCache,
        limits: Limits,
        clock_ms: Callable[[], int],
    ) -> None:
        self._map = themap
        self._live = live
        self._archive = archive
        self._limits = limits
        self._clock_ms = clock_ms
        self._facts = KnownFacts()
        self._asked_at: dict[str, float] = {}
        self.threads = archive.threads

    async def plan(self, query: FamilyQuery) -> QueryPlan:
        """Return the plan of a request, from the facts as they are now.

        Raises:
            QueryError: the request cannot be answered; see :func:`tables.query.planner.plan`.
            PartialError: an end is open, and the owners that know its window do not answer.
        """
        base = BaseRead(self._map, query.family.base)
        _, planned = await self._plan(query, base, QueryCost(), _now() + PATIENCE_S)
        return planned

    async def _plan(
        self, query: FamilyQuery, base: BaseRead, cost: QueryCost, until: float
    ) -> tuple[FamilyQuery, QueryPlan]:
        """Return the request, with open ends at the windows there are now, and its plan."""
        layers = [*query.layers, base.combiner] if base.combiner else query.layers
        if stale := self._stale(layers, 0.0 if query.is_unbounded else FACTS_S_MAX):
            await self._ask(stale, cost, until)
        now_ms = self._clock_ms()
        facts = {layer.name: self._facts.of(layer, now_ms) for layer in query.layers}
        # Even if owners are silent, all windows that are not known to lack events can be used.
        whole = base.whole(self._facts)
        name = query.family.base.name
        folded = self._facts.of(base.folded, now_ms)
        facts[name] = dataclasses.replace(
            facts[name],
            complete_ms=whole.get("events", NEVER_MS),
            whole=whole,
            first_ms=min(facts[name].first_ms, folded.first_ms),
            last_ms=folded.last_ms,
        )
        if query.is_unbounded:
            self._check_ends(query, base, facts)
            query = bounded(query, facts)
        if boundaries_of(query) <= PLAN_AT_ONCE_BOUNDARIES_MAX:
            return query, plan(query, facts, self._limits.cells_max)
        return query, await self.threads.run(plan, query, facts, self._limits.cells_max)

    def _check_ends(
        self, query: FamilyQuery, base: BaseRead, facts: Mapping[str, LayerFacts]
    ) -> None:
        """Refuse an open end whose window is not known because owners are silent."""
        layers = dict.fromkeys((base.folded, base.base))
        silent = [
            (self._map.input_topic(layer), partition)
            for layer in layers
            for partition in self._facts.silent(layer)
        ]
        if silent and (ends := unknown_ends(query, facts)):
            raise PartialError(
                f"cannot read family {query.family.name}: owners of {named(silent)} do not answer"
                f" yet, and they know {windows_at(ends)}; ask again later, or give"
                f" {' and '.join(ends)}"
            )

    async def answer(self, query: FamilyQuery) -> FamilyResult:
        """Return the rows of a request; wait, if it demands so, until they are young enough.

        Raises:
            QueryError: the request cannot be answered.
            PartialError: owners do not answer, and the request wants no answer without them, or an
                end is open and they know its window.
            ArchiveError: the archive does not answer.
        """
        while True:
            found = await self._answer(query)
            if not _is_too_old(found, query):
                return found
            # Younger data may come within the deadline.
            await asyncio.sleep(STALE_AGAIN_S)

    async def _answer(self, query: FamilyQuery) -> FamilyResult:
        cost = QueryCost()
        base = BaseRead(self._map, query.family.base)
        query, planned, parts, facts, exactness = await self._consistent_read(query, base, cost)
        if exactness == "partial" and query.partial == "refuse":
            raise PartialError(
                f"cannot read family {query.family.name}: some owners do not answer; ask again"
                " later, or with partial=allow"
            )
        await gathered(
            [functools.partial(self._read_archive, query, part, cost) for part in parts], len(parts)
        )
        whole = base.whole(self._facts)
        if sum(part.live_height + part.archived_height for part in parts) < THREAD_ROWS_MIN:
            rows = base.rows(query, parts, whole)
        else:
            rows = await self.threads.run(base.rows, query, parts, whole)
        fresh_ms = min((fact.fresh_ms for fact in facts), default=NEVER_MS)
        return FamilyResult(
            query=query,
            rows=rows,
            plan=planned,
            exactness=exactness,
            as_of={fact.partition: fact.position for fact in facts},
            watermark_ms=min((fact.closed_ms for fact in facts), default=NEVER_MS),
            data_age_ms=None if fresh_ms == NEVER_MS else max(0, self._clock_ms() - fresh_ms),
            final=not query.asked.is_open and all(part.is_final for part in parts),
            cost=cost,
            whole=later_measures(query.rows, whole, query.from_ms),
        )

    async def _consistent_read(
        self, asked: FamilyQuery, base: BaseRead, cost: QueryCost
    ) -> tuple[FamilyQuery, QueryPlan, list[Part], list[PartitionFacts], Exactness]:
        """Plan, and ask owners until their rows are at one position of each partition."""
        until = _now() + PATIENCE_S
        ask = functools.partial(self._ask, cost=cost, until=until)
        for left in reversed(range(TORN_TRIES)):
            query, planned = await self._plan(asked, base, cost, until)
            parts = self._parts(query, planned)
            live = [part for part in parts if not part.is_final]
            rows = await base.read(ask, query, live, self._stale(query.layers, FACTS_AGAIN_S))
            facts = list(rows.facts.values())
            exactness: Exactness = planned.exactness
            # Of open ends, an owner that is silent may have windows before or after the range.
            if any(part.lacks_owners for part in parts) or (
                (live or asked.is_unbounded) and len(facts) < base.folded.partitions
            ):
                exactness = "partial"
            if exactness != "exact" or not live or not base.are_torn(parts, rows):
                return query, planned, parts, facts, exactness
            if left:
                await asyncio.sleep(TORN_WAIT_S)
        return query, planned, parts, facts, "settling"

    async def layer(
        self, layer: Layer, cells: CellRange, *, from_first: bool = False
    ) -> LayerResult:
        """Return the rows of one layer in a range, as they are now.

        A range may begin before the map had the layer if it is asked ``from_first`` window on.

        Raises:
            QueryError: more rows than a request may read, or some of the range was before the map
                had the layer.
            ArchiveError: the archive does not answer.
        """
        keys = KeyFilter({name: (value,) for name, value in cells.key.items()})
        read = LiveRead(layer, cells.from_ms, cells.to_ms, keys)
        (found,) = await self._ask([read], QueryCost(), _now() + PATIENCE_S)
        whole = self._facts.whole(layer)
        if not from_first:
            check_began(layer, cells, whole.get("events", NEVER_MS))
        is_whole = found.facts.keys() >= read.asked
        final_ms, stop = self._archived_until(
            layer, cells.from_ms, cells.to_ms, found.facts.values() if is_whole else None
        )
        # The archive leaves out expired cells; the cache may have them still.
        kept_ms = NEVER_MS
        if layer.archive_ttl_ms:
            kept_ms = layer.window.start(self._clock_ms() - layer.archive_ttl_ms)
        from_ms = max(cells.from_ms, kept_ms, self._facts.first_ms(layer))
        rows = []
        for start, end, final in ((from_ms, final_ms, True), (max(final_ms, from_ms), stop, False)):
            if start < end:
                part = dataclasses.replace(cells, from_ms=start, to_ms=end)
                rows.append(await self._archive.read(layer, part, final=final, cost=QueryCost()))
        nothing = no_rows(layer)
        columns = nothing.columns
        return LayerResult(
            live=whole_only(stacked((frame[columns] for frame in found.rows), nothing), whole),
            archived=whole_only(stacked(rows, nothing), whole),
            partial=whole.get("events") == NEVER_ENDS_MS or not is_whole,
            served=len(found.facts),
            whole=later_measures(layer, whole, cells.from_ms),
        )

    def _archived_until(
        self, layer: Layer, from_ms: int, to_ms: int, facts: Iterable[PartitionFacts] | None
    ) -> tuple[int, int]:
        """Return the ends of the parts of a live range that are final, and that may be evicted.

        ``facts`` are those of the owners that were asked, None if some of them did not answer.
        """
        if facts is not None:
            evicted_ms = max((fact.evicted_ms for fact in facts), default=NEVER_MS)
            to_ms = min(to_ms, layer.window.start(max(evicted_ms, from_ms)))
        final_ms = layer.window.start(max(self._facts.archived_ms(layer), from_ms))
        return min(to_ms, max(final_ms, from_ms)), to_ms

    def _parts(self, query: FamilyQuery, planned: QueryPlan) -> list[Part]:
        segments: dict[str, list[Segment]] = {}
        for segment in planned.segments:
            segments.setdefault(segment.name, []).append(segment)
        layers = (layer for layer in query.layers if layer.name in segments)
        return [self._part(query, layer, segments[layer.name]) for layer in layers]

    def _part(self, query: FamilyQuery, layer: Layer, segments: list[Segment]) -> Part:
        archived_ms = max(self._facts.archived_ms(layer), segments[0].from_ms)
        # The window that holds the moment is the first that ends after it.
        archived_ms = min(layer.window.start(archived_ms), segments[-1].to_ms)
        keys = query.keys.keys_of(layer, KEYS_MAX) if layer.has_topic else None
        partitions = None
        if keys is not None:
            partitions = frozenset(key_hash(key.values()) % layer.partitions for key in keys)
        return Part(layer, segments, archived_ms, partitions)

    def _stale(self, layers: Iterable[Layer], seconds_max: float) -> list[LiveRead]:
        """Return reads for the facts of the layers whose facts are older than ``seconds_max``."""
        old = _now() - seconds_max
        return [LiveRead(one) for one in layers if self._asked_at.get(one.name, old) <= old]

    async def _ask(self, reads: list[LiveRead], cost: QueryCost, until: float) -> list[LiveRows]:
        found = await self._live.read(reads, cost, until)
        for read, rows in zip(reads, found, strict=True):
            self._facts.add(read.layer.name, rows.facts.values())
            if read.partitions is None:
                self._asked_at[read.layer.name] = _now()
        return found

    async def _read_archive(self, query: FamilyQuery, part: Part, cost: QueryCost) -> None:
        """Give a part its rows of the archive: final cells, and those that had left live tables."""
        layer, live_from_ms = part.layer, part.live_from_ms
        facts = None if part.lacks_owners else part.live.facts.values()
        # Some windows are final by now that were not known to be when owners were asked.
        middle, stop = self._archived_until(layer, live_from_ms, part.to_ms, facts)
        # The archive has nothing before the first window.
        first_ms = self._facts.first_ms(layer)
        from_ms = max(live_from_ms, first_ms)
        read = functools.partial(self._archived, query, part, cost)
        part.final = await read((first_ms, live_from_ms), final=True)
        part.evicted = await read((from_ms, middle), final=True)
        part.evicted += await read((max(middle, from_ms), stop), final=False)
        spent = cost.of(layer.name)
        spent.archived_rows += part.archived_height
        spent.live_rows += part.live_height

    async def _archived(
        self, query: FamilyQuery, part: Part, cost: QueryCost, span: tuple[int, int], *, final: bool
    ) -> list[pl.DataFrame]:
        """Return archive frames of a part in a range, with the requested keys and maybe others."""
        layer = part.layer
        ranges = part.ranges(*span)
        if not ranges:
            return []
        start = ranges[0][0]
        if layer.archive_ttl_ms and start < self._clock_ms() - layer.archive_ttl_ms:
            raise QueryError(
                f"cannot read family {query.family.name}: the cells of {layer.name} from {start}"
                " on have expired (archive_ttl); ask for a later range"
            )
        keys = query.keys.keys_of(layer, KEYS_MAX) or [query.keys.single]
        read = functools.partial(self._archive.read, layer, final=final, cost=cost)
        cells = (CellRange(*one, key, self._limits.rows_max) for one in ranges for key in keys)
        return await gathered((functools.partial(read, one) for one in cells), READS_AT_ONCE_MAX)


def _is_too_old(found: FamilyResult, query: FamilyQuery) -> bool:
    """Return whether an answer is older than a request allows; a final one never is."""
    if query.max_staleness_ms is None or found.final:
        return False
    return found.data_age_ms is None or found.data_age_ms > query.max_staleness_ms


def _now() -> float:
    return asyncio.get_running_loop().time()
