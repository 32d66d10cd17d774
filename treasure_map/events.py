"""Server-sent events of live cells, read line by line from whatever connection."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from treasure_map.answers import LiveCell, Problem, QueryFailedError, exact


class EventReader:
    """Takes the lines of a stream and gives its cells.

    Attributes:
        last_id: the id of the last event; a later stream can resume after it.
    """

    def __init__(self) -> None:
        self.last_id = ""
        self._kind = ""
        self._data = b""

    def take(self, line: bytes) -> Iterator[LiveCell]:
        """Take one line with its end; yield the cell that it completes.

        Raises:
            QueryFailedError: the stream says that it cannot continue.
        """
        name, _, value = line.rstrip(b"\r\n").partition(b": ")
        if name == b"event":
            self._kind = value.decode()
        elif name == b"data":
            self._data = value
        elif name == b"id":
            self.last_id = value.decode()
        elif not name:
            kind, data = self._kind, self._data
            self._kind, self._data = "", b""
            if kind == "cell":
                cell = msgspec.json.decode(data, type=LiveCell)
                exact(cell.measures)
                yield cell
            elif kind == "problem":
                raise QueryFailedError(msgspec.json.decode(data, type=Problem).detail)
