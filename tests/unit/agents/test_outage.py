"""Outages: one line when something goes, one when it is back, whoever reports."""

from __future__ import annotations

import pytest

from agents.outage import FORGET_S, GRACE_S, Outage
from tables.model.errors import ArchiveAwayError, ArchiveError, ArchiveRefusedError
from tests.support.clock import Clock


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
    """A caller that tries again late must not make it look well meanwhile."""
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


def test_one_that_refuses_is_not_said_to_be_silent(
    outage: Outage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A refusal, which somebody must mend, comes before an outage, in the log and in words."""
    for _ in range(3):
        outage.failed(ArchiveRefusedError("no MODIFY on a table"), "write hour")
        outage.failed(ArchiveAwayError("no quorum"), "write day")
        outage.answered("ask")
        clock.now_s += GRACE_S
    assert outage.words == ("refuses", "no MODIFY on a table")
    assert caplog.messages == ["the archive refuses; cells wait: no MODIFY on a table"]
    outage.answered("write hour")
    assert outage.words == ("does not answer", "no quorum")
    outage.answered("write day")
    assert not outage.is_away


def test_an_attempt_reports_how_it_ends(outage: Outage, clock: Clock) -> None:
    """Each kind of attempt counts apart; an abandoned kind is not a reason."""
    with pytest.raises(ArchiveError), outage.attempt("write hour"):
        raise ArchiveError("no quorum")
    with outage.attempt("write day"):
        pass
    clock.now_s += GRACE_S
    assert (outage.is_away, outage.failures) == (True, 1)
    outage.abandoned("write hour")
    assert not outage.is_away


def test_what_is_seldom_attempted_is_away_since_it_failed(outage: Outage, clock: Clock) -> None:
    """The outage does not begin at an answer of hours ago."""
    outage.answered("write hour")
    clock.now_s += 3_600
    outage.failed("no quorum", "write hour")
    clock.now_s += 5
    assert outage.away_s == 5
