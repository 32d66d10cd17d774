"""Changes: the cells of a layer that have changed since a follower's place, from all workers.

Owners return the cells of their tables that have changed or closed. Cells that they evicted
meanwhile may have changed just before: if a version says so, they are read from the archive. So a
follower that comes back after any time gets the last value of every cell that has changed; it may
miss values in between.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
from collections.abc import Mapping

import msgspec
import polars as pl

from agents.query.reader import PATIENCE_S, LiveSource
from tables.archive.cache import ArchiveCache
from tables.archive.protocol import CellRange
from tables.model.cost import QueryCost
from tables.model.errors import QueryError
from tables.model.layer import Layer
from tables.model.limits import INT64_MAX, INT64_MIN
from tables.model.window import NEVER_ENDS_MS, NEVER_MS, START_MS_MIN
from tables.query.answer import matching
from tables.query.facts import PartitionFacts, whole_of, with_fact
from tables.query.family import KeyFilter
from tables.query.live import FollowerPosition, LiveRead, LiveRows
from tables.state.cell import archive_schema, in_order, no_rows, whole_only

PLACE_CHARACTERS_MAX = 65_536

AT_ONCE_ROWS_MAX = 2_000
"""Rows up to which it is faster to sort them at once than in a thread."""

NOTHING_TOLD = -1
"""The version of a follower that has not got any cell: less than that of any cell."""

Place = Mapping[int, FollowerPosition]
"""How far a follower is, by partition of the layer's input."""

_WirePlace = tuple[str, dict[int, FollowerPosition]]


@dataclasses.dataclass(frozen=True, slots=True)
class ChangeBatch:
    """The next changes for a follower, and its place after them.

    ``rows`` is an archive frame with ``is_closed``; ``facts`` are of the partitions that answered.
    """

    rows: pl.DataFrame
    place: Place
    facts: Mapping[int, PartitionFacts]


@dataclasses.dataclass(frozen=True, slots=True)
class Changes:
    """The changes of one layer's cells; ``rows_max`` bounds the archive rows of one step."""

    layer: Layer
    keys: KeyFilter
    live: LiveSource
    archive: ArchiveCache
    rows_max: int

    async def now(self) -> Place:
        """Return the place of a follower that has all changes up to now."""
        found = await self._ask(LiveRead(self.layer))
        return {partition: _told(one) for partition, one in found.facts.items()}

    async def since(self, place: Place) -> ChangeBatch:
        """Return the changes of cells since a place.

        Partitions that are not in ``place`` begin with their oldest live cell. The changes of
        partitions that do not answer come later.

        Raises:
            ArchiveError: the archive does not answer.
            QueryError: more rows were evicted meanwhile than may be read at once.
        """
        layer = self.layer
        found = await self._ask(
            LiveRead(layer, START_MS_MIN, NEVER_ENDS_MS, self.keys, after=place)
        )
        facts = found.facts
        frames = [*found.rows, await self._evicted(place, facts)]
        if sum(frame.height for frame in frames) <= AT_ONCE_ROWS_MAX:
            rows = _in_order(layer, frames, facts)
        else:
            rows = await self.archive.threads.run(_in_order, layer, frames, facts)
        return ChangeBatch(rows, _places(place, facts), facts)

    async def _ask(self, read: LiveRead) -> LiveRows:
        until = asyncio.get_running_loop().time() + PATIENCE_S
        (found,) = await self.live.read([read], QueryCost(), until)
        return found

    async def _evicted(self, place: Place, facts: Mapping[int, PartitionFacts]) -> pl.DataFrame:
        """Return an archive frame of the evicted cells that changed or closed since a place."""
        layer = self.layer
        nothing = no_rows(layer)
        gone = []
        for partition, told in place.items():
            now = facts.get(partition)
            if now is None or now.evicted_ms <= told.evicted_ms:
                continue
            # Cells that have not changed since are sent once more if they closed since.
            changed = now.evicted_version > told.version
            before_ms = told.evicted_ms if changed else max(told.evicted_ms, told.closed_ms)
            if before_ms < now.evicted_ms:
                gone.append((partition, told.version, told.closed_ms, before_ms, now.evicted_ms))
        if not gone:
            return nothing
        start = max(START_MS_MIN, min(before for *_, before, _ in gone))
        stop = max(after for *_, after in gone)
        cells = CellRange(
            layer.window.start(start), layer.window.start(stop), self.keys.single, self.rows_max
        )
        if cells.from_ms >= cells.to_ms:
            return nothing
        rows = await self.archive.read(layer, cells, final=False, cost=QueryCost())
        names = ("told", "closed", "before", "after")
        schema = {"source_partition": pl.Int32(), **dict.fromkeys(names, pl.Int64())}
        bounds = pl.DataFrame(gone, schema=schema, orient="row")
        end = layer.window.ends(pl.col("window_start"))
        is_news = (pl.col("version") > pl.col("told")) | (end > pl.col("closed"))
        news = rows.join(bounds, "source_partition").filter(
            is_news, end > pl.col("before"), end <= pl.col("after")
        )
        return matching(layer, news, self.keys).select(nothing.columns)


