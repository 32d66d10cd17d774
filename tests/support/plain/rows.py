"""Rows by plain rules: those of every layer at quiescence, from cells of all source partitions.

::

    source partition 0: cells --\
    source partition 1: cells ----> base layer's rows --> coarser rows --> ...
                                    (of a merged layer the parts of all partitions are added)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

from app.verify.layers import key_hash
from app.verify.windows import window_end, window_start
from tables.model.layer import Layer, Map
from tests.support.plain.cells import PlainCell, empty_cell
from tests.support.plain.partition import Partition, Place


@dataclasses.dataclass(slots=True)
class Row:
    """One cell of a layer.

    ``parts`` has the share of each partition of the layer's input, which is one row of the
    archive; ``closed`` names those whose window is closed there.
    """

    parts: dict[int, PlainCell]
    closed: set[int]

    def whole(self, layer: Layer) -> PlainCell:
        """Return the cell with all its parts."""
        if len(self.parts) == 1:
            return next(iter(self.parts.values()))
        return merged(layer, self.parts.values())


Rows = dict[Place, Row]


def rows_of(
    themap: Map, partitions: Mapping[str, list[Partition]], *, early: bool
) -> dict[str, Rows]:
    """Return every layer's rows.

    Args:
        themap: the map.
        partitions: all partitions of each source, by the source's name.
        early: whether coarser layers have the cells of open windows too.
    """
    found: dict[str, Rows] = {}
    waiting = list(themap.layers)
    while waiting:
        layer = waiting.pop(0)
        if layer.finer is not None and layer.finer not in found:
            waiting.append(layer)
            continue
        base = _base_of(themap, layer)
        assert base.source is not None
        of_source = partitions[base.source]
        if layer.finer is not None:
            cells = _sent(themap.layer(layer.finer), layer, found[layer.finer], early=early)
        elif layer.merged:
            cells = (
                (place, cell) for one in of_source for place, cell in one.cells[layer.name].items()
            )
        else:
            found[layer.name] = _base_rows(layer, of_source)
            continue
        found[layer.name] = _topic_rows(layer, cells, _closed_ms(base, of_source))
    return found


def merged(layer: Layer, parts: Iterable[PlainCell]) -> PlainCell:
    """Return the cell that parts of it come to."""
    cell = empty_cell(layer)
    for part in parts:
        cell.merge(part)
    return cell


def _base_rows(layer: Layer, partitions: list[Partition]) -> Rows:
    rows: Rows = {}
    for partition in partitions:
        time_ms = partition.stream_time_ms
        for place, cell in partition.cells[layer.name].items():
            row = rows.setdefault(place, Row({}, set()))
            row.parts[partition.number] = cell
            assert time_ms is not None, "an event moves time"
            if window_end(layer, place[1]) <= time_ms - layer.max_out_of_orderness_ms:
                row.closed.add(partition.number)
    return rows


def _sent(
    finer: Layer, layer: Layer, rows: Rows, *, early: bool
) -> Iterator[tuple[Place, PlainCell]]:
    """Yield the cells sent to a coarser layer, with their coarser place: closed ones, or all."""
    names = [field.name for field in finer.key]
    at = [names.index(field.name) for field in layer.key]
    for (key, start), row in rows.items():
        place = (tuple(key[index] for index in at), window_start(layer, start))
        numbers = row.parts if early else row.closed
        yield from ((place, row.parts[number]) for number in numbers)


def _topic_rows(
    layer: Layer, cells: Iterable[tuple[Place, PlainCell]], closed_ms: int | None
) -> Rows:
    """Return the rows of a layer with a topic of its own, each in the partition of its key."""
    wholes: dict[Place, PlainCell] = {}
    for place, cell in cells:
        whole = wholes.get(place)
        if whole is None:
            whole = wholes[place] = empty_cell(layer)
        whole.merge(cell)
    rows: Rows = {}
    for (key, start), whole in wholes.items():
        number = key_hash(layer.key, key) % layer.partitions
        closed = closed_ms is not None and window_end(layer, start) <= closed_ms
        rows[key, start] = Row({number: whole}, {number} if closed else set())
    return rows


def _base_of(themap: Map, layer: Layer) -> Layer:
    while layer.finer is not None:
        layer = themap.layer(layer.finer)
    return layer


def _closed_ms(base: Layer, partitions: Iterable[Partition]) -> int | None:
    """Return the end of the closed windows in a topic between layers; None if none is known.

    That is as far as every partition of the source has come.
    """
    times = [partition.stream_time_ms for partition in partitions]
    known = [time for time in times if time is not None]
    return min(known) - base.max_out_of_orderness_ms if len(known) == len(times) else None
