"""The archive in Cassandra, for any number of workers: a table a layer, the latest write wins.

The driver, which comes with the extra ``cassandra``, is imported in this package alone. It answers
in threads of its own; answers cross to the event loop by ``call_soon_threadsafe``, and calls that
wait (connect, schema, prepare, shutdown) run in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import polars as pl
from cassandra.cluster import Cluster, Session
from cassandra.query import BatchStatement, BatchType, PreparedStatement, Statement

from tables.archive.cassandra.cluster import CassandraSettings, cluster_of, connect
from tables.archive.cassandra.cql import CassandraTable, Row
from tables.archive.cassandra.driver import ANSWER_S, driver
from tables.archive.cassandra.pages import Pages
from tables.archive.cassandra.reads import Requests
from tables.archive.cassandra.register import Register
from tables.archive.cassandra.schema import Schema
from tables.archive.identity import History
from tables.archive.layout import check_key, too_many_rows
from tables.archive.protocol import CellRange
from tables.model.clock import wall_clock_ms
from tables.model.cost import QueryCost
from tables.model.errors import ArchiveAwayError, ArchiveError
from tables.model.layer import Layer, Map
from tables.state.small_merge import SMALL_ROWS_MAX

__all__ = ["CassandraArchive", "CassandraSettings"]


class CassandraArchive:
    """An archive in one keyspace. Rows expire at window end + TTL, by ``clock_ms``.

    Attributes:
        partitions_read_total: partitions asked for by reads since the archive was made.
        requests_total: requests that asked for them.
    """

    def __init__(
        self, settings: CassandraSettings, clock_ms: Callable[[], int] = wall_clock_ms
    ) -> None:
        self._settings = settings
        self._clock_ms = clock_ms
        self._wanted = False
        self._is_readable = False
        self._cluster: Cluster | None = None
        self._session: Session | None = None
        self._map_name = ""
        self._id = ""
        self._tables: dict[str, CassandraTable] = {}
        self._prepared: dict[str, PreparedStatement] = {}
        self._requests = Requests(settings.keyspace)
        self._reading = asyncio.Semaphore(settings.in_flight_max)
        self.partitions_read_total = 0
        self.requests_total = 0

    @property
    def is_open(self) -> bool:
        """Whether it has been opened; its nodes may be away all the same."""
        return self._session is not None

    @property
    def id(self) -> str:
        """The id of the map's archive in this keyspace; empty until it was opened."""
        return self._id if self._session is not None else ""

    @property
    def place(self) -> str:
        """Keyspace and map, and their nodes."""
        hosts = ", ".join(self._settings.hosts)
        return f"map {self._map_name} in keyspace {self._settings.keyspace} at {hosts}"

    async def open(self, themap: Map) -> None:
        """Connect; check keyspace and tables, and make those that are missing.

        Columns of measures that the map has gained are added. If nothing is missing, the user
        needs SELECT and MODIFY alone.

        Raises:
            ArchiveAwayError: no node answers, or too few.
            ArchiveRefusedError: a certificate, a login, a right or a datacenter is not as it must
                be.
            ArchiveError: a table that is not the layer's, or the archive was closed meanwhile.
        """
        assert self._cluster is None, "the archive is open"
        self._wanted = True
        keyspace = self._settings.keyspace
        self._map_name = themap.name
        self._tables = {
            layer.name: CassandraTable(themap, layer, keyspace) for layer in themap.layers
        }
        try:
            await asyncio.to_thread(self._connect)
        except BaseException as error:
            wanted = self._wanted
            await self.close()
            if wanted or not isinstance(error, Exception):
                raise
            raise ArchiveError("cannot open archive: it was closed meanwhile") from error

    async def write(self, layer: Layer, rows: pl.DataFrame, write_times_us: pl.Series) -> None:
        """Store the rows; returns when a quorum of replicas has every one. See the protocol."""
        table = self._tables[layer.name]
        assert list(rows.schema.items()) == list(table.schema.items()), "rows are an archive frame"
        assert len(write_times_us) == rows.height, "one write time a row"
        verb = f"write layer {layer.name}"
        insert = await self._prepare(verb, table.insert)
        batches = table.batches(rows, write_times_us, self._clock_ms())
        statements = (_statement(insert, batch) for batch in batches)
        permits = asyncio.Semaphore(self._settings.in_flight_max)
        await self._execute_all(verb, statements, len(batches), _nothing, permits)

    async def read(
        self, layer: Layer, cells: CellRange, cost: QueryCost | None = None
    ) -> pl.DataFrame:
        """Return the rows in range, of no more partitions than allowed; see the protocol."""
        check_key(layer, cells)
        table = self._tables[layer.name]
        now_ms = self._clock_ms()
        partitions = table.partitions(cells, now_ms)
        self.partitions_read_total += len(partitions)
        if cost is not None:
            cost.archive_partitions += len(partitions)
        verb = f"read layer {layer.name}"
        metadata = self._opened(verb).cluster.metadata
        whole_key = table.is_whole(cells)
        requests = self._requests.of(metadata, table.name, partitions, whole_key=whole_key)
        self.requests_total += len(requests)
        selects = {
            several: await self._prepare(verb, table.select(cells, several=several))
            for several in {request.has_several for request in requests}
        }
        statements = (
            request.bound(selects[request.has_several], table.select_values(cells, *request.values))
            for request in requests
        )
        rows: list[Row] = []

        def take(page: list[Row]) -> None:
            rows.extend(page)
            if len(rows) > cells.rows_max:
                raise too_many_rows(layer, cells)

        await self._execute_all(verb, statements, len(requests), take, self._reading)
        if not cells.key:
            self._requests.found(table.name, len(partitions), len(rows))
        if len(rows) <= SMALL_ROWS_MAX:
            return table.frame(rows, now_ms)
        return await asyncio.to_thread(table.frame, rows, now_ms)

    async def check(self) -> None:
        """Ask for a row that need not be there, as queries ask; a quorum must answer.

        Until all tables have answered once, and after a failure, each of them is asked: the right
        to read a table may be missing, and a new one is not written for a while.
        """
        verb = "reach the archive"
        tables = list(self._tables.values())
        if self._is_readable:
            tables = tables[:1]
        self._is_readable = False
        selects = [await self._prepare(verb, table.check) for table in tables]
        statements = (select.bind(()) for select in selects)
        permits = asyncio.Semaphore(self._settings.in_flight_max)
        await self._execute_all(verb, statements, len(selects), lambda _: None, permits)
        self._is_readable = True

    async def history(self, topic: str, partition: int) -> History | None:
        """Return the journal that the rows of a partition come from; see the protocol."""
        verb = f"read the history of {topic}"
        with driver(verb):
            return await asyncio.to_thread(self._register(verb).history, topic, partition)

    async def remember(self, topic: str, partition: int, history: History) -> History:
        """Return the journal that they come from, ``history`` from now on; see the protocol."""
        verb = f"remember the history of {topic}"
        with driver(verb):
            return await asyncio.to_thread(self._register(verb).remember, topic, partition, history)

    def _register(self, verb: str) -> Register:
        return Register(self._opened(verb), self._settings.keyspace, self._map_name)

    async def close(self) -> None:
        """Close all connections; requests under way fail, and so does an opening under way."""
        self._wanted = self._is_readable = False
        cluster, self._cluster = self._cluster, None
        self._session = None
        self._prepared.clear()
        if cluster is not None:
            await asyncio.to_thread(cluster.shutdown)

    def _connect(self) -> None:
        settings = self._settings
        step = f"open archive in {settings.place}"
        with driver(step, "check addresses, datacenter, user and rights"):
            cluster = cluster_of(settings)
            self._cluster = cluster
            session = connect(cluster, settings, step)
            Schema(session, settings).make(self._tables.values())
            self._id = Register(session, settings.keyspace, self._map_name).open()
            self._session = session
        # Closing shuts down the session that it sees; it may have come before there was one.
        if not self._wanted:
            cluster.shutdown()
            raise ArchiveError(f"cannot {step}: it was closed meanwhile")

    async def _prepare(self, verb: str, query: str) -> PreparedStatement:
        prepared = self._prepared.get(query)
        if prepared is None:
            session = self._opened(verb)
            prepared = await asyncio.to_thread(_prepare, session, verb, query)
            self._prepared[query] = prepared
        return prepared

    def _opened(self, verb: str) -> Session:
        if self._session is None:
            raise ArchiveAwayError(f"cannot {verb}: the archive is closed, or not connected yet")
        return self._session

    async def _execute_all(
        self,
        verb: str,
        statements: Iterable[Statement],
        count: int,
        take: Callable[[list[Row]], None],
        permits: asyncio.Semaphore,
    ) -> None:
        """Execute ``count`` statements, each with a permit; hand over their rows page by page.

        The first error ends it; Cassandra may still execute statements that were sent, and each has
        its permit until then.
        """
        session = self._opened(verb)
        queue = iter(statements)
        patience_s = self._settings.request_timeout_s + ANSWER_S

        async def lane() -> None:
            for statement in queue:
                await Pages(session, verb, statement, permits, patience_s).read(take)

        if count <= 1:
            await lane()
            return
        width = min(self._settings.in_flight_max, count)
        lanes = [asyncio.create_task(lane()) for _ in range(width)]
        try:
            await asyncio.gather(*lanes)
        finally:
            for task in lanes:
                task.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)


def _prepare(session: Session, verb: str, query: str) -> PreparedStatement:
    with driver(verb):
        prepared = session.prepare(query)
    prepared.is_idempotent = True
    return prepared


def _statement(insert: PreparedStatement, batch: list[Row]) -> Statement:
    if len(batch) == 1:
        return insert.bind(batch[0])
    statement = BatchStatement(BatchType.UNLOGGED)
    # Absolute values with their own write time: doing it twice is doing it once.
    statement.is_idempotent = True
    for row in batch:
        statement.add(insert, row)
    return statement


def _nothing(rows: list[Row]) -> None:
    """Writes have no rows."""
    assert not rows, "a write answers without rows"
