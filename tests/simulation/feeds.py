"""The feeds of published layers: every value right at its version, and the last ones the rows.

It is read as other people's programs read it, with the client's code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from tables.model.keyhash import key_hash
from tables.model.layer import Layer
from tests.simulation.log import SimulatedLog
from tests.simulation.sink import Row, SimulatedArchive, Value
from tests.simulation.workload import Workload
from treasure_map.feed import FeedCell, Versions, decode_record

Check = Callable[[Row, int, Value], str | None]
"""Returns the fault of a value of a row at a version."""

ARROW_START = b"\xff\xff\xff\xff"
AT_REST = 2**62
"""A version above all: that of a row's last value."""


def check_feeds(
    work: Workload,
    log: SimulatedLog,
    archive: SimulatedArchive,
    check: Check,
    is_published: Callable[[Row], bool],
) -> Iterator[str]:
    """Yield a sentence for everything in feeds that is not as it must be.

    ``is_published`` tells which archived rows a feed has with their last value.
    """
    for layer in work.layers:
        if not any(revision.feed_of(layer) for revision in work.revisions):
            continue
        sent: dict[tuple[Row, int], set[Value]] = {}
        newest: dict[Row, Value] = {}
        yield from _read(work.maps[0].feed_topic(layer), layer, log, sent, newest)
        yield from _check_sent(sent, check, pure=not work.impure)
        for row in sorted(row for row in archive.rows if row[0] == layer.name):
            published = newest.get(row)
            if is_published(row) and (published is None or check(row, AT_REST, published)):
                _, archived = archive.rows[row]
                yield f"row {row}: its feed has {published}, the archive has {archived}"


def _read(
    topic: str,
    layer: Layer,
    log: SimulatedLog,
    sent: dict[tuple[Row, int], set[Value]],
    newest: dict[Row, Value],
) -> Iterator[str]:
    """Take all values of a feed, and of each row the one of largest version."""
    versions = Versions(2**40)
    for partition in range(layer.partitions):
        for record in log.of(topic, partition).records:
            assert record.value is not None
            is_keyed = not record.value.startswith(ARROW_START)
            for cell in decode_record(record.value):
                yield from _misplaced(layer, cell, partition, record.key, is_keyed=is_keyed)
                row, value = _row_of(cell), _value_of(cell)
                sent.setdefault((row, cell.version), set()).add(value)
                if versions.take(partition, cell):
                    newest[row] = value


def _check_sent(
    sent: dict[tuple[Row, int], set[Value]], check: Check, *, pure: bool
) -> Iterator[str]:
    for (row, version), values in sent.items():
        wrong = [text for value in values if (text := check(row, version, value))]
        yield from (f"published {text}" for text in wrong)
        if len(values) > 1 and pure:
            yield f"published {values} of {row} at {version}; want one value"


def _misplaced(
    layer: Layer, cell: FeedCell, partition: int, key: bytes | None, *, is_keyed: bool
) -> Iterator[str]:
    """Yield faults of the record of a cell: its partition, or its key."""
    fields = list(cell.key.values())
    if partition != key_hash(fields) % layer.partitions:
        yield f"{cell} is in partition {partition} of its feed"
    identity = [*fields, cell.window_start, cell.source_partition]
    want = identity if is_keyed else None
    if (None if key is None else json.loads(key)) != want:
        yield f"{cell} has the record key {key!r}; want {want}"


def _row_of(cell: FeedCell) -> Row:
    return cell.layer, tuple(cell.key.values()), cell.window_start, cell.source_partition


def _value_of(cell: FeedCell) -> Value:
    """Return the accumulators: every event of a run has the field, so that counts are equal."""
    count = cell.measures["count"]
    return count, count, cell.measures["sum_v"], cell.measures.get("max_v")
