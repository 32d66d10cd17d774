"""The pace of a lane: no wait while quiet, gathering while busy, chunks of a bounded time."""

import asyncio

import pytest

from app.kafka.lane import Arrived, Lane
from app.kafka.pace import BUSY_FROM, CHUNK_BYTES_MIN, CYCLE_SECONDS, Pace
from tables.record.chunk import Chunk
from tests.support.common import flight, run_of

MIB = 1 << 20


class Clocks:
    """Time and CPU time that the test lets pass."""

    def __init__(self) -> None:
        self.now = self.cpu = 0.0
        self.pace = Pace(0.01, 8 * MIB, clock=lambda: self.now, cpu_clock=lambda: self.cpu)

    def cycles(self, share: float, seconds: float = 10.0, handled: int = 100) -> None:
        """Let cycles of 10 ms pass that take a share of them."""
        for _ in range(int(seconds / 0.01)):
            self.now += 0.01
            self.cpu += 0.01 * share
            self.pace.done(handled, 0.01 * share)


def test_a_quiet_lane_does_not_wait() -> None:
    """Up to most of a core, every record is handed over at once."""
    clocks = Clocks()
    assert clocks.pace.wait_seconds(0) == 0
    clocks.cycles(BUSY_FROM)
    assert clocks.pace.busy_share == pytest.approx(BUSY_FROM, rel=0.01)
    assert clocks.pace.wait_seconds(100) == 0


def test_a_busy_lane_gathers_for_longer_and_again_for_less() -> None:
    """The wait follows the share of the last second or so."""
    clocks = Clocks()
    waits = []
    for share in (0.75, 0.8, 0.9, 1.0, 1.4):
        clocks.cycles(share)
        waits.append(clocks.pace.wait_seconds(100))
    assert waits == sorted(waits)
    assert waits[0] == pytest.approx(0.002, rel=0.05)
    assert waits[-1] == waits[-2] == pytest.approx(0.01)
    clocks.cycles(0.3)
    assert clocks.pace.wait_seconds(100) == 0


def test_nothing_waits_behind_a_backlog() -> None:
    """A chunk that is large already gains nothing by growing."""
    clocks = Clocks()
    clocks.cycles(1.0)
    assert clocks.pace.wait_seconds(1) > 0
    assert clocks.pace.wait_seconds(MIB) == 0


def test_a_chunk_is_what_is_handled_in_the_time_of_a_cycle() -> None:
    """Slow records make small chunks, fast ones larger, between the bounds."""
    pace = Pace(0.0, 8 * MIB)
    assert pace.chunk_bytes == 8 * MIB
    for _ in range(50):
        pace.done(MIB, 1.0)
    assert pace.chunk_bytes == CHUNK_BYTES_MIN
    for _ in range(50):
        pace.done(2 * MIB, 0.2)
    assert pace.chunk_bytes == pytest.approx(10 * MIB * CYCLE_SECONDS, rel=0.01)
    for _ in range(50):
        pace.done(8 * MIB, 0.01)
    assert pace.chunk_bytes == 8 * MIB


def test_a_small_chunk_tells_nothing_of_the_speed() -> None:
    """Most of its time is what a cycle costs whatever it holds."""
    pace = Pace(0.0, 8 * MIB)
    pace.done(100, 1.0)
    assert pace.chunk_bytes == 8 * MIB


def test_a_chunk_can_be_smaller_than_the_least_where_a_setting_says_so() -> None:
    """The setting is a bound, whatever the speed."""
    pace = Pace(0.0, 1_000)
    pace.done(MIB, 100.0)
    assert pace.chunk_bytes == 1_000
    assert pace.wait_seconds(1_000) == 0


def test_what_arrives_is_one_run_a_partition() -> None:
    """Runs of one partition are joined in order; sizes and next offsets are kept."""
    arrived = Arrived()
    assert not arrived
    assert arrived.next_offset(("flights.raw", 0), 4) == 4
    arrived.add([run_of([flight(1), 5], first_offset=4), run_of([flight(2)], partition=1)])
    broken = run_of([flight(3)], first_offset=8)
    broken.first_offset = 6
    broken.headers[0] = (("a", b"b"),)
    arrived.add([broken])
    assert arrived.next_offset(("flights.raw", 0), 4) == 9
    assert (arrived.records, arrived.bytes) == (4, 3 * len(flight(1)))
    first, second = arrived.take()
    assert (first.first_offset, first.next_offset) == (4, 9)
    assert list(first.offsets) == [4, 5, 8]
    assert first.values == [flight(1), None, flight(3)]
    assert set(first.headers) == {1, 2}
    assert first.size == 2 * len(flight(1))
    assert second.values == [flight(2)]
    assert not arrived
    assert (arrived.records, arrived.bytes) == (0, 0)


def test_what_is_forgotten_is_fetched_again() -> None:
    """One partition goes, the others stay."""
    arrived = Arrived()
    arrived.add([run_of([flight(1)]), run_of([flight(2), flight(3)], partition=1)])
    arrived.forget(("flights.raw", 1))
    arrived.forget(("flights.raw", 7))
    assert (arrived.records, arrived.bytes) == (1, len(flight(1)))
    assert arrived.next_offset(("flights.raw", 1), 0) == 0


async def test_a_lane_tells_when_its_next_chunk_is_due() -> None:
    """Counted from the end of the last cycle."""
    queue: asyncio.Queue[Chunk] = asyncio.Queue(1)
    pace = Pace(0.0)
    lane = Lane("ingest", frozenset({"flights.raw"}), queue.put, pace=pace)
    lane.attach()
    assert lane.wait_seconds() <= 0
    chunk = Chunk(1, [run_of([flight(1)])])
    lane.queue(chunk)
    await lane.handle(chunk, _nothing)
    pace.gather_seconds = 60.0
    assert 59 < lane.wait_seconds() <= 60
    lane.arrived.add([run_of([b"x" * MIB])])
    assert lane.wait_seconds() <= 0
    lane.forget_queued()
    assert not lane.arrived


async def _nothing(chunk: Chunk) -> None:
    assert chunk.size == len(flight(1))
