"""The parts of Cassandra's archive alone: tables, partitions, batches, a node that goes away."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import uuid
from typing import Any

import msgspec
import polars as pl
import pytest

from tables.archive.cassandra.cql import (
    BATCH_BYTES_MAX,
    BATCH_ROWS_MAX,
    PARTITIONS_MAX,
    CassandraTable,
    compaction_window,
)
from tables.archive.cassandra.reads import Request, routing_key
from tables.archive.identity import History
from tables.archive.protocol import CellRange
from tables.model.errors import ArchiveAwayError, ArchiveError, QueryError
from tables.model.keyhash import key_hash
from tables.model.layer import Accumulator, Map
from tables.model.window import DAY_MS, Window
from tables.state.cell import archive_schema
from tests.support import servers
from tests.support.cassandra_rows import (
    BUCKET_MS,
    HOUR_MS,
    LAYER,
    archive_cassandra,
    map_of,
    rows,
    settings_of,
    times,
)
from tests.support.waiting import until

archive_cluster = pytest.importorskip("tables.archive.cassandra.cluster")
archive_driver = pytest.importorskip("tables.archive.cassandra.driver")
schema_module = pytest.importorskip("tables.archive.cassandra.schema")


def table(**changes: Any) -> CassandraTable:
    """Return the table of the layer, changed."""
    layer = msgspec.structs.replace(LAYER, **changes)
    return CassandraTable(map_of(layer), layer, "space")


def test_the_table_is_made_with_types_key_and_compaction_of_the_layer() -> None:
    """The statement holds everything that docs/formats/archive.md promises."""
    assert table(archive_ttl_ms=90 * DAY_MS).create == (
        'CREATE TABLE IF NOT EXISTS "space"."flights_hours" ("slot" int, "bucket" bigint, '
        '"key_origin" text, "window_start" bigint, "events" bigint, "sum_delay" varint, '
        '"version" bigint, "source_partition" int, PRIMARY KEY (("slot", "bucket"), '
        '"key_origin", "window_start", "source_partition")) WITH comment = '
        "'treasure-map archive 1: map flights, layer hours, window 1h, slots 8' AND compaction = "
        "{'class': 'TimeWindowCompactionStrategy', 'compaction_window_unit': 'DAYS', "
        "'compaction_window_size': 2}"
    )


@pytest.mark.parametrize("ttl_ms", [60_000, HOUR_MS, DAY_MS, 7 * DAY_MS, 400 * DAY_MS])
@pytest.mark.parametrize("window", [Window(1_000), Window(HOUR_MS), Window(DAY_MS), Window(0)])
def test_a_ttl_spans_fewer_than_50_compaction_windows(ttl_ms: int, window: Window) -> None:
    """TimeWindowCompactionStrategy keeps one file a window: their number is bounded."""
    layer = msgspec.structs.replace(LAYER, archive_ttl_ms=ttl_ms, window=window)
    unit, size = compaction_window(layer)
    unit_ms = {"MINUTES": 60_000, "HOURS": HOUR_MS, "DAYS": DAY_MS}[unit]
    assert ttl_ms / (size * unit_ms) < 50


def test_a_table_name_that_cassandra_does_not_take_is_refused() -> None:
    """Names past 48 characters are named with their limit."""
    with pytest.raises(ArchiveError, match="at most 48"):
        table(name="h" * 41)


def test_a_whole_key_reads_one_slot_and_a_range_reads_all() -> None:
    """Partitions are slots x buckets, or the key's slot x buckets."""
    range_ = CellRange(BUCKET_MS - 1, BUCKET_MS + 1)
    every = table().partitions(range_, now_ms=0)
    assert sorted(every) == [(slot, bucket) for slot in range(8) for bucket in (0, 1)]
    slot = key_hash(("JFK",)) % 8
    one = CellRange(-1, BUCKET_MS, {"origin": "JFK"})
    assert table().partitions(one, now_ms=0) == [(slot, -1), (slot, 0)]


def test_expired_buckets_are_not_asked_for() -> None:
    """A reader starts at the first bucket that may hold a living row if there is a TTL."""
    living = table(slots=1, archive_ttl_ms=BUCKET_MS)
    now_ms = 10 * BUCKET_MS
    assert living.partitions(CellRange(0, now_ms), now_ms) == [(0, 8), (0, 9)]
    assert living.partitions(CellRange(0, BUCKET_MS), now_ms) == []


