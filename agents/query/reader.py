"""The reader: plans a request to a family, asks owners and archive, and makes one answer.

    facts known -> plan -> live tables of all owners -> archive -> rows
                    ^                             |
                    `--- torn: once more, soon ---'

Owners are asked first and the archive after, so that no cell falls between: what leaves a table
meanwhile was read there. Coarser cells are used up to floors that were heard of before, so the
base layer's positions, which are the answer's, are never behind them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

import polars as pl

from agents.query.answers import FamilyAnswer, LayerAnswer
from agents.query.parts import Part
from tables.archive.cache import ArchiveCache
from tables.archive.protocol import CellRange
from tables.model.cost import QueryCost
from tables.model.errors import QueryError
from tables.model.keyhash import key_hash
from tables.model.layer import Layer, Map, combiner_of
from tables.model.window import NEVER_ENDS_MS, NEVER_MS
from tables.query.answer import are_behind, are_torn, cells_of, matching, merged_cells_of, rows_of
from tables.query.cell_query import Limits
from tables.query.cover import Segment
from tables.query.facts import KnownFacts
from tables.query.family import FamilyQuery, KeyFilter
from tables.query.live import LiveRead, LiveRows
from tables.query.planner import QueryPlan, boundaries_of, plan
from tables.query.whole import check_began, later_measures
from tables.state.cell import later_of, no_rows, stacked, whole_only
from tables.threads import gathered

FACTS_S_MAX = 2.0
"""Facts that are older are asked for before a plan is made: a coarser cell that is not known to be
sealed costs as many finer ones as it has."""

FACTS_AGAIN_S = 0.5
"""Facts that are older are asked for with the next answer, so that a busy reader never waits for
them."""

TORN_WAIT_S = 0.02
"""About how long a contribution takes through a layer's topic."""

TORN_TRIES = 10

PATIENCE_S = 1.5
"""How long owners are waited for in one answer: a rebalance without a crash takes less."""

KEYS_MAX = 64
"""So many keys are read from the archive one by one; of more, a layer's windows are read whole."""

READS_AT_ONCE_MAX = 64
"""Ranges of one request that are read from the archive side by side."""

PLAN_AT_ONCE_BOUNDARIES_MAX = 1_000
"""Plans over so few boundaries are made at once, in some 5 ms; others in a thread."""

BESIDE_ROWS_MIN = 2_000
"""Answers of so many rows are made in a thread; fewer are made faster than a thread begins."""


class LiveSource(Protocol):
    """The owners of all partitions, on any worker."""

    async def read(
        self, reads: Sequence[LiveRead], cost: QueryCost, until: float
    ) -> list[LiveRows]:
        """Return what owners have, in the order of ``reads``; each answers all from one state.

        Owners are waited for until ``until``, by the event loop's clock; those that have not
        answered by then are missing among the facts. Who was asked is added to ``cost``.
        """


