"""Follow a layer that is published: its closed and amended cells, each version once.

::

    with follow("departures_hour", map_name="flights", to_end=True) as cells:
        for cell in cells:
            rows[cell.window_start, *cell.key.values()] = cell.measures

    async with follow("flights.feed.departures_hour", from_beginning=False) as cells:
        async for cell in cells:
            await show(cell)

It has no consumer group and commits nothing. Its cells may be written to any store that keeps the
larger version, so to begin again is always right.
"""

from __future__ import annotations

import asyncio
import collections
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from treasure_map.extras import MissingExtraError
from treasure_map.feed import FeedCell, UnreadableRecordError, Versions, decode_record

if TYPE_CHECKING:
    from treasure_map.feed_reader import FeedReader, FeedRecord

log = logging.getLogger(__name__)

CELLS_MAX = 500_000
"""The default of ``cells_max``. A cell takes about 240 bytes, so all of them 120 MB."""

_SHOWN_BYTES = 40


class Unreadable(NamedTuple):
    """A record that was skipped: its partition and offset, and the cause with the remedy."""

    partition: int
    offset: int
    reason: str


def follow(
    layer: str,
    brokers: str = "127.0.0.1:9092",
    *,
    map_name: str | None = None,
    from_beginning: bool = True,
    to_end: bool = False,
    cells_max: int = CELLS_MAX,
    on_unreadable: Callable[[Unreadable], None] | None = None,
    client_options: Mapping[str, Any] | None = None,
) -> Follower:
    """Return the cells of a published layer: to iterate over, with ``async`` or without.

    Each version of a cell is given once, and none that is smaller than one given before. Brokers
    that are away later on are waited for.

    Args:
        layer: the feed's topic; with ``map_name``, the layer's name.
        brokers: bootstrap servers, ``host:port`` separated by commas.
        map_name: the map's name.
        from_beginning: begin with the oldest record that Kafka has, else with the next new one.
        to_end: end at the feed's end as it is when reading begins, else never.
        cells_max: how many cells are remembered to recognise repeated ones. Past that the oldest
            windows are forgotten, and cells of these are given as they come.
        on_unreadable: called with each record that cannot be read; None logs a warning.
        client_options: further options of aiokafka's clients, such as TLS and login.

    Raises:
        MissingExtraError: when it is entered, aiokafka is not installed; or, later, the layer is
            published as Arrow and polars is not.
    """
    topic = layer if map_name is None else f"{map_name}.feed.{layer}"

    def reader() -> FeedReader:
        try:
            from treasure_map.feed_reader import FeedReader  # noqa: PLC0415 - queries need no Kafka
        except ImportError as error:
            raise MissingExtraError(f"cannot follow {topic}", "feed", error) from error
        options = {"bootstrap_servers": brokers, **(client_options or {})}
        return FeedReader(topic, options, from_beginning=from_beginning, to_end=to_end)

    return Follower(topic, reader, Versions(cells_max), on_unreadable or _warn)


class Follower:
    """The cells of one feed as they come; use it in ``with`` or ``async with``, and iterate.

    The offset of "now" is settled when that statement begins. Without ``async`` it runs an event
    loop of its own, while it is waited for.

    Attributes:
        topic: the feed's.
        versions: the versions of the cells given, and how many windows were forgotten.
        unreadable: how many records were passed over because they hold no cells.
        repeated: how many cells were held back because a version as large was given before.

    Raises:
        FollowFailedError: no broker answers, the feed is not there, or records were deleted before
            they were read.
    """

    def __init__(
        self,
        topic: str,
        reader: Callable[[], FeedReader],
        versions: Versions,
        on_unreadable: Callable[[Unreadable], None],
    ) -> None:
        self.topic = topic
        self.versions = versions
        self.unreadable = 0
        self.repeated = 0
        self._make_reader = reader
        self._on_unreadable = on_unreadable
        self._ready: collections.deque[FeedCell] = collections.deque()
        self._reader: FeedReader | None = None
        self._runner: asyncio.Runner | None = None

    async def __aenter__(self) -> Self:
        reader = self._make_reader()
        try:
            await reader.open()
        except BaseException:
            await reader.close()
            raise
        self._reader = reader
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._reader is not None
        await self._reader.close()

    def __aiter__(self) -> AsyncIterator[FeedCell]:
        return self

    async def __anext__(self) -> FeedCell:
        if not await self._filled():
            raise StopAsyncIteration
        return self._ready.popleft()

    def __enter__(self) -> Self:
        self._runner = asyncio.Runner()
        try:
            self._runner.run(self.__aenter__())
        except BaseException:
            self._runner.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._runner is not None
        with self._runner:
            self._runner.run(self.__aexit__())

    def __iter__(self) -> Iterator[FeedCell]:
        return self

    def __next__(self) -> FeedCell:
        if not self._ready:
            assert self._runner is not None, "an async with wants an async for"
            if not self._runner.run(self._filled()):
                raise StopIteration
        return self._ready.popleft()

    async def _filled(self) -> bool:
        """Read until there is a cell that is news; return whether there is one before the end."""
        assert self._reader is not None, "a feed is followed inside its with statement"
        while not self._ready and not self._reader.ended:
            for record in await self._reader.read():
                if record.value is not None:
                    self._take(record, record.value)
        return bool(self._ready)

    def _take(self, record: FeedRecord, value: bytes) -> None:
        """Keep the cells of a record that are news."""
        try:
            cells = decode_record(value)
        except UnreadableRecordError as error:
            self.unreadable += 1
            reason = (
                f"cannot read {self.topic}[{record.partition}] at offset {record.offset}: {error}; "
                f"got {len(value)} bytes that begin with {value[:_SHOWN_BYTES]!r}; want a cell as "
                "JSON, or cells as an Arrow IPC stream; it is skipped: find the other program "
                "that writes to the topic, or follow it with the client of the writer's version"
            )
            self._on_unreadable(Unreadable(record.partition, record.offset, reason))
            return
        for cell in cells:
            if self.versions.take(record.partition, cell):
                self._ready.append(cell)
            else:
                self.repeated += 1


def _warn(unreadable: Unreadable) -> None:
    log.warning("%s", unreadable.reason)
