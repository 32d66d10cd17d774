"""Records of feeds: clients read the cells that workers write, in JSON and in Arrow."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import polars as pl
import pytest

from tables.model.keyhash import key_hash
from tables.model.layer import Accumulator, KeyField, Layer, Measure
from tables.model.window import MONTH
from tables.query.cell_query import cell_rows
from tables.query.feed_records import ARROW_BYTES_MAX, PublishedRecord, feed_records
from tables.state.cell import cell_schema
from tests.support.common import EVENTS, HOUR_MS, accumulators, dataclasses_replace, small_map
from treasure_map.feed import FeedCell, UnreadableRecordError, Versions, decode_record

HOUR = small_map().layer("hour")
REVISION, SOURCE_PARTITION = 7, 3


def published(form: str, **changes: Any) -> Layer:
    """Return the hour layer, published in a form."""
    found: Layer = dataclasses_replace(HOUR, **{"publish": form, "partitions": 4} | changes)
    return found


def frame(layer: Layer, rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    """Return a cell frame of rows."""
    return pl.DataFrame(rows, schema=cell_schema(layer), orient="row")


def cells(rows: int = 3) -> pl.DataFrame:
    """Return cells of different keys with sums beyond 64 bits, and one without measured events."""
    some = [
        ("JFK", f"C{i}", i * HOUR_MS, 2, 2, 2**100 + i, -i, 2**62, 5, 2**70, 40 + i)
        for i in range(rows - 1)
    ]
    return frame(HOUR, [*some, ('ünï \\ "x"', "", -HOUR_MS, 1, 0, 0, None, None, 0, 0, 9)])


def read(records: Iterable[PublishedRecord]) -> list[FeedCell]:
    """Return the cells of records in the order of window and key, as clients read them."""
    found = [cell for record in records for cell in decode_record(record.value)]
    return sorted(found, key=lambda cell: (cell.window_start, *cell.key.values()))


@pytest.mark.parametrize("form", ["json", "arrow"])
def test_a_client_reads_what_the_query_endpoint_answers(form: str) -> None:
    """Key, window, measures and version are equal to the last digit, and so is the source."""
    layer = published(form)
    found = read(feed_records(layer, REVISION, SOURCE_PARTITION, cells()))
    want = cell_rows(layer, cells().sort("window_start"))
    assert len(found) == len(want) == 3
    for cell, row in zip(found, want, strict=True):
        assert (cell.layer, cell.map_revision, cell.source_partition) == ("hour", 7, 3)
        assert (cell.key, cell.version) == (row.key, row.version)
        assert (cell.window_start, cell.window_end) == (row.window_start, row.window_end)
        answered = {n: int(v) if isinstance(v, str) else v for n, v in row.measures.items()}
        assert cell.measures == answered
        assert {n: type(v) for n, v in cell.measures.items()} == {
            n: type(v) for n, v in answered.items()
        }
    assert found[1].measures["sum_delay"] == 2**100


@pytest.mark.parametrize("form", ["json", "arrow"])
def test_every_type_of_key_and_measure_comes_through(form: str) -> None:
    """Integers, booleans, non-finite floats and empty keys come through; months keep their ends."""
    floats = (EVENTS, *(Accumulator(k, "w", "float") for k in ("n", "sum", "min", "max")))
    kinds = ("sum", "mean", "min", "max")
    layer = published(
        form,
        key=(KeyField("shop", "int"), KeyField("vip", "bool")),
        window=MONTH,
        measures=(Measure("count"), *(Measure(kind, "w") for kind in kinds)),
        accumulators=floats,
    )
    (cell,) = read(
        feed_records(layer, 1, 0, frame(layer, [(-5, True, 0, 2, 2, float("inf"), 0.1, 3e300, 8)]))
    )
    assert cell.key == {"shop": -5, "vip": True}
    assert cell.window_end == 31 * 24 * HOUR_MS
    want = {"count": 2, "sum_w": None, "mean_w": None, "min_w": 0.1, "max_w": 3e300}
    assert cell.measures == want
    bare = dataclasses_replace(layer, key=())
    records = feed_records(bare, 1, 0, frame(bare, [(0, 2, 2, 1.0, 0.5, 0.5, 8)]))
    assert [cell.key for cell in read(records)] == [{}]


def test_a_record_of_json_is_one_cell_with_the_same_key_for_all_versions() -> None:
    """Key values in the map's order, window start, source partition: compaction goes by them."""
    layer = published("json")
    first = feed_records(layer, 1, 3, cells())
    later = feed_records(layer, 2, 3, cells().with_columns(version=pl.lit(99, pl.Int64)))
    assert [record.key for record in first] == [record.key for record in later]
    assert first[1].key == b'["JFK","C1",3600000,3]'
    assert json.loads(first[2].key or b"") == ['ünï \\ "x"', "", -HOUR_MS, 3]
    assert list(json.loads(first[0].value)) == [
        "layer", "map_revision", "key", "window_start", "window_end", "measures", "version",
        "source_partition",
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["json", "arrow"])
def test_cells_go_to_the_partition_of_their_key(form: str) -> None:
    """All versions of a cell are in one partition, in the order in which they were sent."""
    layer = published(form)
    records = feed_records(layer, 1, 3, cells(50))
    assert {record.partition for record in records} == {0, 1, 2, 3}
    for record in records:
        for cell in decode_record(record.value):
            assert key_hash(cell.key.values()) % 4 == record.partition
    assert len(records) == (50 if form == "json" else 4)


