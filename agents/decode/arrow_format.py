"""Arrow as a format of records: an IPC stream of events, a row each."""

from __future__ import annotations

import io

import polars as pl

from agents.decode.column_events import ColumnDecoder
from agents.decode.record_format import RecordFormat
from tables.model.layer import Source
from tables.record.arrow_stream import CONTINUATION, ArrowError, check_stream

_ARROW_TYPE = "application/vnd.apache.arrow.stream"


class ArrowDecoder(ColumnDecoder):
    """Decodes the Arrow streams of one source."""

    reason = "arrow"
    broken = (ArrowError, pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._inflated_bytes_max = source.inflated_bytes_max

    def read(self, value: bytes) -> pl.DataFrame:
        """Return the wanted columns of a stream, with the types they have there.

        Raises:
            ArrowError: the stream is broken, lies, or inflates too far. All errors in ``broken``
                mean the same.
        """
        columns, rows = check_stream(value, self._inflated_bytes_max)
        present = [name for name in self.wanted if name in columns]
        if not present:
            return pl.DataFrame({"none": pl.repeat(None, rows, eager=True)})
        return pl.read_ipc_stream(io.BytesIO(value), columns=present)

    def select(self, value: bytes, events: tuple[int, ...]) -> tuple[bytes, str]:
        """Return an IPC stream of some rows of a stream that was read.

        All columns are kept if the reader can read them, else those that the map declares.
        """
        try:
            frame = pl.read_ipc_stream(io.BytesIO(value))
        except self.broken:
            frame, _ = self.events(self.read(value))
        file = io.BytesIO()
        frame[list(events)].write_ipc_stream(file, compression="zstd")
        return file.getvalue(), _ARROW_TYPE


ARROW = RecordFormat("arrow", _ARROW_TYPE, ArrowDecoder, (CONTINUATION,), (ArrowDecoder.reason,))