class Reader:
    """Answers requests to families.

    Args:
        themap: the map that is served.
        live: where owners are asked.
        archive: where the rest is.
        limits: the bounds of one request.
        clock_ms: the wall clock, for what has expired.

    Attributes:
        threads: where long steps are made: those of the archive.
    """

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
        """Return what would be read, from facts of now.

        Raises:
            QueryError: it cannot be answered; see :func:`tables.query.planner.plan`.
        """
        return await self._plan(query, QueryCost(), _now() + PATIENCE_S)

    async def _plan(self, query: FamilyQuery, cost: QueryCost, until: float) -> QueryPlan:
        old = _now() - FACTS_S_MAX
        base = query.family.base
        folded = self._input_of(base)
        layers = [*query.layers, folded] if base.merged else list(query.layers)
        stale = [layer for layer in layers if self._asked_at.get(layer.name, old) <= old]
        if stale:
            await self._ask([LiveRead(layer) for layer in stale], cost, until)
        now_ms = self._clock_ms()
        facts = {layer.name: self._facts.of(layer, now_ms) for layer in query.layers}
        # Whoever is silent, all windows that are not known to lack events can be used.
        whole = self._whole(base)
        facts[base.name] = dataclasses.replace(
            facts[base.name],
            complete_ms=whole.get("events", NEVER_MS),
            whole=whole,
            last_ms=self._facts.of(folded, now_ms).last_ms,
        )
        if boundaries_of(query) <= PLAN_AT_ONCE_BOUNDARIES_MAX:
            return plan(query, facts, self._limits.cells_max)
        return await self.threads.run(plan, query, facts, self._limits.cells_max)

    def _whole(self, base: Layer) -> dict[str, int]:
        """Return, by column, from when on the windows of a base layer are known to be whole.

        Of a merged one the combiners know it; its merge stage may keep a measure since later.
        """
        found = self._facts.whole(self._input_of(base))
        if not base.merged:
            return found
        merged = self._facts.whole(base).items()
        return later_of(found, {name: ms for name, ms in merged if ms < NEVER_ENDS_MS})

    async def answer(self, query: FamilyQuery) -> FamilyAnswer:
        """Return the rows of a request.

        Raises:
            QueryError: it cannot be answered as it is.
            ArchiveError: the archive does not answer.
        """
        base = query.family.base
        cost = QueryCost()
        until = _now() + PATIENCE_S
        for left in reversed(range(TORN_TRIES)):
            planned = await self._plan(query, cost, until)
            parts = self._parts(query, planned)
            base_rows = await self._read_live(query, parts, cost, until)
            final = all(part.is_final for part in parts)
            partial = any(part.lacks_owners for part in parts) or (
                not final and len(base_rows.facts) < self._input_of(base).partitions
            )
            torn = (
                planned.exactness == "exact"
                and not final
                and self._are_torn(base, parts, base_rows)
            )
            if partial or not torn or not left:
                break
            await asyncio.sleep(TORN_WAIT_S)
        makers = await gathered(
            [functools.partial(self._cells, query, part, cost) for part in parts], len(parts)
        )
        whole = self._whole(base)

        def rows() -> pl.DataFrame:
            made = zip(parts, makers, strict=True)
            found = rows_of(query, [(part.layer, make()) for part, make in made])
            return whole_only(found, whole)

        read = sum(layer.live_rows + layer.archived_rows for layer in cost.layers.values())
        facts = base_rows.facts.values()
        return FamilyAnswer(
            rows=rows() if read < BESIDE_ROWS_MIN else await self.threads.run(rows),
            plan=planned,
            exactness="partial" if partial else "settling" if torn else planned.exactness,
            as_of={fact.partition: fact.position for fact in facts},
            watermark_ms=min((fact.closed_ms for fact in facts), default=NEVER_MS),
            fresh_ms=min((fact.fresh_ms for fact in facts), default=NEVER_MS),
            final=final,
            cost=cost,
            whole=later_measures(query.rows, whole, query.from_ms),
        )

    async def layer(self, layer: Layer, cells: CellRange) -> LayerAnswer:
        """Return the rows of one layer in a range, as they are now.

        Raises:
            QueryError: more rows than a request may read, or some of the range was before the map
                had the layer.
            ArchiveError: the archive does not answer.
        """
        cost = QueryCost()
        keys = KeyFilter({name: (value,) for name, value in cells.key.items()})
        read = LiveRead(layer, cells.from_ms, cells.to_ms, keys)
        (found,) = await self._ask([read], cost, _now() + PATIENCE_S)
        whole = self._facts.whole(layer)
        check_began(layer, cells, whole.get("events", NEVER_MS))
        stop, final_ms = cells.to_ms, cells.from_ms
        if found.facts.keys() >= read.asked:
            evicted_ms = max(fact.evicted_ms for fact in found.facts.values())
            stop = min(stop, layer.window.start(max(evicted_ms, cells.from_ms)))
            known_ms = max(self._facts.archived_ms(layer), cells.from_ms)
            final_ms = min(stop, max(layer.window.start(known_ms), cells.from_ms))
        # The archive leaves out what has expired; what is remembered of it may have it still.
        kept_ms = NEVER_MS
        if layer.archive_ttl_ms:
            kept_ms = layer.window.start(self._clock_ms() - layer.archive_ttl_ms)
        from_ms = max(cells.from_ms, kept_ms, self._facts.first_ms(layer))
        archived = []
        for start, end, final in ((from_ms, final_ms, True), (max(final_ms, from_ms), stop, False)):
            if start < end:
                part = dataclasses.replace(cells, from_ms=start, to_ms=end)
                archived.append(await self._archive.read(layer, part, final=final, cost=cost))
        nothing = no_rows(layer)
        columns = nothing.columns
        is_unknown = whole.get("events") == NEVER_ENDS_MS
        return LayerAnswer(
            live=whole_only(stacked((frame[columns] for frame in found.rows), nothing), whole),
            archived=whole_only(stacked(archived, nothing), whole),
            partial=is_unknown or not found.facts.keys() >= read.asked,
            served=frozenset(found.facts),
            cost=cost,
            whole=later_measures(layer, whole, cells.from_ms),
        )

    def _input_of(self, base: Layer) -> Layer:
        """Return the layer whose tables events of ``base`` are folded into."""
        assert base.source is not None
        return combiner_of(self._map.source(base.source), base) if base.merged else base

    def _parts(self, query: FamilyQuery, planned: QueryPlan) -> list[Part]:
        """Return the parts of a plan, one for each layer."""
        segments: dict[str, list[Segment]] = {}
        for segment in planned.segments:
            segments.setdefault(segment.name, []).append(segment)
        return [
            self._part(query, layer, segments[layer.name])
            for layer in query.layers
            if layer.name in segments
        ]

    def _part(self, query: FamilyQuery, layer: Layer, segments: list[Segment]) -> Part:
        archived_ms = max(self._facts.archived_ms(layer), segments[0].from_ms)
        # The window that holds the moment is the first that ends after it.
        archived_ms = min(layer.window.start(archived_ms), segments[-1].to_ms)
        keys = query.keys.keys_of(layer, KEYS_MAX) if layer.has_topic else None
        partitions = None
        if keys is not None:
            partitions = frozenset(key_hash(key.values()) % layer.partitions for key in keys)
        return Part(layer, segments, archived_ms, partitions)

    async def _read_live(
        self, query: FamilyQuery, parts: list[Part], cost: QueryCost, until: float
    ) -> LiveRows:
        """Ask owners for what is not final; return what those of the base say of themselves.

        The merge stage of a merged base is asked before its combiners, so that what it has settled
        has been sealed in all of them.
        """
        base = query.family.base
        folded = self._input_of(base)
        parts = [part for part in parts if not part.is_final]
        reads = [
            LiveRead(
                part.layer, part.live_from_ms, part.to_ms, query.keys,
                parts=part.layer.merged, partitions=part.partitions,
            )
            for part in parts
        ]  # fmt: skip
        old = _now() - FACTS_AGAIN_S
        facts = [LiveRead(one) for one in query.layers if self._asked_at.get(one.name, old) <= old]
        of_base = LiveRead(folded)
        if base.merged:
            found = await self._ask([*reads, *facts], cost, until)
            combined = [
                LiveRead(folded, part.live_from_ms, part.to_ms, query.keys)
                for part in parts
                if part.layer is base
            ]
            *more, base_rows = await self._ask([*combined, of_base], cost, until)
            for part, rows in zip((p for p in parts if p.layer is base), more, strict=True):
                part.combined = rows
        else:
            *found, base_rows = await self._ask([*reads, *facts, of_base], cost, until)
        for part, rows in zip(parts, found[: len(parts)], strict=True):
            part.live = rows
        return base_rows

    async def _ask(self, reads: list[LiveRead], cost: QueryCost, until: float) -> list[LiveRows]:
        found = await self._live.read(reads, cost, until)
        for read, rows in zip(reads, found, strict=True):
            self._facts.take(read.layer.name, rows.facts.values())
            if read.partitions is None:
                self._asked_at[read.layer.name] = _now()
        return found

    def _are_torn(self, base: Layer, parts: list[Part], base_rows: LiveRows) -> bool:
        """Tell whether what was read is not of one position of each source partition."""
        coarse = [part.to_ms for part in parts if part.layer is not base]
        if coarse and are_behind(base_rows, max(coarse)):
            return True
        return any(
            are_torn(base, part.live, part.combined, part.live_from_ms, part.to_ms)
            for part in parts
            if part.layer is base and base.merged and not part.is_final
        )

    async def _cells(
        self, query: FamilyQuery, part: Part, cost: QueryCost
    ) -> Callable[[], pl.DataFrame]:
        """Return what makes the cells of a part, in any thread.

        It is of what is final, what was live, and what had left live tables.
        """
        layer = part.layer
        stop = part.to_ms
        live_from_ms = stop if part.is_final else part.live_from_ms
        if not part.lacks_owners:
            evicted_ms = max(
                (fact.evicted_ms for fact in part.live.facts.values()), default=NEVER_MS
            )
            stop = min(stop, layer.window.start(max(evicted_ms, live_from_ms)))
        # What is final by now, though it was not known to be when owners were asked.
        known_ms = max(self._facts.archived_ms(layer), live_from_ms)
        middle = min(stop, layer.window.start(known_ms))
        # Before the first window the archive has nothing, however many partitions that were.
        first_ms = self._facts.first_ms(layer)
        from_ms = max(live_from_ms, first_ms)
        final = await self._archived(query, part, first_ms, live_from_ms, cost, final=True)
        archived = [
            await self._archived(query, part, from_ms, middle, cost, final=True),
            await self._archived(query, part, max(middle, from_ms), stop, cost, final=False),
        ]
        spent = cost.of(layer.name)
        spent.archived_rows += sum(rows.height for rows in (*final, *archived[0], *archived[1]))
        spent.live_rows += sum(frame.height for frame in (*part.live.rows, *part.combined.rows))
        keys = query.keys
        is_read_by_key = keys.is_single or keys.keys_of(layer, KEYS_MAX) is not None

        def cells() -> pl.DataFrame:
            frames = []
            for found in (final, itertools.chain(*archived)):
                rows = stacked(found, no_rows(layer))
                frames.append(rows if is_read_by_key else matching(layer, rows, keys))
            finals, evicted = frames
            live = part.inside(part.live)
            if layer.merged:
                return merged_cells_of(layer, live, part.inside(part.combined), evicted, finals)
            return cells_of(layer, live, evicted, finals)

        return cells

    async def _archived(
        self,
        query: FamilyQuery,
        part: Part,
        from_ms: int,
        to_ms: int,
        cost: QueryCost,
        *,
        final: bool,
    ) -> list[pl.DataFrame]:
        """Return archive frames of a part in a range, of the keys asked for and maybe others."""
        layer = part.layer
        ranges = part.ranges(from_ms, to_ms)
        if not ranges:
            return []
        start = ranges[0][0]
        if layer.archive_ttl_ms and start < self._clock_ms() - layer.archive_ttl_ms:
            raise QueryError(
                f"cannot read family {query.family.name}: the cells of {layer.name} from {start}"
                " on have expired (archive_ttl); ask for a later range"
            )
        keys = query.keys.keys_of(layer, KEYS_MAX) or [query.keys.single]
        reads = (
            functools.partial(
                self._archive.read,
                layer,
                CellRange(*span, key, self._limits.rows_max),
                final=final,
                cost=cost,
            )
            for span in ranges
            for key in keys
        )
        return await gathered(reads, READS_AT_ONCE_MAX)


def _now() -> float:
    return asyncio.get_running_loop().time()
