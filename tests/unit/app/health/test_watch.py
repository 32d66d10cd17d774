"""The watch: partitions that stand while their log grows, and dependencies that do not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, cast

import pytest
from aiokafka.errors import KafkaConnectionError

from agents.outage import GRACE_S, Outage
from app.health import readiness, watch
from app.health.backpressure import Pressure
from app.health.watch import Progress, Question, Watch, ask_kafka
from app.host.floods import FloodFilter
from app.kafka.assignor import GroupMap
from app.kafka.statistics import Statistics
from app.kafka.transport import NO_GENERATION, Transport
from tables.archive.protocol import Archive
from tests.support.clock import Clock
from tests.support.common import small_map
from tests.support.waiting import until

T0, T1 = ("t", 0), ("t", 1)
STUCK_S = 60.0
FIRST_FETCH = "waiting for the first fetch of some partitions"


@pytest.fixture
def clock() -> Clock:
    """Begin at some time."""
    return Clock()


class Scene:
    """Progress with its calls, over positions and ends that a test sets."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.claims: list[tuple[str, int, str]] = []
        self.progress = Progress(STUCK_S, lambda *claim: self.claims.append(claim), clock)
        self.positions: dict[tuple[str, int], int] = {T0: 3, T1: 3}
        self.ends: dict[tuple[str, int], int] = {T0: 3, T1: 3}
        self.restoring: set[tuple[str, int]] = set()
        self.paused = False
        self.error: Exception | None = None
        self.ask = ask_kafka(
            self.progress,
            lambda: self.positions,
            lambda: self.restoring,
            self._ends,
            lambda _: self.paused,
        )

    async def _ends(self, asked: Iterable[tuple[str, int]]) -> Mapping[tuple[str, int], int]:
        if self.error is not None:
            raise self.error
        return {tp: self.ends[tp] for tp in asked}

    async def pass_s(self, seconds: float) -> None:
        """Ask as often as the watch does while time passes."""
        for _ in range(int(seconds / watch.LOOK_S)):
            self.clock.now_s += watch.LOOK_S
            await self.ask()


@pytest.fixture
def scene(clock: Clock) -> Scene:
    """Begin with two partitions that are read to the end."""
    return Scene(clock)


async def test_a_partition_that_stands_while_its_log_goes_on_is_claimed_again(scene: Scene) -> None:
    """The claim comes after the set time, and again, until it moves; the other is let be."""
    await scene.pass_s(600)
    assert not scene.claims
    scene.ends[T0] = 56
    await scene.pass_s(STUCK_S)
    assert not scene.claims
    await scene.pass_s(watch.LOOK_S)
    words = "stands at offset 3 for 60 s while its log grows to 56"
    assert scene.claims == [("t", 0, f"it {words}")]
    assert scene.progress.stuck() == {T0: words}
    assert list(scene.progress.reasons()) == [f"t[0] {words}"]
    del scene.positions[T0]
    scene.restoring.add(T0)
    await scene.pass_s(4)
    assert list(scene.progress.stuck()) == [T0]
    scene.positions[T0] = 3
    scene.restoring.clear()
    await scene.pass_s(STUCK_S)
    assert scene.progress.stuck_total == len(scene.claims) == 2
    scene.positions[T0] = 4
    await scene.pass_s(watch.LOOK_S)
    assert not scene.progress.stuck()


async def test_what_moves_slowly_is_not_stuck(scene: Scene) -> None:
    """It may be ever so far behind."""
    scene.ends[T0] = 1_000_000
    for _ in range(10):
        await scene.pass_s(STUCK_S - watch.LOOK_S)
        scene.positions[T0] += 1
    assert not scene.claims


@pytest.mark.parametrize("why", ["paused", "away"])
async def test_what_cannot_move_is_not_stuck(scene: Scene, why: str) -> None:
    """Paused input, and brokers that are away, are told by themselves; then time runs anew."""
    scene.ends[T0] = 56
    await scene.pass_s(STUCK_S - 2 * watch.LOOK_S)
    scene.paused = why == "paused"
    scene.error = KafkaConnectionError("nobody") if why == "away" else None
    for _ in range(60):
        try:
            await scene.pass_s(watch.LOOK_S)
        except KafkaConnectionError:
            assert why == "away"
    scene.paused, scene.error = False, None
    await scene.pass_s(STUCK_S)
    assert not scene.claims
    await scene.pass_s(watch.LOOK_S)
    assert len(scene.claims) == 1


async def test_a_partition_that_moves_to_another_worker_is_forgotten(scene: Scene) -> None:
    """Its new owner is watched there."""
    scene.ends[T0] = 56
    await scene.pass_s(STUCK_S + watch.LOOK_S)
    assert scene.progress.stuck()
    del scene.positions[T0]
    await scene.pass_s(watch.LOOK_S)
    assert not scene.progress.stuck()


