"""The oracle: the right rows, values, ledgers and letters, in plain arithmetic.

It folds the source logs event by event (``source``), then the layer topics record by record. Of the
product it uses only the bytes' layout. Which windows an owner may have cut, and under which
revision of the map, it takes from the journals (``cuts``). From when on a coarser layer that a
revision added has all events it takes from the owners at rest, who tell readers so.
"""

from __future__ import annotations

import bisect
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from tables.model.keyhash import key_hash
from tables.model.layer import Layer, Map
from tables.state.contribution import decode_contribution
from tests.simulation.cuts import Cuts, cuts_of, uncut
from tests.simulation.feeds import check_feeds
from tests.simulation.log import PartitionLog, SimulatedLog
from tests.simulation.revisions import RAW
from tests.simulation.sink import Row, SimulatedArchive, Value
from tests.simulation.source import NEVER, Histories, SourceFold, Step, added, folded_as
from tests.simulation.workload import Workload

NEVER_ENDS = 2**62


class Oracle:
    """Checks the results of a run against the source logs.

    Args:
        work: map and source logs of the run.
        themap: the last revision of its map that was used.
        log: all logs at rest.
        archive: the archive at rest.
        complete: by layer, from which start on its owners say that windows have all events; of
            base layers it is checked.
    """

    def __init__(
        self,
        work: Workload,
        themap: Map,
        log: SimulatedLog,
        archive: SimulatedArchive,
        complete: Mapping[str, int],
    ) -> None:
        self._work = work
        self._map = themap
        self._log = log
        self._archive = archive
        self._complete = complete
        self._cuts: dict[tuple[str, int], Cuts] = {}
        self.histories: Histories = {}
        self.ledgers: dict[tuple[str, int], Counter[str]] = {}
        self.late: set[tuple[int, int, str]] = set()

    def check(self) -> Iterator[str]:
        """Yield a sentence for everything that is not as it must be."""
        wrong = list(self._read_journals())
        yield from wrong
        if wrong:
            return
        yield from self._fold()
        yield from self._check_topics()
        yield from self._check_sent()
        yield from self._check_rows()
        yield from check_feeds(
            self._work, self._log, self._archive, self._wrong, self._is_published
        )
        yield from self._check_letters()

    def _read_journals(self) -> Iterator[str]:
        """Find the cuts of all inputs that the last map has.

        A pure run has one revision only: there, nothing of the journals is needed to know all
        results.
        """
        for topic, partitions in self._map.inputs().items():
            for partition in range(partitions):
                log = self._log.of(topic, partition)
                journal = self._log.of(self._map.journal_topic(topic), partition)
                cuts = uncut(log.first, len(log.records))
                if self._work.impure:
                    cuts = cuts_of(journal, log.first)
                self._cuts[topic, partition] = cuts
                known, there = len(cuts.revisions), len(log.records)
                if known != there:
                    yield f"{topic}[{partition}]: {known} of {there} records are in its history"

    def _fold(self) -> Iterator[str]:
        """Fold the source into all base layers."""
        began: dict[str, int] = {}
        max_began: dict[str, int] = {}
        for partition in range(len(self._work.records)):
            fold = SourceFold(self._work, partition, self._cuts[RAW, partition], self.histories)
            fold.run()
            self.ledgers[RAW, partition] = fold.ledger
            self.late |= {(partition, offset, name) for offset, name in fold.late}
            for name, time in fold.began.items():
                began[name] = max(time, began.get(name, NEVER))
            for name, time in fold.max_began.items():
                max_began[name] = max(time, max_began.get(name, NEVER))
        for layer in self._map.layers:
            said, want = self._complete[folded_as(layer)], began.get(layer.name, NEVER)
            if layer.source and said != want:
                yield f"{layer.name} says that it has all events since {said}; want {want}"
            said = self._complete.get(f"{folded_as(layer)}.max", NEVER)
            want = max(want, max_began.get(layer.name, NEVER))
            if layer.source and self._has_max(layer.name) and said != want:
                yield f"{layer.name} says that it has the greatest value since {said}; want {want}"

    def _check_topics(self) -> Iterator[str]:
        """Check every contribution, and fold the layer topics, finer ones first."""
        for layer in self._work.layers:
            if not layer.has_topic:
                continue
            finer = layer.finer or folded_as(layer)
            topic = self._map.input_topic(layer)
            for partition in range(layer.partitions):
                log = self._log.of(topic, partition)
                yield from self._gather(layer, finer, partition, log)

    def _gather(self, layer: Layer, finer: str, partition: int, log: PartitionLog) -> Iterator[str]:
        """Fold a layer topic: of each contribution the largest version counts, nothing else."""
        ledger = self.ledgers[self._map.input_topic(layer), partition] = Counter()
        finer_cells = self._by_coarser_key(layer, finer)
        (finer_window,) = {
            one.window for one in self._work.layers if finer in (one.name, folded_as(one))
        }
        cells: dict[Row, dict[Row, tuple[int, Value]]] = {}
        final: dict[int, int] = {}
        for record in log.records:
            assert record.value is not None
            contribution = decode_contribution(record.value)
            ledger["records.with_events" if contribution.block else "records.heartbeat"] += 1
            sender = contribution.sender
            said_before, final[sender] = final.get(sender, NEVER), contribution.announced[1]
            final[sender] = max(said_before, final[sender])
            if not contribution.block:
                continue
            for fine, version, value in _rows_of(finer, sender, contribution.block):
                ledger[f"layer.{layer.name}.selected"] += 1
                so_far = [value_at(history, version) for history in finer_cells.get(fine, [])]
                known = added(so_far) if any(so_far) else None
                if known is None or not alike(known, value):
                    yield f"sent {value} of {fine} at {version}; its log came to {known}"
                window = fine[2] // layer.window.length_ms * layer.window.length_ms
                row = (layer.name, fine[1], window, partition)
                parts = cells.setdefault(row, {})
                if parts.get(fine, (-1, ()))[0] < version:
                    if finer_window.end(fine[2]) <= said_before:
                        yield f"sent {value} of {fine} at {version}, and told that it was final"
                    parts[fine] = version, value
                    total = added([part for _, part in parts.values()])
                    self.histories.setdefault(row, []).append((record.offset + 1, total))

    def _by_coarser_key(self, layer: Layer, finer: str) -> dict[Row, list[list[Step]]]:
        """Return the histories of finer cells by their contributions: the key is cut."""
        found: dict[Row, list[list[Step]]] = {}
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
        got = {row: value for row, (_, value) in self._archive.rows.items()}
        for row, value in sorted(self._wanted().items()):
            max_ms = self._complete.get(f"{row[0]}.max", NEVER_ENDS)
            if max_ms == NEVER_ENDS and self._has_max(row[0]):
                yield f"{row[0]} does not know from when on it has the greatest value"
            lacks = row in got and got[row][-1] is None and row[2] >= max_ms
            if row not in got or lacks or not alike(value, got[row]):
                yield f"row {row}: archive has {got.get(row)}, its log came to {value}"

    def _wanted(self) -> dict[Row, Value]:
        """Return all rows that the archive must have of the layers there are in the end.

        Rows of windows from before a layer had all events may be anything that was once right.
        """
        want: dict[Row, Value] = {}
        for layer in self._map.layers:
            chain = self._chain(layer)
            whole_ms = self._whole_ms(chain)
            for (name, key, window, partition), history in self.histories.items():
                value = history[-1][1]
                if name != folded_as(chain[-1]) or value is None:
                    continue
                start = window // layer.window.length_ms * layer.window.length_ms
                if start < whole_ms:
                    continue
                whole = key[: len(layer.key)]
                place = key_hash(whole) % layer.partitions if layer.has_topic else partition
                row = (layer.name, whole, start, place)
                want[row] = added([want.get(row), value])
        return want

    def _whole_ms(self, chain: list[Layer]) -> int:
        """Return the start from which the first layer of a chain must have the rows of its log.

        Nothing is sent of windows that some layer of the chain has not had whole.
        """
        revisions = self._work.revisions[: self._map.revision]
        if all(revision.has(layer) for revision in revisions for layer in chain):
            return NEVER
        names = chain[0].name, folded_as(chain[-1])
        return max(self._complete[name] for name in names)

    def _chain(self, layer: Layer) -> list[Layer]:
        """Return a layer and all finer ones that it is made of, the base layer last."""
        chain = [layer]
        while chain[-1].finer:
            chain.append(self._map.layer(chain[-1].finer))
        return chain

    def _is_published(self, row: Row) -> bool:
        """Return whether a feed must have the last value of an archived row.

        It must if all revisions since its last change have published it, and its window is whole.
        """
        (layer,) = [one for one in self._work.layers if one.name == row[0]]
        topic = self._map.input_topic(layer) if self._has(layer) else ""
        if (topic, row[3]) not in self._cuts or row[2] < self._whole_ms(self._chain(layer)):
            return False
        version, value = self.histories.get(row, [(0, None)])[-1]
        if value is None:
            return False
        first = self._cuts[topic, row[3]].revision_at(int(version) - 1)
        revisions = self._work.revisions[first - 1 : self._map.revision]
        return all(revision.feed_of(layer) for revision in revisions)

    def _has_max(self, name: str) -> bool:
        return any(acc.kind == "max" for acc in self._map.layer(name).accumulators)

    def _has(self, layer: Layer) -> bool:
        return any(one.name == layer.name for one in self._map.layers)

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
                yield "dead letters although every record is sound"
        if self.late - found or (found - self.late and not self._work.impure):
            yield f"letters lack {self.late - found}, and tell of {found - self.late}"


def value_at(history: list[Step], version: float) -> Value | None:
    """Return the value of a history at a version, None if it had not begun."""
    at = bisect.bisect_right(history, version, key=lambda step: step[0])
    return history[at - 1][1] if at else None


def alike(one: Value, other: Value) -> bool:
    """Return whether a value agrees with the known one: floats but for their last bits.

    Those follow the cutting. If the other value lacks the greatest, it is not compared; it must
    not have it if it is unknown.
    """
    *pairs, greatest = zip(one, other, strict=True)
    if greatest[1] is not None:
        pairs.append(greatest)
    return all(a == b or (a is not None and math.isclose(a, b, rel_tol=1e-9)) for a, b in pairs)


def _rows_of(finer: str, sender: int, block: bytes) -> Iterator[tuple[Row, int, Value]]:
    rows: list[dict[str, Any]] = pl.read_ipc_stream(io.BytesIO(block)).to_dicts()
    for row in rows:
        key = (row["key_k"],) if "key_k" in row else ()
        value = (row["events"], row["n_v"], row["sum_v"], row.get("max_v"))
        yield (finer, key, row["fine_start"], sender), row["contributed"], value
