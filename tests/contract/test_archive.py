"""One battery for all archives: the row of the latest write time is read, and only that."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from app.config import archives
from app.config.settings import load_settings
from tables.archive.embedded.archive import EmbeddedArchive
from tables.archive.identity import History
from tables.archive.protocol import Archive, CellRange
from tables.model.errors import ArchiveError, QueryError
from tables.model.layer import Accumulator, KeyField, Layer, Map
from tables.model.window import Window
from tables.state.cell import archive_schema
from tests.support.archive_rows import (
    ACCUMULATORS,
    DAY_MS,
    HOUR_MS,
    HOURS,
    START_MS,
    TTL,
    Clock,
    cell,
    frame,
    get,
    put,
)
from tests.support.memory_archive import MemoryKind

MONTHS_MS = (START_MS, START_MS + 31 * DAY_MS, START_MS + 59 * DAY_MS)

MONTHS = msgspec.structs.replace(
    HOURS, name="months", key=(KeyField("carrier", "string"),), window=Window(0), slots=1
)


@dataclasses.dataclass
class Site:
    """One place that holds an archive: ``make`` gives a new archive object on the same data."""

    make: Callable[[], Archive]
    map: Map
    clock: Clock


@pytest.fixture(
    params=["embedded", "memory", pytest.param("cassandra", marks=pytest.mark.cassandra)]
)
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Give an empty archive's place, for each implementation."""
    clock = Clock()
    name = f"m{uuid.uuid4().hex[:12]}"
    themap = Map(revision=1, name=name, sources=(), layers=(HOURS, MONTHS, TTL), digest="")
    if request.param == "embedded":
        return Site(lambda: EmbeddedArchive(tmp_path / "archive", clock), themap, clock)
    if request.param == "memory":
        # A kind that is added to the list of them is chosen by its name.
        monkeypatch.setattr(archives, "ARCHIVES", (*archives.ARCHIVES, MemoryKind(clock)))
        chosen = load_settings({"archive": "memory"}, {})
        return Site(lambda: archives.archive_of(chosen).make(chosen), themap, clock)
    module = pytest.importorskip("tables.archive.cassandra.archive")
    host, port = request.getfixturevalue("cassandra")
    settings = module.CassandraSettings(
        hosts=(host,), port=port, keyspace="battery", replication=1, request_timeout_s=60
    )
    return Site(lambda: module.CassandraArchive(settings, clock), themap, clock)


@pytest.fixture
async def archive(site: Site) -> AsyncIterator[Archive]:
    """Give an open, empty archive."""
    opened = site.make()
    await opened.open(site.map)
    yield opened
    await opened.close()


async def test_a_row_is_read_as_it_was_written(archive: Archive) -> None:
    """Every column comes back with its type and value, sums of 128 bits and negatives too."""
    full = cell(
        key_origin="Zürich\x00ß",
        key_gate=-(2**63),
        key_late=True,
        events=2**62,
        n_delay=3,
        sum_delay=-(2**100) - 1,
        min_delay=-(2**63),
        max_delay=2**63 - 1,
        sqlo_delay=2**127 - 1,
        sqhi_delay=2**64,
        n_speed=2,
        sum_speed=-1.5,
        min_speed=-1e300,
        max_speed=5e-324,
        m2_speed=0.1,
        version=2**40,
        source_partition=7,
    )
    await put(archive, full)
    got = await get(archive)
    assert_frame_equal(got, frame([full]), check_exact=True)


async def test_a_field_no_event_had_is_null_in_min_and_max_and_zero_in_sums(
    archive: Archive,
) -> None:
    """A cell of events without the measured fields keeps its nulls."""
    await put(archive, cell(events=5))
    row = (await get(archive)).row(0, named=True)
    assert (row["n_delay"], row["sum_delay"]) == (0, 0)
    assert row["min_delay"] is row["max_delay"] is row["min_speed"] is None


async def test_an_empty_archive_gives_an_empty_frame_of_the_layer(archive: Archive) -> None:
    """No rows still have the columns and types of the layer."""
    assert dict((await get(archive)).schema) == archive_schema(HOURS)