def encode_place(layer: Layer, place: Place) -> str:
    """Return the opaque text of a place, for a follower to come back with."""
    wire: _WirePlace = layer.name, dict(place)
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(wire)).rstrip(b"=").decode("ascii")


def decode_place(layer: Layer, text: str) -> Place:
    """Return the place that :func:`encode_place` was given.

    Raises:
        QueryError: the text is not a place, or is of another layer.
    """
    bad = QueryError(
        f"cannot follow {layer.name}: Last-Event-ID is not one of this layer; want the id of the"
        " last event, unchanged, or no id"
    )
    if len(text) > PLACE_CHARACTERS_MAX:
        raise bad
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        wire: _WirePlace = msgspec.msgpack.decode(raw, type=_WirePlace)
    except (ValueError, msgspec.MsgspecError) as error:
        raise bad from error
    name, place = wire
    if name != layer.name or not all(0 <= partition < layer.partitions for partition in place):
        raise bad
    numbers = (number for told in place.values() for number in msgspec.structs.astuple(told))
    if not all(INT64_MIN <= number <= INT64_MAX for number in numbers):
        raise bad
    return place


def _told(facts: PartitionFacts) -> FollowerPosition:
    return FollowerPosition(facts.position, facts.closed_ms, facts.evicted_ms)


def _places(place: Place, facts: Mapping[int, PartitionFacts]) -> Place:
    """Return a follower's place after the changes of these partitions.

    No cell is read of a partition that does not know which windows are whole. Once it does, the
    follower gets all its cells, and those that it has evicted since it was asked first.
    """
    asked = {
        partition: FollowerPosition(NOTHING_TOLD, NEVER_MS, one.evicted_ms)
        for partition, one in facts.items()
    }
    told = {partition: _told(one) for partition, one in facts.items() if _is_known(one)}
    return {**asked, **place, **told}


def _is_known(facts: PartitionFacts) -> bool:
    return facts.complete_ms < NEVER_ENDS_MS


def _in_order(
    layer: Layer, frames: list[pl.DataFrame], facts: Mapping[int, PartitionFacts]
) -> pl.DataFrame:
    """Return the rows of frames in order, with ``is_closed``."""
    columns = list(archive_schema(layer))
    known = [one for one in facts.values() if _is_known(one)]
    rows = whole_only(pl.concat([frame.select(columns) for frame in frames]), whole_of(known))
    rows = with_fact(rows, facts.values(), "closed_ms")
    ends = layer.window.ends(pl.col("window_start"))
    rows = rows.with_columns(is_closed=ends <= pl.col("closed_ms")).drop("closed_ms")
    return in_order(rows, ["window_start", *layer.key_columns, "source_partition"])
