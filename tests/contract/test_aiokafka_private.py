"""The private names of aiokafka in use, and the drain over batches that aiokafka itself built."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Iterator
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import aiokafka
import pytest
from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection, AIOKafkaProtocol
from aiokafka.consumer import fetcher as aiokafka_fetcher
from aiokafka.consumer.fetcher import Fetcher, FetchError, FetchResult, PartitionRecords
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import Assignment, SubscriptionState
from aiokafka.errors import CorruptRecordException, TopicAuthorizationFailedError
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from app.kafka.aiokafka_private import Fetched, UnreadableError
from app.kafka.record_batches import Batches
from tables.record.chunk import Run

TP = TopicPartition("t", 0)
MANY = 1_000_000
Record = tuple[int, bytes | None, list[tuple[str, bytes]]]


def batch(base: int, records: list[Record], codec: int = 0) -> bytes:
    """Return a record batch from offset ``base``; records are (offset, value, headers)."""
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=codec, is_transactional=0, producer_id=-1, producer_epoch=-1,
        base_sequence=-1, batch_size=MANY,
    )  # fmt: skip
    for offset, value, headers in records:
        appended = builder.append(
            offset - base, timestamp=1_000 + offset, key=None, value=value, headers=headers
        )
        assert appended is not None
    raw = bytearray(builder.build())
    # The builder counts from zero; the broker writes the base offset, which no checksum covers.
    raw[:8] = base.to_bytes(8)
    return bytes(raw)


def plain(first: int, stop: int) -> bytes:
    """Return a batch of records whose values are their offsets."""
    return batch(first, [(offset, b"%d" % offset, []) for offset in range(first, stop)])


class Bench:
    """aiokafka's own fetcher state around the drain, without a connection."""

    def __init__(self) -> None:
        self.assignment = Assignment([TP])
        self.assignment.state_value(TP).seek(0)
        self.notified = 0
        fetcher = SimpleNamespace(
            _records={}, _wait_consume_future=None, _notify=self._notify,
        )  # fmt: skip
        self.fetcher: Any = fetcher
        self.fetched = Fetched(SimpleNamespace(_fetcher=fetcher))
        self.strayed: list[tuple[str, int]] = []

    def _notify(self, future: object) -> None:
        del future
        self.notified += 1

    def fetch(self, *batches: bytes, at: int = 0) -> None:
        """Put a fetched answer into the place that aiokafka uses."""
        records = PartitionRecords(
            TP, aiokafka_fetcher.MemoryRecords(b"".join(batches)), [], at, None, None, True, 1
        )
        self.fetcher._records[TP] = FetchResult(
            TP, partition_records=records, assignment=self.assignment, backoff=0
        )

    def drain(self, position: int = 0, size: int = MANY, records: int = MANY) -> list[Run]:
        """Drain as the transport does."""
        return self.fetched.drain(
            {("t", 0): position}, size, records, lambda *tp: self.strayed.append(tp)
        )


@pytest.fixture
async def bench() -> Bench:
    """Give a bench; aiokafka makes futures, so a loop must run."""
    return Bench()


async def test_runs_hold_values_offsets_times_and_headers(bench: Bench) -> None:
    """A record without value, a heartbeat, keeps its place and its headers."""
    heartbeat = [("treasure-map-time", b"5")]
    bench.fetch(batch(0, [(0, b"a", []), (1, None, heartbeat), (2, b"", [])]), plain(3, 5))
    (run,) = bench.drain()
    assert run == Run(
        "t", 0, 0, 5, range(5), [b"a", None, b"", b"3", b"4"], [1000, 1001, 1002, 1003, 1004],
        {1: (("treasure-map-time", b"5"),)},
    )  # fmt: skip
    assert bench.assignment.state_value(TP).position == 5
    assert TP not in bench.fetcher._records
    assert bench.notified == 1


async def test_gaps_inside_and_behind_a_batch_are_kept_in_the_offsets(bench: Bench) -> None:
    """Compaction leaves holes; the next offset is the batch's, not the last record's plus one."""
    bench.fetch(batch(0, [(0, b"a", []), (3, b"b", [])]), plain(7, 9))
    (run,) = bench.drain()
    assert list(run.offsets) == [0, 3, 7, 8]
    assert (run.first_offset, run.next_offset) == (0, 9)


async def test_a_position_inside_a_batch_skips_what_came_before(bench: Bench) -> None:
    """The broker answers with whole batches."""
    bench.assignment.state_value(TP).seek(4)
    bench.fetch(plain(0, 6), at=4)
    (run,) = bench.drain(position=4)
    assert (run.values, run.first_offset, run.next_offset) == ([b"4", b"5"], 4, 6)