def holds(condition: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    """Return a condition that can be waited for."""

    async def held() -> bool:
        return condition()

    return held


async def test_a_dependency_that_hangs_is_away_until_it_answers(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """A missing answer is a failure; an error that no dependency raises stops the worker."""
    monkeypatch.setattr(watch, "LOOK_S", 0.01)
    monkeypatch.setattr(watch, "ANSWER_S_MAX", 0.02)
    hangs, bug = asyncio.Event(), False

    async def ask() -> None:
        await hangs.wait()
        if bug:
            raise ValueError("a bug")

    outage = Outage("Kafka", "all waits", clock)
    failures: list[BaseException] = []
    progress = Progress(STUCK_S, lambda *_: None, clock)
    watching = Watch(progress, [Question(ask, outage)], FloodFilter(), failures.append)
    await watching.start()
    try:
        await until(holds(lambda: outage.failures > 0))
        clock.now_s += GRACE_S
        assert outage.is_away
        assert "no answer within 0.02 s" in outage.error
        hangs.set()
        await until(holds(lambda: not outage.is_away))
        bug = True
        await until(holds(lambda: bool(failures)))
    finally:
        await watching.stop()
    assert str(failures[0]) == "a bug"


class Moment:
    """The state of a transport at one moment."""

    def __init__(self, lags: dict[tuple[str, int], int | None], **counts: int) -> None:
        self.lags = lags
        self.counts = counts
        self.lost: list[tuple[str, int]] = []
        self.group = GroupMap()

    def statistics(self) -> Statistics:
        """Return the counts."""
        return Statistics(**self.counts)

    def lag_records(self) -> dict[tuple[str, int], int | None]:
        """Return the lags."""
        return self.lags

    def unserved(self) -> list[tuple[str, int]]:
        """Return the partitions that are neither read nor restored."""
        return self.lost


def reasons_at(moment: Moment, *more: readiness.Source) -> list[str]:
    """Return why a worker is not ready then."""
    transport = cast("Transport", moment)
    reading = partial(readiness.reading, transport, 100)
    sources: list[readiness.Source] = [partial(readiness.joining, transport), *more, reading]
    return [sentence for source in sources for sentence in source()]


@pytest.mark.parametrize(
    ("moment", "reasons"),
    [
        (Moment({}, generation=NO_GENERATION), ["joining the group"]),
        (Moment({}, generation=1, restoring=3), ["restoring 3 partitions"]),
        (
            Moment({T0: 0, T1: None}, generation=1),
            ["waiting for the first fetch of some partitions"],
        ),
        (Moment({T0: 60, T1: 41}, generation=1), ["101 records behind"]),
        (Moment({T0: 60, T1: 40}, generation=1), []),
        (Moment({}, generation=1), []),
        (
            Moment({T0: 101}, generation=NO_GENERATION, restoring=1),
            ["joining the group", "restoring 1 partitions", "101 records behind"],
        ),
    ],
)
def test_readiness_names_what_is_waited_for(moment: Moment, reasons: list[str]) -> None:
    """A worker without partitions is ready too: it is there to take over."""
    assert reasons_at(moment) == reasons


def test_readiness_names_partitions_that_nobody_reads() -> None:
    """Assigned here and forgotten, or owned by no worker of the group."""
    moment = Moment({}, generation=1)
    moment.lost = [("t", number) for number in range(5)]
    (sentence,) = reasons_at(moment)
    assert sentence == "t[0], t[1], t[2] and 2 more are assigned, and neither read nor restored"
    themap = small_map()
    every = [(topic, p) for topic, count in themap.inputs().items() for p in range(count)]
    moment = Moment({}, generation=1)
    moment.group.urls = dict.fromkeys(every, "http://one")
    source = partial(readiness.unowned, themap, cast("Transport", moment))
    assert reasons_at(moment, source) == []
    del moment.group.urls["flights.raw", 1]
    assert reasons_at(moment, source) == ["no worker of the group owns flights.raw[1]"]
    moment.counts["generation"] = NO_GENERATION
    assert reasons_at(moment, source) == ["joining the group"]


def test_readiness_says_since_when_something_is_away_and_what_is_paused(clock: Clock) -> None:
    """Readiness gives the time of the wall, to compare with logs."""
    outage = Outage("Kafka", "all waits", clock)
    outage.answered()
    clock.now_s += 7
    outage.failed("refused")
    clock.now_s += 5
    away = readiness.away(outage, lambda: 1_000_012.0)
    assert list(away) == ["Kafka does not answer since 1970-01-12T13:46:40Z (12 s): refused"]
    pressure = Pressure(1, 0, [], lambda: 2)
    pressure.sources.measure(2, 1, cast("Any", "/"))
    (sentence,) = readiness.paused(pressure)
    assert sentence.startswith("sources are paused: 0.0 MiB of cells wait")


def test_readiness_says_that_the_archive_is_not_open(clock: Clock) -> None:
    """It says so until the first opening, or its outage says so."""

    class Opened:
        is_open = False

    archive, outage = Opened(), Outage("the archive", "cells wait", clock)
    source = partial(readiness.closed, cast("Archive", archive), outage)
    assert list(source()) == ["the archive does not answer"]
    outage.failed("refused")
    clock.now_s += GRACE_S
    assert list(source()) == []
    outage.answered()
    archive.is_open = True
    assert list(source()) == []
