"""Floods of the log: of lines that say the same, the first and the last are kept, others counted.

aiokafka and the Cassandra driver log each attempt to reach a server that is away, many a second.
Their loggers stay as they are. A line is like another if logger, level and message are the same but
for the numbers, addresses and errors put into it. Some of these lines have a traceback, although
their error says enough: that a node is away, or refuses.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable

LIBRARIES = ("aiokafka", "cassandra")
OWN = (
    "agents.partition.idle_heartbeat",
    "app.kafka.offset_commits",
    "app.kafka.transport.coordinator",
)
"""Loggers of ours that say the same of each attempt; see :mod:`agents.outage` for the others."""

QUIET_S = 30.0
"""A line that did not come again for this time was the last of its flood."""

_LAST = "treasure_map_last_of_flood"


@dataclasses.dataclass(slots=True)
class _Flood:
    """Lines that are alike: when it began, when the last came, how many of them were held back."""

    began_s: float
    last_s: float
    held: int = 0
    last: logging.LogRecord | None = None


class FloodFilter(logging.Filter):
    """Lets the first line of a flood pass; :meth:`show_last` lets the last follow.

    Attributes:
        held_total: lines that were held back.
    """

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock_s = clock_s
        self._floods: dict[tuple[str, int, str], _Flood] = {}
        # The Cassandra driver logs from threads of its own.
        self._lock = threading.Lock()
        self.held_total = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line is shown now."""
        if record.levelno < logging.WARNING or hasattr(record, _LAST):
            return True
        key = (record.name, record.levelno, str(record.msg))
        _drop_traceback(record)
        now_s = self._clock_s()
        with self._lock:
            flood = self._floods.get(key)
            if flood is None:
                self._floods[key] = _Flood(now_s, now_s)
                return True
            flood.last_s, flood.last = now_s, record
            flood.held += 1
            self.held_total += 1
        return False

    def show_last(self) -> None:
        """Show the last line of each flood that is over, with the number of those held back."""
        now_s = self._clock_s()
        with self._lock:
            over = {key: f for key, f in self._floods.items() if now_s >= f.last_s + QUIET_S}
            for key in over:
                del self._floods[key]
        for (name, _, _), flood in over.items():
            record = flood.last
            if record is not None:
                record.msg = (
                    f"{record.getMessage()} (the last of {flood.held + 1} such lines in "
                    f"{flood.last_s - flood.began_s:.0f} s)"
                )
                record.args = ()
                setattr(record, _LAST, True)
                logging.getLogger(name).handle(record)


def _drop_traceback(record: logging.LogRecord) -> None:
    """Show the error of a library, or of the network, instead of its traceback."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return
    root = type(error).__module__.partition(".")[0]
    if root in LIBRARIES or isinstance(error, OSError):
        record.msg = f"{record.getMessage().rstrip(':')}: {type(error).__name__}: {error}"
        record.args = ()
        record.exc_info = record.exc_text = None


def tame() -> FloodFilter:
    """Filter repeated lines, also of libraries that have been imported so far."""
    tamed = FloodFilter()
    for name in OWN:
        logging.getLogger(name).addFilter(tamed)
    # A logger's filters do not see the lines of its children.
    for name, logger in list(logging.Logger.manager.loggerDict.items()):
        if name.partition(".")[0] in LIBRARIES and isinstance(logger, logging.Logger):
            logger.addFilter(tamed)
    return tamed
