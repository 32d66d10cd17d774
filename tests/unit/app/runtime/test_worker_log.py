"""The lines of a worker's log: their form, and those of libraries that are left out."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.runtime.worker_log import begin_log


@pytest.fixture(autouse=True)
def _root_as_before() -> Iterator[None]:
    """Give the root logger back its handlers and its level."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for one in set(root.handlers) - set(handlers):
        one.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def said(level: int = logging.INFO) -> list[str]:
    """Return lines of the worker and of libraries as a log from ``level`` on has them."""
    written = io.StringIO()
    begin_log(level, written)
    logging.getLogger("app.kafka.transport").info("generation %d: %d partitions assigned", 1, 2)
    logging.getLogger("app.kafka.transport").info("[^--Transport]: Starting...")
    logging.getLogger("mode.services").info("[^WorkerProcess]: Ready")
    logging.getLogger("aiokafka.consumer").info("Updating subscribed topics to: %s", {"a"})
    logging.getLogger("faust.agents").error("[^---Agent: a.ad[.]agent]: Crashed %r", ValueError())
    return [line.partition(" ")[2] for line in written.getvalue().splitlines()]


def test_steps_of_libraries_are_left_out_and_their_errors_stay() -> None:
    """An error of a service names it, without its place in the tree."""
    assert said() == [
        "INFO app.kafka.transport: generation 1: 2 partitions assigned",
        "ERROR faust.agents: Agent: a.ad[.]agent: Crashed ValueError()",
    ]


def test_at_debug_nothing_is_left_out() -> None:
    """Whoever looks for a fault of a library needs them."""
    assert len(said(logging.DEBUG)) == 5
    assert [line.split()[0] for line in said(logging.ERROR)] == ["ERROR"]


def test_a_line_begins_with_its_time_in_utc(tmp_path: Path) -> None:
    """With milliseconds, as RFC 3339; a file has the same lines, and a traceback below them."""
    file = tmp_path / "worker.log"
    begin_log(logging.INFO, str(file))
    logging.getLogger("app.some").error("cannot continue", exc_info=ValueError("no"))
    first, traceback = file.read_text("utf-8").splitlines()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ERROR app.some: cannot continue", first
    )
    assert traceback == "ValueError: no"