async def test_writing_no_rows_is_done_at_once(archive: Archive) -> None:
    """An empty frame is a write like any other."""
    await put(archive)
    assert (await get(archive)).is_empty()


@pytest.mark.parametrize("order", [(1, 2), (2, 1)], ids=["in order", "stale value last"])
async def test_the_larger_write_time_wins_in_either_order(
    archive: Archive, order: tuple[int, int]
) -> None:
    """A stale value that arrives after a newer one changes nothing."""
    for at in order:
        await put(archive, cell(events=at, n_delay=at, min_delay=-at), at=at)
    assert_frame_equal(await get(archive), frame([cell(events=2, n_delay=2, min_delay=-2)]))


async def test_a_newer_null_replaces_an_older_value(archive: Archive) -> None:
    """Rows are taken whole: no column of an older write shows through."""
    await put(archive, cell(min_delay=4), at=1)
    await put(archive, cell(min_delay=None), at=2)
    assert (await get(archive))["min_delay"].to_list() == [None]


async def test_two_values_of_one_row_in_one_write_leave_the_larger(archive: Archive) -> None:
    """Inside one frame the write time decides too, not the order of rows."""
    rows = frame([cell(events=9), cell(events=5), cell(events=7)])
    await archive.write(HOURS, rows, pl.Series([9, 5, 7], dtype=pl.Int64))
    assert (await get(archive))["events"].to_list() == [9]


async def test_a_repeated_write_changes_nothing(archive: Archive) -> None:
    """Sending the same rows again is sending them once."""
    rows = [cell(window_start=START_MS + i * HOUR_MS, events=i + 1) for i in range(24)]
    for _ in range(3):
        await put(archive, *rows, at=5)
    assert_frame_equal(await get(archive), frame(rows))


async def test_two_source_partitions_are_kept_apart(archive: Archive) -> None:
    """Rows of one cell from two partitions stand side by side, for the reader to merge."""
    rows = [cell(source_partition=p, events=p + 1) for p in (0, 1)]
    await put(archive, *rows)
    assert_frame_equal(await get(archive), frame(rows))


async def test_a_range_holds_its_start_and_not_its_end(archive: Archive) -> None:
    """Ranges are half-open, inside a bucket and over its ends, before 1970 too."""
    keys: list[dict[str, Any]] = [{}, {"origin": "JFK", "gate": 0, "late": False}]
    for start in (START_MS, START_MS + 31 * HOUR_MS, -33 * HOUR_MS):
        rows = [cell(window_start=start + i * HOUR_MS) for i in range(3)]
        await put(archive, *rows)
        for key in keys:
            got = await get(archive, start, start + 2 * HOUR_MS, **key)
            assert got["window_start"].to_list() == [start, start + HOUR_MS]
        assert (await get(archive, start, start)).is_empty()
        assert (await get(archive, start + HOUR_MS, start)).is_empty()


@pytest.mark.parametrize(
    "key",
    [
        {"origin": "JFK"},
        {"gate": 2},
        {"late": True},
        {"origin": "LGA", "late": False},
        {"origin": "JFK", "gate": 1},
        {"origin": "EWR", "gate": 2, "late": True},
        {"origin": "JF"},
    ],
    ids=str,
)
async def test_a_key_named_in_part_matches_the_rows_with_these_fields(
    archive: Archive, key: dict[str, Any]
) -> None:
    """Any of the key's fields may be named; the answer is the filter of all rows."""
    rows = [
        cell(key_origin=origin, key_gate=gate, key_late=late, window_start=START_MS + h * HOUR_MS)
        for origin in ("EWR", "JFK", "JFKX", "LGA")
        for gate in (1, 2)
        for late in (False, True)
        for h in range(0, 80, 8)
    ]
    await put(archive, *rows)
    from_ms, to_ms = START_MS + 8 * HOUR_MS, START_MS + 72 * HOUR_MS
    wanted = [
        row
        for row in rows
        if all(row[f"key_{name}"] == value for name, value in key.items())
        and from_ms <= row["window_start"] < to_ms
    ]
    assert_frame_equal(await get(archive, from_ms, to_ms, **key), frame(wanted))


