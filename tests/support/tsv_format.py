"""A record format that only tests have: tab-separated values, a line an event."""

from __future__ import annotations

import io

import polars as pl

from agents.decode.column_events import ColumnDecoder
from agents.decode.record_format import RecordFormat
from app.load.writers import Writer

MAGIC = b"#tsv\n"


class TsvDecoder(ColumnDecoder):
    """Decodes the records of one source."""

    reason = "tsv"
    broken = (pl.exceptions.PolarsError,)

    def read(self, value: bytes) -> pl.DataFrame:
        """Return all columns."""
        return _read(value, None)

    def select(self, value: bytes, events: tuple[int, ...]) -> tuple[bytes, str]:
        """Return the lines of some events."""
        return tsv(_read(value, 0)[list(events)]), TSV.content_type


TSV = RecordFormat("tsv", "text/tab-separated-values", TsvDecoder, (MAGIC,), ("tsv",))
"""Lines of values behind a mark and a line of names; types are inferred, as in no real one."""


def _read(value: bytes, infer_lines: int | None) -> pl.DataFrame:
    """Return the columns, of types that so many lines tell; None: all lines, 0: they are texts."""
    text = io.BytesIO(value.removeprefix(MAGIC))
    return pl.read_csv(text, separator="\t", infer_schema_length=infer_lines)


def tsv(frame: pl.DataFrame) -> bytes:
    """Return events as a value of the format."""
    return MAGIC + frame.write_csv(separator="\t").encode()


WRITER = Writer("tsv", 100_000, lambda rows, _: tsv(rows), uses_lines=False)