@pytest.mark.parametrize(("size", "records"), [(MANY, 1), (MANY, 3), (1, MANY), (7, MANY)])
async def test_bounded_drains_add_up_to_the_whole(bench: Bench, size: int, records: int) -> None:
    """The next drain gets the records that a bound left, once and in order."""
    bench.fetch(plain(0, 10), plain(10, 25), plain(25, 26))
    position, values = 0, []
    while TP in bench.fetcher._records:
        (run,) = bench.drain(position, size, records)
        assert run.first_offset == position
        assert 0 < len(run.values) <= records
        assert len(run.values) == 1 or sum(map(len, run.values)) <= size  # type: ignore[arg-type]
        position = run.next_offset
        values += run.values
        assert bench.assignment.state_value(TP).position == position
    assert values == [b"%d" % offset for offset in range(26)]


async def test_a_seek_between_bounded_drains_forgets_the_rest(bench: Bench) -> None:
    """The rest of a half-read batch must not follow a position it does not belong to."""
    bench.fetch(plain(0, 10))
    bench.drain(records=4)
    bench.assignment.state_value(TP).seek(2)
    assert bench.drain(position=2) == []
    bench.fetch(plain(0, 10), at=2)
    (run,) = bench.drain(position=2)
    assert run.values == [b"%d" % offset for offset in range(2, 10)]


async def test_a_partition_that_is_not_wanted_stays_untouched(bench: Bench) -> None:
    """A partition in restore keeps its fetched records until it is sought."""
    bench.fetch(plain(0, 2))
    assert bench.fetched.drain({}, MANY, MANY, lambda *_: None) == []
    assert TP in bench.fetcher._records


@pytest.mark.parametrize("change", ["pause", "seek", "unassign"])
async def test_a_stale_result_is_removed_so_that_its_partition_goes_on(
    bench: Bench, change: str
) -> None:
    """Left in place it would stop the fetcher from ever asking for the partition again."""
    bench.fetch(plain(0, 2))
    state = bench.assignment.state_value(TP)
    {"pause": state.pause, "seek": lambda: state.seek(1), "unassign": bench.assignment._unassign}[
        change
    ]()
    assert bench.drain() == []
    assert TP not in bench.fetcher._records
    assert bench.notified == 1


async def test_a_partition_elsewhere_than_its_owner_is_reported(bench: Bench) -> None:
    """The first offset must be the one the owner wants."""
    bench.fetch(plain(0, 2))
    assert bench.drain(position=7) == []
    assert bench.strayed == [("t", 0)]
    assert TP not in bench.fetcher._records


async def test_an_error_of_the_broker_is_removed_and_raised(bench: Bench) -> None:
    """The error goes as in aiokafka, so that a retry can ask again."""
    bench.fetcher._records[TP] = FetchError(error=TopicAuthorizationFailedError("t"), backoff=0)
    with pytest.raises(UnreadableError, match="TopicAuthorizationFailed") as raised:
        bench.drain()
    assert isinstance(raised.value.__cause__, TopicAuthorizationFailedError)
    assert TP not in bench.fetcher._records


