"""The pace of a lane: no wait while quiet, gathering while busy, chunks of a bounded time."""

import asyncio

import pytest

from app.kafka.lane import Lane
from app.kafka.pace import BUSY_FROM, CHUNK_BYTES_MIN, CYCLE_SECONDS, Pace
from tables.record.chunk import Chunk, Run
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
    """Most of its time is the fixed cost of a cycle."""
    pace = Pace(0.0, 8 * MIB)
    pace.done(100, 1.0)
    assert pace.chunk_bytes == 8 * MIB


def test_a_chunk_can_be_smaller_than_the_least_where_a_setting_says_so() -> None:
    """The setting is a bound at any speed."""
    pace = Pace(0.0, 1_000)
    pace.done(MIB, 100.0)
    assert pace.chunk_bytes == 1_000
    assert pace.wait_seconds(1_000) == 0


RAW_0, RAW_1 = ("flights.raw", 0), ("flights.raw", 1)
ROOM = (8 * MIB, 1_000)
"""Most bytes and records of a chunk."""


class Agent:
    """A lane whose agent has started, with its channel and a clock."""

    def __init__(self, pace: Pace | None = None) -> None:
        self.now = 0.0
        self.channel: asyncio.Queue[Chunk] = asyncio.Queue(1)
        self.done: list[Chunk | None] = []
        self.is_admitting = True
        self.lane = Lane(
            "ingest",
            frozenset({"flights.raw"}),
            self.channel.put,
            self.done.append,
            admits=lambda: self.is_admitting,
            pace=pace,
            clock=lambda: self.now,
        )
        self.lane.attach()

    async def cycle(self, *runs: Run, seconds: float = 1.0) -> Chunk:
        """Take a chunk of these runs from fetch to the end of its work."""
        self.lane.take_in(runs)
        chunk = self.lane.next_chunk(1)
        assert chunk is not None
        await self.lane.offer(chunk)
        assert not self.lane.is_idle
        await self.lane.handle(await self.channel.get(), lambda _: self._work(seconds))
        return chunk

    async def _work(self, seconds: float) -> None:
        assert not self.lane.is_idle
        self.now += seconds


async def test_what_is_taken_in_is_one_run_a_partition() -> None:
    """Runs of one partition are joined in order; sizes and next offsets are kept."""
    agent = Agent()
    lane = agent.lane
    positions = {RAW_0: 4, RAW_1: 0, ("flights.layer", 0): 7}
    assert lane.next_offsets(positions) == {RAW_0: 4, RAW_1: 0}
    assert lane.room(*ROOM) == ROOM
    assert lane.due_in() is None
    lane.take_in([run_of([flight(1), 5], first_offset=4), run_of([flight(2)], partition=1)])
    broken = run_of([flight(3)], first_offset=8)
    broken.first_offset = 6
    broken.headers[0] = (("a", b"b"),)
    lane.take_in([broken])
    assert lane.next_offsets(positions) == {RAW_0: 9, RAW_1: 1}
    assert lane.room(*ROOM) == (8 * MIB - 3 * len(flight(1)), 1_000 - 4)
    chunk = await agent.cycle()
    first, second = chunk.runs
    assert (first.first_offset, first.next_offset) == (4, 9)
    assert list(first.offsets) == [4, 5, 8]
    assert first.values == [flight(1), None, flight(3)]
    assert set(first.headers) == {1, 2}
    assert first.size == 2 * len(flight(1))
    assert second.values == [flight(2)]
    assert agent.done == [None, chunk]
    assert lane.is_idle
    assert lane.room(*ROOM) == ROOM
    assert lane.due_in() is None
    assert lane.handled_seconds == 1.0


def test_the_room_of_a_chunk_is_what_pace_and_limit_allow() -> None:
    """The smaller of the two counts, less the bytes that are there already."""
    lane = Agent(Pace(0.0, 1_000)).lane
    lane.take_in([run_of([b"x" * 600])])
    assert lane.room(8 * MIB, 1) == (400, 0)
    assert lane.room(700, 2) == (100, 1)


def test_what_is_fetched_again_is_dropped() -> None:
    """One partition goes, the others stay."""
    lane = Agent().lane
    lane.take_in([run_of([flight(1)]), run_of([flight(2), flight(3)], partition=1)])
    lane.refetch(RAW_1)
    lane.refetch(("flights.raw", 7))
    assert lane.room(*ROOM) == (8 * MIB - len(flight(1)), 999)
    assert lane.next_offsets({RAW_0: 0, RAW_1: 0}) == {RAW_0: 1, RAW_1: 0}


async def test_a_chunk_in_the_channel_stays_whole_unless_a_partition_is_forgotten() -> None:
    """A refetch drops only records outside chunks; forgetting drops those in chunks too."""
    agent = Agent()
    lane = agent.lane
    runs = [run_of([flight(1)], partition=number) for number in (0, 1)]
    await lane.offer(chunk := Chunk(1, list(runs)))
    lane.take_in([run_of([flight(2)], partition=1, first_offset=1)])
    lane.refetch(RAW_1)
    assert lane.next_offsets({RAW_1: 1}) == {RAW_1: 1}
    assert chunk.runs == runs
    lane.take_in([run_of([flight(2)], partition=1, first_offset=1)])
    lane.forget(RAW_1)
    assert lane.next_offsets({RAW_1: 1}) == {RAW_1: 1}
    assert chunk.runs == runs[:1]


async def test_a_lane_tells_when_its_next_chunk_is_due() -> None:
    """The due time counts from the last cycle's end; a chunk is given while more is admitted."""
    pace = Pace(0.0)
    agent = Agent(pace)
    lane = agent.lane
    await agent.cycle(run_of([flight(1)]))
    pace.gather_seconds = 60.0
    lane.take_in([run_of([b"x"])])
    agent.now += 10.0
    assert lane.due_in() == 50.0
    lane.take_in([run_of([b"x" * MIB])])
    assert lane.due_in() == -10.0
    agent.is_admitting = False
    assert lane.next_chunk(1) is None
    assert lane.due_in() == -10.0
    lane.forget_all()
    assert lane.due_in() is None
