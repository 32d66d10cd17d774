"""Changes: the cells of a layer that have changed since a follower read, from all workers.

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

POSITIONS_CHARACTERS_MAX = 65_536

AT_ONCE_ROWS_MAX = 2_000
"""Rows up to which it is faster to sort them at once than in a thread."""

NOTHING_SENT = -1
"""The version of a follower without any cell: less than that of any cell."""

Positions = Mapping[int, FollowerPosition]
"""The positions of a follower, by partition of the layer's input."""

_WirePositions = tuple[str, dict[int, FollowerPosition]]


@dataclasses.dataclass(frozen=True, slots=True)
class ChangeBatch:
    """The next changes for a follower, and its positions after them.

    ``rows`` is an archive frame with ``is_closed``; ``facts`` are of the partitions that answered.
    """

    rows: pl.DataFrame
    positions: Positions
    facts: Mapping[int, PartitionFacts]


@dataclasses.dataclass(frozen=True, slots=True)
class Changes:
    """The changes of one layer's cells; ``rows_max`` bounds the archive rows of one step."""

    layer: Layer
    keys: KeyFilter
    live: LiveSource
    archive: ArchiveCache
    rows_max: int

    async def now(self) -> Positions:
        """Return the positions of a follower that has all changes up to now."""
        found = await self._ask(LiveRead(self.layer))
        return {partition: _position_of(one) for partition, one in found.facts.items()}

    async def since(self, positions: Positions) -> ChangeBatch:
        """Return the changes of cells since these positions.

        Partitions that are not in ``positions`` begin with their oldest live cell. The changes of
        partitions that do not answer come later.

        Raises:
            ArchiveError: the archive does not answer.
            QueryError: more rows were evicted meanwhile than may be read at once.
        """
        layer = self.layer
        found = await self._ask(
            LiveRead(layer, START_MS_MIN, NEVER_ENDS_MS, self.keys, after=positions)
        )
        facts = found.facts
        frames = [*found.rows, await self._evicted(positions, facts)]
        if sum(frame.height for frame in frames) <= AT_ONCE_ROWS_MAX:
            rows = _in_order(layer, frames, facts)
        else:
            rows = await self.archive.threads.run(_in_order, layer, frames, facts)
        return ChangeBatch(rows, _positions_after(positions, facts), facts)

    async def _ask(self, read: LiveRead) -> LiveRows:
        until = asyncio.get_running_loop().time() + PATIENCE_S
        (found,) = await self.live.read([read], QueryCost(), until)
        return found

    async def _evicted(
        self, positions: Positions, facts: Mapping[int, PartitionFacts]
    ) -> pl.DataFrame:
        """Return an archive frame of the evicted cells that changed or closed since then."""
        layer = self.layer
        nothing = no_rows(layer)
        gone = []
        for partition, sent in positions.items():
            now = facts.get(partition)
            if now is None or now.evicted_ms <= sent.evicted_ms:
                continue
            # Cells that have not changed since are sent once more if they closed since.
            changed = now.evicted_version > sent.version
            before_ms = sent.evicted_ms if changed else max(sent.evicted_ms, sent.closed_ms)
            if before_ms < now.evicted_ms:
                gone.append((partition, sent.version, sent.closed_ms, before_ms, now.evicted_ms))
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
        names = ("sent", "closed", "before", "after")
        schema = {"source_partition": pl.Int32(), **dict.fromkeys(names, pl.Int64())}
        bounds = pl.DataFrame(gone, schema=schema, orient="row")
        end = layer.window.ends(pl.col("window_start"))
        is_change = (pl.col("version") > pl.col("sent")) | (end > pl.col("closed"))
        changes = rows.join(bounds, "source_partition").filter(
            is_change, end > pl.col("before"), end <= pl.col("after")
        )
        return matching(layer, changes, self.keys).select(nothing.columns)


def encode_positions(layer: Layer, positions: Positions) -> str:
    """Return the opaque text of positions, for a follower to come back with."""
    wire: _WirePositions = layer.name, dict(positions)
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(wire)).rstrip(b"=").decode("ascii")


def decode_positions(layer: Layer, text: str) -> Positions:
    """Return the positions that :func:`encode_positions` was given.

    Raises:
        QueryError: the text does not come from it, or is of another layer.
    """
    bad = QueryError(
        f"cannot follow {layer.name}: Last-Event-ID is not one of this layer; want the id of the"
        " last event, unchanged, or no id"
    )
    if len(text) > POSITIONS_CHARACTERS_MAX:
        raise bad
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        wire: _WirePositions = msgspec.msgpack.decode(raw, type=_WirePositions)
    except (ValueError, msgspec.MsgspecError) as error:
        raise bad from error
    name, positions = wire
    if name != layer.name or not all(0 <= partition < layer.partitions for partition in positions):
        raise bad
    numbers = (number for sent in positions.values() for number in msgspec.structs.astuple(sent))
    if not all(INT64_MIN <= number <= INT64_MAX for number in numbers):
        raise bad
    return positions


def _position_of(facts: PartitionFacts) -> FollowerPosition:
    return FollowerPosition(facts.position, facts.closed_ms, facts.evicted_ms)


def _positions_after(positions: Positions, facts: Mapping[int, PartitionFacts]) -> Positions:
    """Return a follower's positions after the changes of these partitions.

    No cell is read of a partition that does not know which windows are whole. Once it does, the
    follower gets all its cells, and those that it has evicted since it was asked first.
    """
    asked = {
        partition: FollowerPosition(NOTHING_SENT, NEVER_MS, one.evicted_ms)
        for partition, one in facts.items()
    }
    sent = {partition: _position_of(one) for partition, one in facts.items() if _is_known(one)}
    return {**asked, **positions, **sent}


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
