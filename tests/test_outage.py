"""Outages: one line when something goes, one when it is back, whoever reports."""

from __future__ import annotations

import pytest

from agents.outage import FORGET_S, GRACE_S, Outage


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """Begin at some time."""
    return Clock()


@pytest.fixture
def outage(clock: Clock) -> Outage:
    """Begin with something of which nothing is known."""
    return Outage("the archive", "cells wait", clock)


def test_a_failure_is_no_outage_before_its_time(outage: Outage, clock: Clock) -> None:
    """One failed request among answered ones is counted, and nothing else."""
    for _ in range(5):
        outage.failed("reset")
        clock.now_s += GRACE_S / 2
        assert not outage.is_away
        outage.answered()
    assert (outage.failures, outage.outages) == (5, 0)


def test_it_is_told_once_when_it_goes_and_once_when_it_is_back(
    outage: Outage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Hundreds of failures are a number; the time runs from the last answer."""
    outage.answered()
    clock.now_s += 4
    for _ in range(300):
        outage.failed("nobody answers")
        clock.now_s += 0.1
    assert outage.away_s == pytest.approx(34)
    outage.answered()
    assert (outage.is_away, outage.away_s) == (False, 0)
    assert [record.getMessage() for record in caplog.records] == [
        "the archive does not answer; cells wait: nobody answers",
        "the archive answers again after 34 s; 300 attempts failed",
    ]
    outage.answered()
    assert len(caplog.records) == 2


def test_without_a_further_failure_it_is_away_all_the_same(outage: Outage, clock: Clock) -> None:
    """Who tries again late must not make it look well meanwhile."""
    outage.failed(TimeoutError())
    clock.now_s += GRACE_S
    assert outage.is_away
    assert outage.error == "TimeoutError()"


def test_answers_of_one_kind_do_not_hide_that_others_fail(
    outage: Outage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Reads that are answered while writes are not: one outage, without a flicker."""
    for _ in range(20):
        outage.failed("no quorum", "write")
        outage.answered("read")
        clock.now_s += 1
    assert outage.is_away
    outage.answered("write")
    assert not outage.is_away
    assert len(caplog.records) == 2


def test_what_nobody_tries_any_more_is_forgotten(outage: Outage, clock: Clock) -> None:
    """Its partition has moved away; the next answer of another kind ends the outage."""
    outage.failed("no quorum", "write")
    clock.now_s += FORGET_S - 1
    assert outage.is_away
    clock.now_s += 1
    assert not outage.is_away
