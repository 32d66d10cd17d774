"""Cells recomputed in tables: every layer's cells at quiescence, from the events of all sources.

::

    events -- late? filtered? --> cells of base layers, by source partition
                                        `--> coarser cells --> ...
                                 (of a merged layer the parts of all partitions are added)

A table has a row for each part of a cell: the part in one partition of the layer's input,
which is one row of the archive.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator, Mapping

from app.verify import sql
from app.verify.database import COLUMN_TYPES, Database, text
from app.verify.events import Events
from app.verify.repeats import find_repeats
from app.verify.report import Difference
from app.verify.sql import either
from app.verify.whole import Whole
from tables.model.layer import KeyField, Layer, Map, Scalar

Key = tuple[Scalar, ...]


@dataclasses.dataclass(eq=False)
class Cells:
    """The tables of cells of all layers.

    ``events`` are those of each source, by its name. ``early`` says whether coarser layers have
    the cells of open windows too.
    """

    database: Database
    map: Map
    events: Mapping[str, Events]
    _: dataclasses.KW_ONLY
    early: bool

    @staticmethod
    def table(layer: Layer) -> str:
        """Return the table of a layer's cells.

        Its columns are ``part``, the key, ``start`` and ``stop`` of the window, ``closed``,
        ``events``, and those of :class:`sql.Sums`.
        """
        return f"cells_{layer.name}"

    def make(self) -> None:
        """Make all tables, and count the outcomes of events in the ledgers."""
        for events in self.events.values():
            repeats = find_repeats(self.database, events)
            for layer in events.layers:
                self._fold(events, layer, repeats)
        waiting = [layer for layer in self.map.layers if layer.has_topic]
        made = {layer.name for layer in self.map.layers if not layer.has_topic}
        while waiting:
            layer = waiting.pop(0)
            if layer.finer is not None and layer.finer not in made:
                waiting.append(layer)
                continue
            self._gather(layer)
            made.add(layer.name)

    def leave_out(self, whole: Whole) -> None:
        """Delete the rows of windows that layers cannot have, once all tables are made."""
        for layer in self.map.layers:
            if layer.name in whole.cells:
                self.database.run(
                    f"DELETE FROM {self.table(layer)} WHERE start < {whole.cells[layer.name]}"
                )

    def late_letters(self) -> Iterator[Difference]:
        """Yield each record whose letters of ``too_late`` events differ from those it must have.

        A layer that the map got later may have letters of events at its cut, and from
        when the map had it before.
        """
        for events in self.events.values():
            if events.layers:
                yield from self._late_letters(events)

    def starts(self, layer: Layer) -> Iterator[tuple[int, int]]:
        """Yield the starts of a layer's windows, in order, with how many rows each has."""
        query = f"SELECT start, count(*) FROM {self.table(layer)} GROUP BY start ORDER BY start"
        yield from ((start, count) for start, count in self.database.rows(query))

    def _fold(self, events: Events, layer: Layer, repeats: str) -> None:
        """Make a base layer's cells, or the parts that a merged one is made of."""
        database = self.database
        start = sql.window_start(layer, "time")
        delay_ms = layer.max_out_of_orderness_ms + layer.allowed_lateness_ms
        filtered = sql.both([sql.holds(one, events.column) for one in layer.where])
        fields = [events.column(one.name) for one in sql.sums_of(layer)]
        columns = {events.column(field.name) for field in layer.key} | set(fields)
        database.run(
            "CREATE OR REPLACE TEMP VIEW selected AS SELECT"
            f' part, "offset", index, {start} AS start, CASE WHEN NOT {filtered} THEN'
            f" 'filtered' WHEN before - {delay_ms} >= {sql.window_end(layer, start)} THEN"
            f" 'too_late' ELSE 'folded' END AS outcome, {events.cuts.sure(layer)} AS sure"
            f"{''.join(f', {one}' for one in columns)}"
            f' FROM {events.table} ANTI JOIN {repeats} USING (part, "offset", index)'
            f" WHERE {events.selected_by(layer)} AND {events.possible(layer)}"
        )
        self._count(events, layer)
        key = [f"{events.column(f.name)} AS k{number}" for number, f in enumerate(layer.key)]
        sums = [
            f"{made} AS {column}"
            for one, field in zip(sql.sums_of(layer), fields, strict=True)
            for column, made in zip(one.columns, one.folded(field), strict=True)
        ]
        group = ["part", *key, "start", "count(*) AS events", *sums]
        folded = f"SELECT {', '.join(group)} FROM selected WHERE outcome = 'folded' GROUP BY ALL"
        if layer.merged:
            database.run(f"CREATE OR REPLACE TABLE {_parts(layer)} AS {folded}")
            return
        stop = sql.window_end(layer, "start")
        database.run(
            f"CREATE OR REPLACE TABLE {self.table(layer)} AS SELECT *, {stop} AS stop,"
            f" {stop} <= known - {layer.max_out_of_orderness_ms} AS closed FROM ({folded})"
            f" JOIN {events.times()} USING (part)"
        )

    def _count(self, events: Events, layer: Layer) -> None:
        name = folded_as(layer)
        counted = self.database.all(
            "SELECT part, outcome, sure, count(*) FROM selected GROUP BY ALL"
        )
        for part, outcome, sure, count in counted:
            partition = events.partitions[part]
            counts = partition.ledger if sure else partition.doubt
            counts[f"layer.{name}.selected"] += count
            counts[f"layer.{name}.{outcome}"] += count
        self.database.run(
            f'CREATE OR REPLACE TABLE sealed_{layer.name} AS SELECT part, "offset", index,'
            f" {text(layer.name)} AS named, sure FROM selected WHERE outcome = 'too_late'"
        )

    def _late_letters(self, events: Events) -> Iterator[Difference]:
        sealed = " UNION ALL ".join(f"FROM sealed_{layer.name}" for layer in events.layers)
        got = events.late_letters()
        if events.cuts:
            early = either(
                [
                    f"(named = {text(layer.name)} AND NOT {events.cuts.possible(layer)})"
                    for layer in events.layers
                ]
            )
            got = (
                f"SELECT * FROM ({got}) ANTI JOIN (SELECT * FROM ({sealed}) WHERE NOT sure)"
                f' USING (part, "offset", index, named) WHERE NOT {early}'
            )
        listed = (
            'SELECT part, "offset", list_sort(list(DISTINCT (named, index))) AS {} FROM ({})'
            " GROUP BY ALL"
        )
        want = f"SELECT * FROM ({sealed}) WHERE sure"
        rows = self.database.rows(
            f'SELECT part, "offset", want, got FROM ({listed.format("want", want)})'
            f" FULL OUTER JOIN ({listed.format('got', got)})"
            ' USING (part, "offset") WHERE want IS DISTINCT FROM got ORDER BY part, "offset"'
        )
        for part, offset, late, named in rows:
            where = f"late letters of {events.source.topic}[{part}] offset {offset}"
            yield Difference("letters", where, str(late or []), str(named or []))

    def _gather(self, layer: Layer) -> None:
        """Make the cells of a layer with a topic of its own, each in the partition of its key."""
        database = self.database
        sums = sql.sums_of(layer)
        names = [column for one in sums for column in one.columns]
        keys = sql.keys_of(layer)
        if layer.finer is None:
            sent, start, key, finer = _parts(layer), "sent.start", keys, sums
        else:
            finer_layer = self.map.layer(layer.finer)
            fields = [field.name for field in finer_layer.key]
            key = [f"k{fields.index(field.name)}" for field in layer.key]
            start = sql.window_start(layer, "sent.start")
            known = {one.name: one for one in sql.sums_of(finer_layer)}
            finer = [known[one.name] for one in sums]
            sent = self.table(finer_layer)
            if not self.early:
                sent = f"(FROM {sent} WHERE closed)"
        merged = [
            f"{made} AS {column}"
            for one, other in zip(sums, finer, strict=True)
            for column, made in zip(one.columns, one.merged("sent", other), strict=True)
        ]
        keyed = [f"sent.{old} AS {new}" for old, new in zip(key, keys, strict=True)]
        group = [*keyed, f"{start} AS start", "sum(sent.events)::BIGINT AS events", *merged]
        database.run(
            f"CREATE OR REPLACE TEMP TABLE gathered AS SELECT {', '.join(group)} FROM {sent} AS"
            " sent GROUP BY ALL"
        )
        self._place_keys(layer)
        stop = sql.window_end(layer, "start")
        closed = self._closed_ms(layer)
        test = "false" if closed is None else f"{stop} <= {closed}"
        columns = ["part", *keys, "start", "events", *names, f"{stop} AS stop, {test} AS closed"]
        joins = f"JOIN placed USING ({', '.join(keys)})" if keys else ", placed"
        database.run(
            f"CREATE OR REPLACE TABLE {self.table(layer)} AS SELECT {', '.join(columns)} FROM"
            f" gathered {joins}"
        )

    def _place_keys(self, layer: Layer) -> None:
        """Make the table of the partitions that a layer's keys belong to."""
        keys = sql.keys_of(layer)
        types = [COLUMN_TYPES[field.type][1] for field in layer.key]
        declared = "".join(f", {name} {kind}" for name, kind in zip(keys, types, strict=True))
        self.database.run(f"CREATE OR REPLACE TABLE placed (part INTEGER{declared})")
        if not keys:
            self.database.run(f"INSERT INTO placed VALUES ({key_hash((), ()) % layer.partitions})")
            return
        self.database.run(
            f"CREATE OR REPLACE TABLE keys AS SELECT DISTINCT {', '.join(keys)} FROM gathered"
        )
        found = self.database.rows("FROM keys")
        self.database.insert(
            "placed", ((key_hash(layer.key, key) % layer.partitions, *key) for key in found)
        )

    def _closed_ms(self, layer: Layer) -> int | None:
        """Return the time up to which windows are closed in a layer topic; None if none are.

        It is the least of the times that the partitions of the source have reached.
        """
        while layer.finer is not None:
            layer = self.map.layer(layer.finer)
        assert layer.source is not None
        times = [one.stream_time_ms for one in self.events[layer.source].partitions]
        known = [time for time in times if time is not None]
        return min(known) - layer.max_out_of_orderness_ms if len(known) == len(times) else None


def folded_as(layer: Layer) -> str:
    """Return the name under which events of a base layer are counted: that of its first table."""
    return f"{layer.name}.partial" if layer.merged else layer.name


def key_hash(fields: tuple[KeyField, ...], key: Key) -> int:
    """Return the CRC-32 of a key's canonical bytes; see docs/formats/archive.md."""
    data = b""
    for field, value in zip(fields, key, strict=True):
        if field.type == "string":
            encoded = str(value).encode()
            data += len(encoded).to_bytes(4, "big") + encoded
        elif field.type == "int":
            data += int(value).to_bytes(8, "big", signed=True)
        else:
            data += b"\x01" if value else b"\x00"
    return zlib.crc32(data)


def _parts(layer: Layer) -> str:
    return f"parts_{layer.name}"