async def test_a_field_the_key_does_not_have_is_refused(archive: Archive) -> None:
    """The error names the field and those that exist."""
    with pytest.raises(QueryError, match=r"no field carrier.*origin, gate, late"):
        await get(archive, carrier="AA")


async def test_month_windows_are_read_by_their_starts(archive: Archive) -> None:
    """Months of different lengths are rows like others."""
    rows = [cell(MONTHS, key_carrier=c, window_start=m) for c in ("AA", "UA") for m in MONTHS_MS]
    await put(archive, *rows, layer=MONTHS)
    got = await get(archive, MONTHS_MS[0], MONTHS_MS[2], MONTHS)
    wanted = [row for row in rows if row["window_start"] < MONTHS_MS[2]]
    assert_frame_equal(got, frame(wanted, MONTHS))


async def test_layers_do_not_see_one_another(archive: Archive) -> None:
    """The same key and window in two layers are two rows."""
    await put(archive, cell(), layer=HOURS)
    assert (await get(archive, layer=TTL)).is_empty()


async def test_rows_max_is_a_limit_that_says_so(archive: Archive) -> None:
    """The allowed number of rows is read; one more is an error and not a cut answer."""
    await put(archive, *(cell(key_gate=i) for i in range(50)))
    window = (START_MS, START_MS + HOUR_MS)
    assert (await archive.read(HOURS, CellRange(*window, rows_max=50))).height == 50
    with pytest.raises(QueryError, match="more than 49 archive rows"):
        await archive.read(HOURS, CellRange(*window, rows_max=49))


async def test_rows_are_there_after_the_archive_is_opened_again(
    archive: Archive, site: Site
) -> None:
    """The next opener of the place reads all acknowledged rows, even after an error."""
    await put(archive, cell(events=3))
    with pytest.raises(QueryError) as kept:
        await archive.read(HOURS, CellRange(START_MS, START_MS + HOUR_MS, rows_max=0))
    await archive.close()
    again = site.make()
    await again.open(site.map)
    assert (await get(again))["events"].to_list() == [3]
    await again.close()
    await archive.open(site.map)
    assert (await get(archive))["events"].to_list() == [3]
    assert kept.value is not None


async def test_the_first_journal_of_a_partition_is_remembered_for_good(
    archive: Archive, site: Site
) -> None:
    """Topic and partition find it after the archive is opened again; the id stays too."""
    drawn = archive.id
    assert len(drawn) == 16
    assert await archive.history("raw", 0) is None
    first = History("aa", "cluster")
    assert await archive.remember("raw", 0, first) == first
    assert await archive.remember("raw", 0, History("bb")) == first
    assert await archive.remember("raw", 1, History("cc")) == History("cc")
    await archive.close()
    assert archive.id == ""
    with pytest.raises(ArchiveError, match="closed"):
        await archive.history("raw", 0)
    await archive.open(site.map)
    assert archive.id == drawn
    assert site.map.name in archive.place or "folder /" in archive.place
    assert [await archive.history("raw", p) for p in (0, 1, 2)] == [first, History("cc"), None]


async def test_a_closed_archive_says_so(archive: Archive) -> None:
    """Reading and writing after close are operating errors; closing twice is closing."""
    await archive.close()
    await archive.close()
    with pytest.raises(ArchiveError, match="closed"):
        await put(archive, cell())
    with pytest.raises(ArchiveError, match="closed"):
        await get(archive)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"accumulators": (*ACCUMULATORS[:8], Accumulator("sum", "speed", "int"))}, "sum_speed"),
        ({"key": HOURS.key[:2]}, "key_late"),
        ({"window": Window(60_000)}, "window"),
        ({"window": Window(60_000), "accumulators": ACCUMULATORS[:1]}, "window"),
    ],
    ids=["type of a field", "key", "window", "window and measures"],
)
async def test_a_layer_that_changed_is_refused_with_the_differences(
    archive: Archive, site: Site, change: dict[str, Any], named: str
) -> None:
    """A table made for other types, key or windows is not written into."""
    await put(archive, cell())
    await archive.close()
    changed = msgspec.structs.replace(HOURS, **change)
    other = site.make()
    with pytest.raises(ArchiveError, match=f"cannot use .*{named}.*new name"):
        await other.open(msgspec.structs.replace(site.map, layers=(changed,)))
    # A refused archive holds nothing open: the right map gets in at once.
    await archive.open(site.map)
    assert (await get(archive)).height == 1


