"""Floods of the log: the first line, the last, and how many there were."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from app.host.floods import QUIET_S, FloodFilter, tame


class Clock:
    """Seconds that a test moves."""

    now_s = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """Begin at zero."""
    return Clock()


@pytest.fixture
def flooded(clock: Clock) -> Iterator[tuple[logging.Logger, FloodFilter]]:
    """Give a logger with a filter."""
    logger, tamed = logging.getLogger("aiokafka.some"), FloodFilter(clock)
    logger.addFilter(tamed)
    yield logger, tamed
    logger.removeFilter(tamed)


def test_of_lines_that_say_the_same_first_and_last_are_shown(
    flooded: tuple[logging.Logger, FloodFilter], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """The values in them may differ; another message is another flood."""
    logger, tamed = flooded
    for number in range(80):
        logger.error("Unable connect to node with id %s: %s", number, "refused")
        clock.now_s += 0.5
    logger.warning("Topic %s is not available", "t")
    tamed.show_last()
    assert len(caplog.records) == 2
    clock.now_s += QUIET_S
    tamed.show_last()
    tamed.show_last()
    assert [record.getMessage() for record in caplog.records] == [
        "Unable connect to node with id 0: refused",
        "Topic t is not available",
        "Unable connect to node with id 79: refused (the last of 80 such lines in 40 s)",
    ]
    assert tamed.held_total == 79
    logger.error("Unable connect to node with id %s: %s", 1, "refused")
    assert len(caplog.records) == 4


def test_information_is_not_held(
    flooded: tuple[logging.Logger, FloodFilter], caplog: pytest.LogCaptureFixture
) -> None:
    """Only warnings and errors can come in floods."""
    logger, _ = flooded
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            logger.info("joined")
    assert len(caplog.records) == 3


def test_the_libraries_own_loggers_are_filtered() -> None:
    """A filter on a parent would not see the lines of children."""
    child = logging.getLogger("aiokafka.conn")
    tamed = tame()
    assert tamed in child.filters
    for name in list(logging.Logger.manager.loggerDict):
        logging.getLogger(name).removeFilter(tamed)


def test_the_traceback_of_what_is_away_is_one_line(
    flooded: tuple[logging.Logger, FloodFilter], caplog: pytest.LogCaptureFixture
) -> None:
    """A fault in a library keeps its own."""
    logger, _ = flooded
    logger.error("Error connecting to %s:", "a", exc_info=ConnectionResetError("100 %s"))
    logger.error("Error of a call of %s:", "a", exc_info=ValueError("a fault"))
    away, fault = caplog.records
    assert away.getMessage() == "Error connecting to a: ConnectionResetError: 100 %s"
    assert away.exc_info is None
    assert fault.exc_info is not None
