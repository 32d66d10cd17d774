"""The oracle: what every row, value, ledger and letter must be, in plain arithmetic.

It walks the source logs event by event and knows nothing of chunks, blocks or tables. Of the
product it uses only the bytes' layout. What an owner may have cut, and under which revision, it
takes from the journal, by rules 3 and 4 in its own words.
"""

from __future__ import annotations

import bisect
import io
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import polars as pl
from simulation.feeds import check_feeds
from simulation.log import PartitionLog, SimulatedLog
from simulation.sink import Row, SimulatedArchive, Value
from simulation.workload import RAW, Workload

from tables.contribution import decode_contribution
from tables.keyhash import key_hash
from tables.layer import Layer, Map

NEVER = -(2**62)
Histories = dict[Row, list[tuple[int, Value]]]
"""Of each cell: from which version on it has which value, in ascending order."""


class Oracle:
    """Checks what is left of a run against the source logs."""

    def __init__(
        self, work: Workload, themap: Map, log: SimulatedLog, archive: SimulatedArchive
    ) -> None:
        self._work = work
        self._map = themap
        self._log = log
        self._archive = archive
        self._bases = [layer for layer in themap.layers if layer.source]
        self.histories: Histories = {}
        self.ledgers: dict[tuple[str, int], Counter[str]] = {}
        self.late: set[tuple[int, int, str]] = set()

    def check(self) -> Iterator[str]:
        """Yield a sentence for everything that is not as it must be."""
        for partition in range(len(self._work.records)):
            revisions, wrong = self._revisions(partition)
            if wrong:
                yield f"{RAW}[{partition}]: {wrong}"
                return
            self._fold(partition, revisions)
        yield from self._check_topics()
        yield from self._check_sent()
        yield from self._check_rows()
        pure = not self._work.impure
        yield from check_feeds(self._map, self._log, self._archive, self._wrong, pure=pure)
        yield from self._check_letters()

    def _revisions(self, partition: int) -> tuple[list[int], str]:
        """Return the map's revision under which each record was folded, from the journal.

        A pure run has one only: there, nothing of the journal is needed to know all results.
        """
        log = self._log.of(RAW, partition)
        if not self._work.impure:
            return [1] * len(log.records), ""
        journal = self._log.of(self._map.journal_topic(RAW), partition)
        epoch, revision, to = -1, 0, log.first
        revisions: list[int] = []
        for offset, record in enumerate(journal.records):
            assert record.value is not None
            kind, *fields = msgspec.msgpack.decode(record.value[9:])
            if kind == "claim" and fields[0] >= revision:
                epoch, revision = offset, fields[0]
            elif kind == "delta" and fields[:3] == [epoch, revision, to]:
                revisions += [revision] * (fields[3] - to)
                to = fields[3]
        if len(revisions) != len(log.records):
            return [], f"{len(revisions)} of {len(log.records)} records are in its history"
        return revisions, ""

    def _fold(self, partition: int, revisions: list[int]) -> None:
        """Fold one source partition into the base layers."""
        first = self._log.of(RAW, partition).first
        ledger = self.ledgers[RAW, partition] = Counter()
        stream = NEVER
        floors = dict.fromkeys((layer.name for layer in self._bases), NEVER)
        for number, record in enumerate(self._work.records[partition]):
            offset = first + number
            if isinstance(record, int):
                ledger["records.heartbeat"] += 1
                stream = max(stream, record)
            else:
                ledger["records.with_events"] += 1
                ledger["events.decoded"] += len(record)
                ledger["events.classified"] += len(record)
                for key, time, value in record:
                    for layer in self._bases:
                        rule = self._work.rules[layer.name][revisions[number] - 1]
                        floor = max(floors[layer.name], stream - rule.slack_ms)
                        floors[layer.name] = floor
                        least = rule.least / 10 if self._work.impure else rule.least
                        event = key, time, value
                        position = partition, offset
                        column = self._place(layer, event, floor, least, position)
                        name = _first_layer(layer)
                        ledger[f"layer.{name}.selected"] += 1
                        ledger[f"layer.{name}.{column}"] += 1
                    stream = max(stream, time)
            for layer in self._bases:
                slack = self._work.rules[layer.name][revisions[number] - 1].slack_ms
                floors[layer.name] = max(floors[layer.name], stream - slack)

    def _place(
        self,
        layer: Layer,
        event: tuple[str, int, float],
        floor: int,
        least: float,
        position: tuple[int, int],
    ) -> str:
        """Put an event where it belongs; return its column of the ledger."""
        key, time, value = event
        partition, offset = position
        window = time // layer.window.length_ms * layer.window.length_ms
        if value < least:
            return "filtered"
        if window + layer.window.length_ms <= floor:
            self.late.add((partition, offset, layer.name))
            return "too_late"
        history = self.histories.setdefault((_first_layer(layer), (key,), window, partition), [])
        before = history[-1][1] if history else None
        history.append((offset + 1, _sum([before, (1, 1, value, value)])))
        return "folded"

    def _check_topics(self) -> Iterator[str]:
        """Check every contribution, and fold the layer topics, finer ones first."""
        for layer in self._map.layers:
            if not layer.has_topic:
                continue
            finer = layer.finer or _first_layer(layer)
            topic = self._map.input_topic(layer)
            for partition in range(layer.partitions):
                log = self._log.of(topic, partition)
                yield from self._gather(layer, finer, partition, log)

    def _gather(self, layer: Layer, finer: str, partition: int, log: PartitionLog) -> Iterator[str]:
        """Fold a layer topic: of each contribution the largest version counts, nothing else."""
        ledger = self.ledgers[self._map.input_topic(layer), partition] = Counter()
        finer_cells = self._by_coarser_key(layer, finer)
        cells: dict[Row, dict[Row, tuple[int, Value]]] = {}
        for record in log.records:
            assert record.value is not None
            contribution = decode_contribution(record.value)
            ledger["records.with_events" if contribution.block else "records.heartbeat"] += 1
            if not contribution.block:
                continue
            for fine, version, value in _rows_of(finer, contribution.sender, contribution.block):
                ledger[f"layer.{layer.name}.selected"] += 1
                so_far = [value_at(history, version) for history in finer_cells.get(fine, [])]
                known = _sum(so_far) if any(so_far) else None
                if known is None or not alike(known, value):
                    yield f"sent {value} of {fine} at {version}; its log came to {known}"
                window = fine[2] // layer.window.length_ms * layer.window.length_ms
                row = (layer.name, fine[1], window, partition)
                parts = cells.setdefault(row, {})
                if parts.get(fine, (-1, ()))[0] < version:
                    parts[fine] = version, value
                    total = _sum([part for _, part in parts.values()])
                    self.histories.setdefault(row, []).append((record.offset + 1, total))

    def _by_coarser_key(self, layer: Layer, finer: str) -> dict[Row, list[list[tuple[int, Value]]]]:
        """Return the histories of finer cells by what they are sent as: the key is cut."""
        found: dict[Row, list[list[tuple[int, Value]]]] = {}
        for (name, key, window, sender), history in self.histories.items():
            if name == finer:
                sent_as = (name, key[: len(layer.key)], window, sender)
                found.setdefault(sent_as, []).append(history)
        return found

    def _check_sent(self) -> Iterator[str]:
        """Check every value that was ever sent to the archive: it is the fold of its prefix."""
        for (row, version), values in self._archive.sent.items():
            wrong = [text for value in values if (text := self._wrong(row, version, value))]
            yield from (f"wrote {text}" for text in wrong)
            if len(values) > 1 and not self._work.impure:
                yield f"wrote {values} of {row} at {version}; want one value"

    def _wrong(self, row: Row, version: int, value: Value) -> str | None:
        known = value_at(self.histories.get(row, []), version)
        if known is not None and alike(known, value):
            return None
        return f"{value} of {row} at {version}; its log came to {known}"

    def _check_rows(self) -> Iterator[str]:
        """Check the archive at rest against the source logs alone."""
        want: dict[Row, Value] = {}
        for layer in self._map.layers:
            base = layer
            while base.finer:
                base = self._map.layer(base.finer)
            for (name, key, window, partition), history in self.histories.items():
                if name != _first_layer(base):
                    continue
                start = window // layer.window.length_ms * layer.window.length_ms
                whole = key[: len(layer.key)]
                place = key_hash(whole) % layer.partitions if layer.has_topic else partition
                row = (layer.name, whole, start, place)
                want[row] = _sum([want.get(row), history[-1][1]])
        got = {row: value for row, (_, value) in self._archive.rows.items()}
        for row in sorted({*want, *got}):
            if row not in want or row not in got or not alike(want[row], got[row]):
                yield f"row {row}: archive has {got.get(row)}, its log came to {want.get(row)}"

    def _check_letters(self) -> Iterator[str]:
        """Every late event has a letter; in a pure run, nothing else has."""
        found = set()
        for (topic, _), log in self._log.partitions.items():
            if topic == self._map.side_topic("late"):
                for record in log.records:
                    header = {name: data.decode() for name, data in record.headers}
                    position = (header["partition"], header["offset"])
                    found.add((int(position[0]), int(position[1]), header["layer"]))
            elif topic == self._map.side_topic("dead") and log.records:
                yield "dead letters where every record is sound"
        if self.late - found or (found - self.late and not self._work.impure):
            yield f"letters lack {self.late - found}, and tell of {found - self.late}"