async def reopened(archive: Archive, site: Site, layer: Layer) -> Archive:
    """Close the archive and open its place under a map that has ``layer`` alone."""
    await archive.close()
    again = site.make()
    await again.open(msgspec.structs.replace(site.map, revision=2, layers=(layer,)))
    return again


def columns(rows: pl.DataFrame, *names: str) -> list[tuple[Any, ...]]:
    """Return some columns of a frame, row by row."""
    return rows.select(names).rows()


def old_row(less: Layer, **values: Any) -> dict[str, Any]:
    """Return a row written under a map of fewer accumulators: in the other columns it is null."""
    return dict.fromkeys(archive_schema(HOURS)) | cell(less, **values)


async def test_an_added_measure_is_null_in_older_rows(site: Site) -> None:
    """Nobody knows the values of old rows; new rows have all; a row may be replaced."""
    less = msgspec.structs.replace(HOURS, accumulators=ACCUMULATORS[:1] + ACCUMULATORS[7:8])
    archive = site.make()
    await archive.open(msgspec.structs.replace(site.map, layers=(less,)))
    old = [cell(less, key_gate=gate, n_speed=gate, version=gate) for gate in (1, 2)]
    await put(archive, *old, layer=less)

    archive = await reopened(archive, site, HOURS)
    full: dict[str, Any] = {"n_delay": 3, "sum_delay": -(2**90), "min_delay": -4, "m2_speed": 0.5}
    await put(archive, cell(key_gate=2, events=9, **full), cell(key_gate=3, **full), at=2)
    wanted = frame(
        [
            old_row(less, key_gate=1, n_speed=1, version=1),
            cell(key_gate=2, events=9, **full),
            cell(key_gate=3, **full),
        ]
    )
    assert_frame_equal(await get(archive), wanted, check_exact=True)
    again = await reopened(archive, site, HOURS)
    assert_frame_equal(await get(again, origin="JFK"), wanted, check_exact=True)
    await again.close()


async def test_measures_are_added_more_than_once_and_in_any_place(site: Site) -> None:
    """Rows of three revisions, each with more columns between the others, are read together."""
    chosen = [(0,), (0, 4), (0, 2, 3, 4, 11)]
    versions = [
        msgspec.structs.replace(HOURS, accumulators=tuple(ACCUMULATORS[i] for i in places))
        for places in chosen
    ]
    archive = site.make()
    await archive.open(msgspec.structs.replace(site.map, layers=(versions[0],)))
    given: dict[str, Any] = {"sum_delay": 2**70, "min_delay": -1, "max_delay": 8, "m2_speed": 2.5}
    for i, layer in enumerate(versions):
        archive = await reopened(archive, site, layer)
        known = {name: value for name, value in given.items() if name in archive_schema(layer)}
        await put(archive, cell(layer, key_gate=i, version=i, **known), layer=layer)
    got = await get(archive, layer=versions[-1])
    await archive.close()
    assert columns(got, "version", "sum_delay", "min_delay", "max_delay", "m2_speed") == [
        (0, None, None, None, None),
        (1, None, None, 8, None),
        (2, 2**70, -1, 8, 2.5),
    ]