@pytest.mark.parametrize("codec", [0, 3, 4], ids=["plain", "lz4", "zstd"])
async def test_a_flipped_bit_anywhere_in_a_batch_is_refused(bench: Bench, codec: int) -> None:
    """Checksums are checked, compressed or not; nothing of the batch is taken."""
    good = batch(0, [(offset, b"value %d" % offset, []) for offset in range(20)], codec)
    # Everything from the attributes on is covered by the batch's CRC-32C, which stands at 17.
    for at in (17, 21, 22, 40, 61, len(good) // 2, len(good) - 1):
        damaged = bytearray(good)
        damaged[at] ^= 0x10
        bench.assignment.state_value(TP).seek(0)
        bench.fetch(bytes(damaged))
        with pytest.raises(UnreadableError) as raised:
            bench.drain()
        assert isinstance(raised.value.__cause__, CorruptRecordException), f"bit at byte {at}"
        assert bench.assignment.state_value(TP).position == 0
    bench.fetch(good)
    assert len(bench.drain()[0].values) == 20


async def test_control_batches_give_a_run_without_records(bench: Bench) -> None:
    """A transaction's marker takes an offset that the owner must pass."""
    control = bytearray(plain(0, 1))
    control[21:23] = (0x30).to_bytes(2)
    bench.fetch(bytes(control))
    bench.fetcher._records[TP]._partition_records._check_crcs = False
    bench.fetcher._records[TP]._partition_records._isolation_level = 0
    (run,) = bench.drain()
    assert (run.values, run.first_offset, run.next_offset) == ([], 0, 1)


async def test_a_record_that_cannot_be_read_is_a_fault_of_the_run(bench: Bench) -> None:
    """The others are read; a bounded drain keeps the fault with its record."""
    named = [("ZZZZ", b"x")]
    raw = bytearray(batch(0, [(0, b"a", []), (1, b"b", named), (2, b"c", [])]))
    at = raw.index(b"ZZZZ")
    raw[at : at + 4] = b"Gr\xfcn"
    raw[17:21] = calc_crc32c(bytes(raw[21:])).to_bytes(4)
    bench.fetch(bytes(raw), plain(3, 4))
    (first,) = bench.drain(records=1)
    (second,) = bench.drain(position=1)
    assert (first.values, first.faults) == ([b"a"], {})
    assert second.values == [b"b", b"c", b"3"]
    assert {i: fault.reason for i, fault in second.faults.items()} == {0: "header"}


async def test_a_batch_that_ends_before_the_position_is_refused(bench: Bench) -> None:
    """No broker answers so; the position would fall back for ever."""
    bench.assignment.state_value(TP).seek(5)
    bench.fetch(plain(0, 3), at=5)
    with pytest.raises(UnreadableError):
        bench.drain(position=5)


def test_all_consumers_read_batches_in_our_way() -> None:
    """The fetcher makes them by this name, with the bytes of an answer."""
    assert aiokafka_fetcher.MemoryRecords is Batches
    source = inspect.getsource(Fetcher._proc_fetch_request)
    assert set(re.findall(r"\brecords\.(\w+)", source)) == {"has_next", "size_in_bytes"}
    assert "MemoryRecords(part_data[-1])" in source
    source = inspect.getsource(PartitionRecords)
    assert set(re.findall(r"\brecords\.(\w+)", source)) == {"has_next", "next_batch"}


def sources() -> Iterator[tuple[str, object, list[str]]]:
    """Yield the private names in use, by the object of aiokafka that has them."""
    yield "consumer", aiokafka.AIOKafkaConsumer, [
        "_fetcher", "_coordinator", "_subscription", "_client", "_closed",
    ]  # fmt: skip
    yield "fetcher", Fetcher, [
        "_records", "_wait_consume_future", "_notify", "_create_fetch_waiter", "error_future",
    ]  # fmt: skip
    yield "result", FetchResult, [
        "_partition_records", "check_assignment", "has_more", "_update_position",
    ]  # fmt: skip
    yield "error", FetchError, ["_error"]
    yield "records", PartitionRecords, [
        "_consumer_record", "_records", "next_fetch_offset", "_check_crcs", "_isolation_level",
        "_consume_aborted_up_to", "_contains_abort_marker", "_aborted_producers",
    ]  # fmt: skip
    yield "coordinator", GroupCoordinator, [
        "generation", "check_errors", "_coordination_task", "_heartbeat_task", "maybe_leave_group",
        "member_id", "_perform_assignment", "_on_join_complete", "_send_req",
    ]  # fmt: skip
    yield "subscription", SubscriptionState, ["reassignment_in_progress", "fetch_context"]
    yield "client", AIOKafkaClient, [
        "close", "_sync_task", "_conns", "_client_id", "force_metadata_update",
    ]  # fmt: skip
    yield "connection", AIOKafkaConnection, [
        "_writer", "_versions", "_requests", "_next_correlation_id", "close",
    ]  # fmt: skip
    yield "protocol", AIOKafkaProtocol, ["connection_lost", "_get_close_waiter"]
    yield "batch", DefaultRecordBatch, [
        "validate_crc", "is_control_batch", "is_transactional", "producer_id", "base_offset",
        "next_offset", "timestamp_type", "first_timestamp", "max_timestamp",
    ]  # fmt: skip


@pytest.mark.parametrize(("owner", "names"), [pytest.param(o, n, id=i) for i, o, n in sources()])
def test_the_private_names_are_still_there(owner: type, names: list[str]) -> None:
    """An upgrade that renames one must change ``aiokafka_private.py``, or a file beside it."""
    try:
        source = inspect.getsource(owner)
    except (TypeError, OSError):
        source = ""
    missing = [
        name for name in names if not hasattr(owner, name) and f"self.{name} = " not in source
    ]
    assert missing == []


def test_aiokafka_is_the_pinned_version() -> None:
    """Reading its private state was checked against this version; look again at another."""
    assert metadata.version("aiokafka") == "0.14.0"
    assert (aiokafka_fetcher.READ_UNCOMMITTED, aiokafka_fetcher.READ_COMMITTED) == (0, 1)


def test_a_connection_asks_of_a_request_what_an_append_gives_it() -> None:
    """The first one's number, how its answer's header is read, and the type of the rest."""
    source = inspect.getsource(AIOKafkaConnection._handle_frame)
    assert "correlation_id, request, fut = self._requests[0]" in source
    asked = set(re.findall(r"\brequest\.(\w+)", source))
    assert asked == {"parse_response_header", "RESPONSE_TYPE"}
    assert "resp_type.decode(resp)" in source


def test_waiters_and_results_keep_the_order_that_the_drain_copies() -> None:
    """fetched_records() removes an error before it raises, and a result when nothing is left."""
    source = inspect.getsource(Fetcher.fetched_records)
    assert source.count("del self._records[tp]") == 3
    assert source.count("self._notify(self._wait_consume_future)") == 2
    assert asyncio.iscoroutinefunction(Fetcher.fetched_records)
