"""Records of a feed as cells, and which of them are news.

A cell comes again, whole, whenever a late event amends it, and after a worker has changed: the
larger version counts. Its identity is key, window and source partition. Read
``docs/formats/feed.md`` for the meaning of each field.
"""

from __future__ import annotations

import decimal
import heapq
import io
from typing import TYPE_CHECKING, Any

import msgspec

from treasure_map.answers import Cell, exact
from treasure_map.extras import MissingExtraError

if TYPE_CHECKING:
    import polars as pl

_ARROW_START = b"\xff\xff\xff\xff"
_ABOUT = ("layer", "map_revision", "window_start", "window_end", "version", "source_partition")
_KEY_PREFIX = "key_"


class FollowFailedError(Exception):
    """A feed that cannot be followed, or no further; it gives the cause and the remedy."""


class UnreadableRecordError(ValueError):
    """A record that holds no cells of a feed."""


class FeedCell(Cell, frozen=True):
    """One version of a cell of a published layer.

    It is closed, and may be amended: the same key, window and ``source_partition`` with a larger
    version replace it. If the map's sources are keyed as the map says, there is one source
    partition for each key and window.
    """

    layer: str
    map_revision: int
    source_partition: int


_decoder = msgspec.json.Decoder(FeedCell)


def decode_record(value: bytes) -> list[FeedCell]:
    """Return the cells of a feed's record: one of JSON, or those of an Arrow IPC stream.

    Raises:
        UnreadableRecordError: the record is neither.
        MissingExtraError: it is Arrow, and polars, which reads it, is not installed.
    """
    if value.startswith(_ARROW_START):
        return _arrow_cells(value)
    try:
        cell = _decoder.decode(value)
        exact(cell.measures)
    except ValueError as error:  # msgspec's errors and those of UTF-8 are such
        raise UnreadableRecordError(str(error)) from error
    return [cell]


def _arrow_cells(value: bytes) -> list[FeedCell]:
    try:
        import polars as pl  # noqa: PLC0415 - JSON needs none
    except ImportError as error:
        raise MissingExtraError("cannot read a feed of Arrow", "frame", error) from error
    try:
        frame = pl.read_ipc_stream(io.BytesIO(value))
    # Errors of polars for bytes that are not an Arrow IPC stream; flipped bits can make it panic.
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise UnreadableRecordError(f"no Arrow IPC stream: {error}") from error
    return _cells_of(frame)


def _cells_of(frame: pl.DataFrame) -> list[FeedCell]:
    lacking = [name for name in _ABOUT if name not in frame.columns]
    if lacking:
        raise UnreadableRecordError(f"its columns lack {', '.join(lacking)}")
    keys = [name for name in frame.columns if name.startswith(_KEY_PREFIX)]
    measures = [name for name in frame.columns if name not in (*_ABOUT, *keys)]
    rows: list[dict[str, Any]] = [
        {
            "key": {name.removeprefix(_KEY_PREFIX): row[name] for name in keys},
            "measures": {name: _number(row[name]) for name in measures},
            **{name: row[name] for name in _ABOUT},
        }
        for row in frame.iter_rows(named=True)
    ]
    try:
        return msgspec.convert(rows, list[FeedCell])
    except msgspec.ValidationError as error:
        raise UnreadableRecordError(str(error)) from error


def _number(value: object) -> object:
    """Return a measure; sums of integers are decimals without fraction."""
    return int(value) if isinstance(value, decimal.Decimal) else value


class Versions:
    """The largest version of each cell so far, of as many cells as there is room for.

    Past that the oldest windows are forgotten: those of the lane that holds most cells. A lane is
    the cells of one source partition in one of the feed's, in which windows follow each other,
    so that partitions which are read one after the other do not push each other out.

    Attributes:
        cells: how many cells are remembered.
        forgotten: how many windows of a lane were forgotten.
    """

    def __init__(self, cells_max: int) -> None:
        self.cells = 0
        self.forgotten = 0
        self._cells_max = cells_max
        self._lanes: dict[tuple[int, int], _Lane] = {}

    def take(self, partition: int, cell: FeedCell) -> bool:
        """Remember a cell of a feed's partition; return whether it is new.

        It is new if no version of it as large is remembered.
        """
        sender = partition, cell.source_partition
        lane = self._lanes.get(sender)
        if lane is None:
            lane = self._lanes[sender] = _Lane()
        key = tuple(cell.key.values())
        known = lane.window(cell.window_start)
        version = known.get(key)
        if version is None:
            lane.cells += 1
            self.cells += 1
        elif version >= cell.version:
            return False
        known[key] = cell.version
        while self.cells > self._cells_max:
            largest = max(self._lanes.values(), key=lambda one: one.cells)
            self.cells -= largest.forget_oldest()
            self.forgotten += 1
        return True


class _Lane:
    """The versions of one lane, by window and key; ``starts`` is a heap of the windows."""

    def __init__(self) -> None:
        self.cells = 0
        self._starts: list[int] = []
        self._windows: dict[int, dict[tuple[str | int | bool, ...], int]] = {}

    def window(self, start: int) -> dict[tuple[str | int | bool, ...], int]:
        """Return the versions of a window by key."""
        known = self._windows.get(start)
        if known is None:
            known = self._windows[start] = {}
            heapq.heappush(self._starts, start)
        return known

    def forget_oldest(self) -> int:
        """Forget the oldest window; return how many cells it had."""
        gone = len(self._windows.pop(heapq.heappop(self._starts)))
        self.cells -= gone
        return gone