def value_at(history: list[tuple[int, Value]], version: int) -> Value | None:
    """Return what a history came to at a version, None where it had not begun."""
    at = bisect.bisect_right(history, version, key=lambda step: step[0])
    return history[at - 1][1] if at else None


def alike(one: Value, other: Value) -> bool:
    """Tell whether values agree: floats but for the last bits, which follow the cutting."""
    return len(one) == len(other) and all(
        a == b or math.isclose(a, b, rel_tol=1e-9) for a, b in zip(one, other, strict=True)
    )


def _sum(values: list[Value | None]) -> Value:
    found = [value for value in values if value is not None]
    counts, numbers, sums, greatest = zip(*found, strict=True)
    return sum(counts), sum(numbers), sum(sums), max(greatest)


def _first_layer(layer: Layer) -> str:
    return f"{layer.name}.partial" if layer.merged else layer.name


def _rows_of(finer: str, sender: int, block: bytes) -> Iterator[tuple[Row, int, Value]]:
    rows: list[dict[str, Any]] = pl.read_ipc_stream(io.BytesIO(block)).to_dicts()
    for row in rows:
        key = (row["key_k"],) if "key_k" in row else ()
        value = (row["events"], row["n_v"], row["sum_v"], row["max_v"])
        yield (finer, key, row["fine_start"], sender), row["contributed"], value
