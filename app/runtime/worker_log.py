"""The log of a worker: ``TIME LEVEL LOGGER: message`` on standard output, times in UTC, no colours.

Faust, mode and aiokafka have their say from warnings on; at debug they say all. The worker itself
says when it starts, is ready and stops.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from typing import IO

from app.runtime.worker_status import WorkerStatus

log = logging.getLogger(__name__)

LIBRARIES = ("aiokafka", "faust", "mode")
"""Libraries that describe each step of their own at info."""

LOOK_S = 0.2
"""The time between two questions whether the worker is ready."""

# mode puts the place of a service in the tree of all services before its messages.
_SERVICE = re.compile(r"^\[\^-*(.*?)\]: ")


class Lines(logging.Formatter):
    """Makes one line of a message, and below it a traceback if it has one."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - as logging has it
        """Return the line of a message; a service of mode is named by its own name."""
        record.message = _SERVICE.sub(r"\1: ", record.message)
        return super().formatMessage(record)


def is_of_interest(record: logging.LogRecord) -> bool:
    """Return whether a line is a warning, or no step of a library."""
    if record.levelno >= logging.WARNING:
        return True
    is_step = record.name.partition(".")[0] in LIBRARIES or _SERVICE.match(str(record.msg))
    return not is_step


def begin_log(level: int, to: str | IO[str]) -> None:
    """Write all lines of this process from a level on to a file or a stream, and nowhere else."""
    handler = logging.FileHandler(to) if isinstance(to, str) else logging.StreamHandler(to)
    handler.setFormatter(Lines())
    if level > logging.DEBUG:
        handler.addFilter(is_of_interest)
    logging.basicConfig(level=level, handlers=[handler], force=True)


def readiness_line(view: WorkerStatus, url: str) -> str:
    """Return the worker's map, address, layers and partitions as one line."""
    themap, serving = view.themap, view.serving()
    inputs = [
        f"{topic} {len(serving.get(topic, ()))} of {count}"
        for topic, count in themap.inputs().items()
    ]
    return (
        f"ready: map {themap.name}, revision {themap.revision}, answers at {url};"
        f" layers {', '.join(layer.name for layer in themap.layers)};"
        f" partitions {', '.join(inputs)}"
    )


async def announce(view: WorkerStatus, url: str) -> None:
    """Log one line when the worker is ready for the first time."""
    while view.unready():  # noqa: ASYNC110 - it is a question, which no event answers
        await asyncio.sleep(LOOK_S)
    log.info("%s", readiness_line(view, url))