async def test_a_measure_that_was_taken_away_is_absent_and_its_layer_goes_on(
    archive: Archive, site: Site
) -> None:
    """Rows are read and written without it, and those untouched have it when it comes back."""
    less = msgspec.structs.replace(HOURS, accumulators=ACCUMULATORS[:4] + ACCUMULATORS[7:])
    await put(archive, *(cell(key_gate=gate, n_delay=5, max_delay=7) for gate in (1, 2)))
    archive = await reopened(archive, site, less)
    await put(archive, cell(less, key_gate=2, n_delay=6), layer=less, at=2)
    await put(archive, cell(less, key_gate=3, n_delay=7), layer=less, at=2)
    got = await get(archive, layer=less)
    assert dict(got.schema) == archive_schema(less)
    assert columns(got, "key_gate", "n_delay") == [(1, 5), (2, 6), (3, 7)]

    archive = await reopened(archive, site, HOURS)
    got = (await get(archive)).filter(pl.col("key_gate") != 2)
    await archive.close()
    assert columns(got, "key_gate", "n_delay", "max_delay", "sqlo_delay") == [
        (1, 5, 7, 0),
        (3, 7, None, None),
    ]


async def test_one_measure_may_go_while_another_comes(archive: Archive, site: Site) -> None:
    """A layer that loses and gains accumulators at once keeps those it has in common."""
    tax = Accumulator("sum", "tax", "int")
    other = msgspec.structs.replace(HOURS, accumulators=(tax, *ACCUMULATORS[:3]))
    await put(archive, cell(n_delay=5, sum_delay=11, max_delay=7))
    archive = await reopened(archive, site, other)
    await put(archive, cell(other, key_gate=1, sum_tax=2**80), layer=other)
    got = await get(archive, layer=other)
    await archive.close()
    assert columns(got, "n_delay", "sum_delay", "sum_tax") == [(5, 11, None), (0, 0, 2**80)]


async def test_rows_expire_at_window_end_plus_ttl(archive: Archive, site: Site) -> None:
    """A row is read up to its last millisecond, and not after; other layers keep theirs."""
    hours = range(0, 48, 6)
    rows = [cell(TTL, window_start=START_MS + h * HOUR_MS, events=h) for h in hours]
    await put(archive, *rows, layer=TTL)
    await put(archive, cell())
    end_ms = START_MS + 6 * HOUR_MS + HOUR_MS + TTL.archive_ttl_ms  # of the second row
    site.clock.now_ms = end_ms - 1
    got = await get(archive, START_MS, START_MS + 3 * DAY_MS, TTL)
    assert got["events"].to_list() == list(hours)[1:]
    site.clock.now_ms = end_ms
    got = await get(archive, START_MS, START_MS + 3 * DAY_MS, TTL)
    assert got["events"].to_list() == list(hours)[2:]
    assert (await get(archive)).height == 1


async def test_a_row_that_has_expired_is_taken_and_not_kept(archive: Archive, site: Site) -> None:
    """Writing history past its TTL succeeds, and turning the clock back shows it was not stored."""
    site.clock.now_ms = START_MS + 30 * DAY_MS
    await put(archive, cell(TTL), layer=TTL)
    site.clock.now_ms = START_MS
    assert (await get(archive, layer=TTL)).is_empty()


async def test_reads_and_writes_at_once_end_with_the_latest_of_everything(
    archive: Archive,
) -> None:
    """Writers of shuffled, overlapping values beside readers leave the rows of a dict."""
    rng = random.Random(20130101)
    wanted: dict[tuple[int, int], tuple[int, int]] = {}
    writes = []
    for _ in range(12):
        rows, times = [], []
        for _ in range(60):
            gate, hour, at = rng.randrange(4), rng.randrange(40), rng.randrange(1, 10**9)
            start = START_MS + hour * HOUR_MS
            rows.append(cell(key_gate=gate, window_start=start, events=at, sum_delay=at << 64))
            times.append(at)
            wanted[gate, start] = max(wanted.get((gate, start), (0, 0)), (at, at << 64))
        writes.append(archive.write(HOURS, frame(rows), pl.Series(times, dtype=pl.Int64)))
    reads = [get(archive, START_MS, START_MS + 40 * HOUR_MS, gate=i % 4) for i in range(12)]
    await asyncio.gather(*writes, *reads)

    got = await get(archive, START_MS, START_MS + 40 * HOUR_MS)
    columns = got.select("key_gate", "window_start", "events", "sum_delay").rows()
    assert {(g, s): (events, total) for g, s, events, total in columns} == wanted