def test_a_range_of_too_many_partitions_is_refused() -> None:
    """The error has the number, the limit and the change to make."""
    to_ms = PARTITIONS_MAX * BUCKET_MS // 8
    assert len(table().partitions(CellRange(0, to_ms), 0)) == PARTITIONS_MAX
    with pytest.raises(QueryError, match=r"spans 20008 .* at most 20000; narrow"):
        table().partitions(CellRange(0, to_ms + 1), 0)


def test_batches_hold_few_rows_of_one_partition_and_all_rows_once() -> None:
    """No batch crosses a partition or passes its limit, and none of the rows is lost."""
    frame = rows([f"k{i}" for i in range(300)], [0, HOUR_MS, BUCKET_MS])
    batches = table().batches(frame, times(frame), now_ms=0)
    assert all(1 <= len(batch) <= BATCH_ROWS_MAX for batch in batches)
    assert all(len({row[:2] for row in batch}) == 1 for batch in batches)
    written = [row for batch in batches for row in batch]
    assert len(set(written)) == len(written) == frame.height
    for slot, bucket, key, start, *_ in written:
        assert (slot, bucket) == (key_hash((str(key),)) % 8, start // BUCKET_MS)  # type: ignore[operator]


def test_long_keys_make_smaller_batches() -> None:
    """A batch stays below the size that Cassandra refuses."""
    frame = rows([f"{i}" + "x" * 5_000 for i in range(10)], [0])
    batches = table(slots=1).batches(frame, times(frame), now_ms=0)
    assert [len(batch) for batch in batches] == [BATCH_BYTES_MAX // 5_000] * 3 + [1]


def test_rows_get_the_seconds_left_of_their_ttl_and_expired_ones_are_dropped() -> None:
    """TTL counts from the window's end, rounded up; zero is for ever."""
    frame = rows(["a"], [0, HOUR_MS, 2 * HOUR_MS])
    ttl = table(archive_ttl_ms=HOUR_MS)
    batches = ttl.batches(frame, times(frame), now_ms=2 * HOUR_MS + 1)
    left = [row[-1] for batch in batches for row in batch]
    assert left == [3_600, 7_200]
    forever = table().batches(frame, times(frame), now_ms=0)
    assert [row[-1] for batch in forever for row in batch] == [0, 0, 0]


def test_a_password_does_not_show() -> None:
    """Settings may be printed."""
    settings = archive_cassandra.CassandraSettings(username="u", password="secret-word")  # noqa: S106
    assert "secret-word" not in repr(settings)


async def test_a_cassandra_that_is_not_there_is_an_archive_error() -> None:
    """The error names the address and a check to make; the archive may be tried again."""
    (port,) = servers.free_ports(1)
    settings = archive_cassandra.CassandraSettings(hosts=("127.0.0.1",), port=port)
    archive = archive_cassandra.CassandraArchive(settings)
    for _ in range(2):
        with pytest.raises(ArchiveError, match=rf"127\.0\.0\.1, port {port}.*check addresses"):
            await archive.open(map_of(LAYER))


@pytest.mark.cassandra
async def test_workers_that_start_together_make_the_tables_once(
    cassandra: tuple[str, int],
) -> None:
    """Two archives open one new map at once, and each reads the rows of the other."""
    settings = settings_of(cassandra, "together")
    themap = map_of(LAYER, name=f"m{uuid.uuid4().hex[:12]}")
    archives = [archive_cassandra.CassandraArchive(settings) for _ in range(2)]
    await asyncio.gather(*(archive.open(themap) for archive in archives))
    for i, archive in enumerate(archives):
        frame = rows([f"worker {i}"], [0])
        await archive.write(LAYER, frame, times(frame))
    for archive in archives:
        got = await archive.read(LAYER, CellRange(0, HOUR_MS))
        assert sorted(got["key_origin"].to_list()) == ["worker 0", "worker 1"]
        assert archive.partitions_read_total == 8
        await archive.close()


@pytest.mark.cassandra
async def test_workers_that_start_together_add_a_measure_once(cassandra: tuple[str, int]) -> None:
    """Three archives gain different columns at once, beside an older one that goes on working."""
    settings = settings_of(cassandra, "together")
    name = f"m{uuid.uuid4().hex[:12]}"
    lowest, highest = Accumulator("min", "delay", "int"), Accumulator("max", "delay", "int")
    added = [(lowest,), (lowest, highest), (highest, lowest)]
    layers = [
        msgspec.structs.replace(LAYER, accumulators=LAYER.accumulators + more) for more in added
    ]
    older = archive_cassandra.CassandraArchive(settings)
    await older.open(map_of(LAYER, name=name))
    frame = rows(["before"], [0])
    await older.write(LAYER, frame, times(frame))
    newer = [archive_cassandra.CassandraArchive(settings) for _ in layers]
    opened = [
        archive.open(map_of(layer, name=name)) for archive, layer in zip(newer, layers, strict=True)
    ]
    await asyncio.gather(*opened)

    frame = rows(["after"], [0])
    await older.write(LAYER, frame, times(frame))
    for archive, layer in zip(newer, layers, strict=True):
        got = await archive.read(layer, CellRange(0, HOUR_MS))
        assert dict(got.schema) == archive_schema(layer)
        assert sorted(got["key_origin"].to_list()) == ["after", "before"]
        assert got["min_delay"].to_list() == [None, None]
        await archive.close()
    assert (await older.read(LAYER, CellRange(0, HOUR_MS))).height == 2
    await older.close()


@pytest.mark.cassandra
async def test_other_slots_are_refused_though_measures_may_change(
    cassandra: tuple[str, int],
) -> None:
    """Slots decide the partition of a row; a refused map adds no column."""
    settings = settings_of(cassandra, "together")
    name = f"m{uuid.uuid4().hex[:12]}"
    archive = archive_cassandra.CassandraArchive(settings)
    await archive.open(map_of(LAYER, name=name))
    await archive.close()
    more = (*LAYER.accumulators, Accumulator("sum", "speed", "float"))
    layer = msgspec.structs.replace(LAYER, slots=4, accumulators=more)
    with pytest.raises(ArchiveError, match=r"cannot use table .*slots 8, want .*slots 4"):
        await archive.open(map_of(layer, name=name))
    # Had the refused map added the column, as a double, another type would be refused now.
    more = (*LAYER.accumulators, Accumulator("sum", "speed", "int"))
    await archive.open(map_of(msgspec.structs.replace(LAYER, accumulators=more), name=name))
    await archive.close()


@pytest.mark.cassandra
async def test_an_answer_of_many_pages_is_whole(cassandra: tuple[str, int]) -> None:
    """One partition of more rows than a page of the driver (5,000) is read to its end."""
    settings = settings_of(cassandra, "pages")
    layer = msgspec.structs.replace(LAYER, slots=1)
    archive = archive_cassandra.CassandraArchive(settings)
    await archive.open(map_of(layer, name=f"m{uuid.uuid4().hex[:12]}"))
    frame = rows([f"{i:05}" for i in range(12_000)], [0])
    await archive.write(layer, frame, times(frame))
    got = await archive.read(layer, CellRange(0, HOUR_MS))
    await archive.close()
    assert sorted(got["key_origin"].to_list()) == frame["key_origin"].to_list()


@pytest.mark.cassandra
@pytest.mark.parametrize("keys", [40, 12_000])
async def test_partitions_that_are_asked_for_together_are_all_read(
    cassandra: tuple[str, int], keys: int
) -> None:
    """Few rows in one request; many of them page after page, and then side by side."""
    settings = settings_of(cassandra, "pages")
    archive = archive_cassandra.CassandraArchive(settings)
    await archive.open(map_of(LAYER, name=f"m{uuid.uuid4().hex[:12]}"))
    frame = rows([f"{i:05}" for i in range(keys)], [0, BUCKET_MS])
    await archive.write(LAYER, frame, times(frame))
    asked = []
    for _ in range(2):
        before = archive.requests_total
        got = await archive.read(LAYER, CellRange(0, 2 * BUCKET_MS))
        asked.append(archive.requests_total - before)
        columns = ["key_origin", "window_start"]
        assert sorted(got.select(columns).rows()) == sorted(frame.select(columns).rows())
    # The second time it is known how many rows a partition has.
    assert asked == ([1, 1] if keys == 40 else [1, 16])
    await archive.close()


@pytest.mark.cassandra
async def test_a_request_goes_where_the_driver_would_send_its_first_partition(
    cassandra: tuple[str, int],
) -> None:
    """The key that a request is routed by is the one that the driver makes of slot and bucket."""
    settings = settings_of(cassandra, "pages")
    archive = archive_cassandra.CassandraArchive(settings)
    name = f"m{uuid.uuid4().hex[:12]}"
    await archive.open(map_of(LAYER, name=name))
    place = CassandraTable(map_of(LAYER, name=name), LAYER, "pages")
    cells = CellRange(0, HOUR_MS)
    one = await archive._prepare("read", place.select(cells))
    several = await archive._prepare("read", place.select(cells, several=True))
    for slot, bucket in ((0, 0), (7, -1), (3, 2**40)):
        alone = Request((slot,), (bucket,))
        routed = alone.bound(one, place.select_values(cells, *alone.values))
        assert routed.routing_key == routing_key(slot, bucket)
        for both in (Request((slot, slot + 1), (bucket,)), Request((slot,), (bucket, 5))):
            together = both.bound(several, place.select_values(cells, *both.values))
            assert (together.routing_key, together.keyspace) == (routed.routing_key, "pages")
    await archive.close()


def test_a_node_that_is_away_for_days_is_tried_again_every_few_seconds() -> None:
    """However long it was away, rows go to it soon after it is back."""
    waits = list(itertools.islice(archive_cluster.RECONNECTION.new_schedule(), 20_000))
    assert len(waits) == 20_000
    assert max(waits) <= archive_cluster.RECONNECT_S_MAX <= 10
    assert sum(waits) > 86_400


@pytest.mark.cassandra
async def test_an_archive_closed_while_it_opens_says_so(cassandra: tuple[str, int]) -> None:
    """Closing at any step leaves no connection, and the error is the archive's."""
    settings = settings_of(cassandra, "closing")
    themap = map_of(LAYER, name=f"m{uuid.uuid4().hex[:12]}")
    # Clusters that have connected and were not shut down.
    connected = pytest.importorskip("cassandra.cluster")._clusters_for_shutdown
    before = set(connected)
    refused: list[str] = []
    for step in range(6):
        archive = archive_cassandra.CassandraArchive(settings)
        opening = asyncio.create_task(archive.open(themap))
        await asyncio.wait({opening}, timeout=step * 0.08)
        await archive.close()
        try:
            await opening
        except ArchiveError as error:
            refused.append(str(error))
        await archive.close()
    assert refused
    assert all("closed meanwhile" in reason for reason in refused)
    assert set(connected) == before


@pytest.mark.cassandra
@pytest.mark.slow
async def test_a_node_that_goes_and_comes_back_is_written_again(
    spare_cassandra: servers.CassandraServer,
) -> None:
    """Calls fail as archive errors while the node hangs or is gone; after, rows go in again."""
    server = spare_cassandra
    settings = archive_cassandra.CassandraSettings(
        hosts=(server.host,),
        port=server.port,
        replication=1,
        keyspace=keyspace(),
        request_timeout_s=2,
    )
    # To make tables may take longer than that.
    patient = archive_cassandra.CassandraArchive(
        dataclasses.replace(settings, request_timeout_s=60)
    )
    await patient.open(map_of(LAYER))
    await patient.close()
    archive = archive_cassandra.CassandraArchive(settings)
    frame = rows(["a", "b"], [0])
    cells = CellRange(0, HOUR_MS)
    try:
        await archive.open(map_of(LAYER))
        await archive.write(LAYER, frame, times(frame))

        server.pause()
        with pytest.raises(ArchiveError, match="cannot write layer hours"):
            await archive.write(LAYER, frame, times(frame))
        # So does opening, if the node goes away after it was connected to.
        schema = schema_module.Schema(archive._session, settings)
        with (
            pytest.raises(ArchiveAwayError, match="was not refreshed"),
            archive_driver.driver("open", "wait"),
        ):
            schema.missing_columns(archive._tables["hours"])
        server.resume()
        await _until_done(archive, frame)

        await asyncio.to_thread(server.kill)
        with pytest.raises(ArchiveError, match="cannot read layer hours"):
            await archive.read(LAYER, cells)
        await asyncio.to_thread(server.start)
        await _until_done(archive, frame)
        assert (await archive.read(LAYER, cells)).height == 2
    finally:
        await archive.close()


@pytest.mark.cassandra
@pytest.mark.slow
async def test_what_a_node_acknowledged_survives_its_kill(
    spare_cassandra: servers.CassandraServer,
) -> None:
    """Rows are written again and again until the node is killed; each has its last version then."""
    server = spare_cassandra
    settings = archive_cassandra.CassandraSettings(
        hosts=(server.host,),
        port=server.port,
        replication=1,
        keyspace=keyspace(),
        request_timeout_s=5,
    )
    acknowledged: dict[str, int] = {}

    async def write(archive: Any, keys: list[str]) -> None:
        for version in itertools.count(1):
            frame = rows(keys, [0]).with_columns(version=pl.lit(version, pl.Int64))
            try:
                await archive.write(LAYER, frame, pl.Series([version] * frame.height))
            except ArchiveError:
                return
            acknowledged.update(dict.fromkeys(keys, version))

    archive = archive_cassandra.CassandraArchive(settings)
    await archive.open(map_of(LAYER))
    keys = [[f"{writer}-{i}" for i in range(20)] for writer in range(4)]
    writing = [asyncio.create_task(write(archive, some)) for some in keys]

    async def enough() -> bool:
        return len(acknowledged) == 80 and min(acknowledged.values()) > 10

    await until(enough)
    await asyncio.to_thread(server.kill)
    await asyncio.gather(*writing)
    await archive.close()

    await asyncio.to_thread(server.start)
    archive = archive_cassandra.CassandraArchive(settings)
    await archive.open(map_of(LAYER))
    found = await archive.read(LAYER, CellRange(0, HOUR_MS))
    await archive.close()
    have = dict(found.select("key_origin", "version").iter_rows())
    behind = {key: v for key, v in acknowledged.items() if have.get(key, 0) < v}
    assert not behind


def keyspace() -> str:
    """Return a name that nobody else has."""
    return f"k{uuid.uuid4().hex[:12]}"


async def _until_done(archive: Any, frame: pl.DataFrame) -> None:
    async def is_taken() -> bool:
        try:
            await archive.write(LAYER, frame, times(frame))
        except ArchiveError:
            return False  # the driver reconnects at its own pace
        return True

    await until(is_taken, 90)


@pytest.mark.cassandra
async def test_two_maps_whose_tables_would_have_one_name_do_not_mix(
    cassandra: tuple[str, int],
) -> None:
    """The table says in its comment whose it is, and the second map is refused."""
    settings = settings_of(cassandra, "names")
    layer = msgspec.structs.replace(LAYER, name="b_c")
    first = archive_cassandra.CassandraArchive(settings)
    await first.open(Map(1, "a", (), (layer,), ""))
    await first.close()
    second = archive_cassandra.CassandraArchive(settings)
    with pytest.raises(ArchiveError, match=r"table names\.a_b_c: .* map a, .*want .* map a_b, "):
        await second.open(Map(1, "a_b", (), (msgspec.structs.replace(LAYER, name="c"),), ""))


@pytest.mark.cassandra
async def test_openers_at_once_come_to_one_id(cassandra: tuple[str, int]) -> None:
    """Any of them may be first, for the journals remembered too; each map has its own id."""
    settings = settings_of(cassandra, "ids")
    themap = Map(1, "a", (), (LAYER,), "")
    archives = [archive_cassandra.CassandraArchive(settings) for _ in range(4)]
    themaps = [themap, themap, themap, msgspec.structs.replace(themap, name="b")]
    try:
        await asyncio.gather(*(one.open(each) for one, each in zip(archives, themaps, strict=True)))
        *same, other = archives
        assert len({one.id for one in same}) == 1
        assert other.id not in {one.id for one in same}
        drawn = [History(str(number)) for number in range(3)]
        kept = await asyncio.gather(
            *(one.remember("raw", 0, mine) for one, mine in zip(same, drawn, strict=True))
        )
        assert len(set(kept)) == 1
        assert await other.history("raw", 0) is None
    finally:
        await asyncio.gather(*(one.close() for one in archives))