def test_arrow_records_stay_small_enough_for_any_topic() -> None:
    """A record is within the default limit of brokers, for any content of a window."""
    layer = published("arrow")
    many = pl.concat([cells(20_000), cells(20_000).with_columns(key_origin=pl.lit("x" * 50))])
    records = feed_records(layer, 1, 3, many)
    assert len(records) > 8
    assert max(len(record.value) for record in records) < ARROW_BYTES_MAX * 1.1
    assert sum(len(decode_record(record.value)) for record in records) == 40_000


def arrow(**columns: Any) -> bytes:
    """Return a record of Arrow with some columns replaced, or taken out if they are None."""
    (record,) = feed_records(published("arrow", partitions=1), 1, 3, cells(2))
    rows = pl.read_ipc_stream(record.value)
    for name, value in columns.items():
        rows = rows.drop(name) if value is None else rows.with_columns(pl.lit(value).alias(name))
    return rows.write_ipc_stream(None).getvalue()


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        (b"", "truncated"),
        (b"no cell", "malformed"),
        (b"[]", "Expected `object`"),
        (b'{"layer": "hour"}', "missing required field"),
        (b"\xff\xff\xff\xff\x00", "no Arrow IPC stream"),
        (arrow()[:-200], "no Arrow IPC stream"),
        (arrow(version=None, layer=None), "its columns lack layer, version"),
        (arrow(version="late"), "Expected `int`, got `str`"),
    ],
)  # fmt: skip
def test_what_is_no_cell_is_refused_with_the_cause(value: bytes, cause: str) -> None:
    """Both forms raise this error and nothing else."""
    with pytest.raises(UnreadableRecordError, match=cause):
        decode_record(value)


def test_text_that_is_no_number_is_no_measure() -> None:
    """Only integers beyond 64 bits are text."""
    (record, *_) = feed_records(published("json"), 1, 3, cells())
    broken = json.loads(record.value)
    broken["measures"]["count"] = "many"
    with pytest.raises(UnreadableRecordError, match="many"):
        decode_record(json.dumps(broken).encode())


def cell_at(window: int, version: int, key: str = "a", source_partition: int = 0) -> FeedCell:
    """Return a cell."""
    return FeedCell({"k": key}, window, window + 1, {}, version, "hour", 1, source_partition)


def test_only_a_larger_version_is_news() -> None:
    """Each key, window and source partition counts for itself."""
    versions = Versions(100)
    assert versions.take(0, cell_at(0, 5))
    assert not versions.take(0, cell_at(0, 5))
    assert not versions.take(0, cell_at(0, 4))
    assert versions.take(0, cell_at(0, 6))
    assert versions.take(0, cell_at(0, 1, key="b"))
    assert versions.take(0, cell_at(1, 1))
    assert versions.take(0, cell_at(0, 1, source_partition=1))
    assert (versions.cells, versions.forgotten) == (4, 0)


def test_memory_is_bounded_by_forgetting_the_oldest_windows() -> None:
    """Cells of a forgotten window are given as they come."""
    versions = Versions(10)
    for window in range(30):
        assert versions.take(0, cell_at(window, 1))
    assert (versions.cells, versions.forgotten) == (10, 20)
    assert not versions.take(0, cell_at(20, 1))
    assert versions.take(0, cell_at(19, 1))
    assert versions.cells == 10


def test_partitions_read_one_after_the_other_do_not_push_each_other_out() -> None:
    """A partition whose windows are far ahead loses its own oldest ones first."""
    versions = Versions(20)
    for window in range(1_000, 1_019):
        versions.take(0, cell_at(window, 1))
    for window in range(10):
        versions.take(1, cell_at(window, 1))
    assert not any(versions.take(1, cell_at(window, 1)) for window in range(10))
    assert versions.cells == 20


def test_an_accumulator_of_a_float_makes_a_float_of_its_sum() -> None:
    """Integers are decimals in Arrow, whose type is the same for all values."""
    layer = published("arrow", partitions=1)
    (record,) = feed_records(layer, 1, 3, cells())
    schema = pl.read_ipc_stream(record.value).schema
    assert schema["sum_delay"] == pl.Decimal(38, 0)
    assert schema["max_delay"] == schema["count"] == pl.Int64()
    floats = dataclasses_replace(layer, accumulators=accumulators("delay", "float"))
    rows = frame(floats, [("JFK", "UA", 0, 1, 1, 0.5, 0.5, 0.5, 0.0, 9)])
    (record,) = feed_records(floats, 1, 3, rows)
    schema = pl.read_ipc_stream(record.value).schema
    assert schema["sum_delay"] == schema["max_delay"] == pl.Float64()
