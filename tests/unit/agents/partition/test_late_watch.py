"""When most events come too late, the log says it once, and a metric counts it."""

from __future__ import annotations

import pytest

from agents.partition.late_watch import EVENTS_MIN, SPAN_S, LateWatch
from tables.state.input_plan import plans_of
from tests.support.common import small_map

PLAN = plans_of(small_map())["flights.raw"]
STREAM_TIME_MS = 1_700_000_000_000


class Bench:
    """A watch with a clock that stands."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.watch = LateWatch(lambda: self.now_s)

    def take(self, too_late: int, folded: int, after_s: float = 0.0, partition: int = 0) -> None:
        """Take a delta some time later."""
        self.now_s += after_s
        counts = {"layer.hour.too_late": too_late, "layer.hour.folded": folded}
        self.watch.count(PLAN, partition, counts, STREAM_TIME_MS)


def test_an_episode_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """It goes on as long as most events of a minute are late, and then may begin anew."""
    bench = Bench()
    bench.take(1_000, 2)
    for _ in range(5):
        bench.take(50, 1, SPAN_S / 2)
    assert len(caplog.records) == 1
    assert "most events of layer hour come too late in flights.raw[0]: 1000 of 1002" in caplog.text
    assert "its stream time is 2023-11-14T22:13:20Z" in caplog.text
    bench.take(5, 500, SPAN_S)
    bench.take(0, 1, SPAN_S)
    assert bench.watch.episodes == {"hour": 1}
    bench.take(1_000, 1)
    assert bench.watch.episodes == {"hour": 2}


def test_times_in_seconds_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """They would fold into windows that nobody asks for, without a letter."""
    bench = Bench()
    counts = {"layer.hour.folded": 5}
    for partition, time_ms in ((0, 1_709_251_200), (1, 1_709_251_300), (0, 1_709_251_400)):
        bench.watch.count(PLAN, partition, counts, time_ms)
    assert [record.message.partition(";")[0] for record in caplog.records] == [
        "the events of flights.raw[0] are of 1970-01-20T18:47:31.200000Z"
    ]
    assert "are these seconds" in caplog.text
    (warning,) = bench.watch.warnings()
    assert warning == caplog.records[0].message


def test_times_that_are_out_of_range_are_told_while_they_come(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Milliseconds that are read as seconds are refused; the warning goes when they are right."""
    bench = Bench()
    wrong = {"malformed.out_of_range": 4, "events.decoded": 4}
    for _ in range(5):
        bench.watch.count(PLAN, 0, wrong, STREAM_TIME_MS)
    assert [record.message.partition(";")[0] for record in caplog.records] == [
        "most events of flights.raw[0] are refused as out_of_range: 12 of 12 within a minute"
    ]
    assert "20 of 20 within" in bench.watch.warnings()[0]
    bench.watch.count(PLAN, 0, {"events.decoded": 21}, STREAM_TIME_MS)
    assert bench.watch.warnings() == []
    assert bench.watch.episodes == {}


@pytest.mark.parametrize(("too_late", "folded"), [(EVENTS_MIN - 1, 0), (500, 500), (3, 97)])
def test_some_late_events_are_no_episode(too_late: int, folded: int) -> None:
    """Nor is a handful of which most are late."""
    bench = Bench()
    bench.take(too_late, folded)
    assert bench.watch.episodes == {}


def test_partitions_are_watched_apart_and_forgotten() -> None:
    """Each has a time of its own; the episode of a partition that moved away is forgotten."""
    bench = Bench()
    bench.take(100, 0, partition=0)
    bench.take(0, 1_000, partition=1)
    bench.take(100, 0, partition=0)
    assert bench.watch.episodes == {"hour": 1}
    bench.watch.forget("flights.raw", 0)
    bench.take(100, 0, partition=0)
    assert bench.watch.episodes == {"hour": 2}
