"""Trial: reads streams that letters call broken in a process of its own, which they may end."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import resource
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection

import polars as pl

_MEMORY_BYTES_MAX = 4 << 30
"""Memory of a trial: streams that lie about their lengths would have all of the machine's."""

_SECONDS_MAX = 20.0


def readable(streams: Sequence[bytes], inflated_bytes_max: int) -> Iterator[bool]:
    """Yield, of each Arrow stream, whether a plain reader finds rows of no more bytes in it.

    A stream that ends its reader, or holds it up, is not readable; the next one gets a new reader.
    """
    context = multiprocessing.get_context("spawn")
    ours: Connection | None = None
    try:
        for stream in streams:
            if ours is None:
                ours, theirs = context.Pipe()
                child = context.Process(target=_read_each, args=(theirs,), daemon=True)
                child.start()
                theirs.close()
            inflated_bytes = _ask(ours, stream)
            if inflated_bytes is None:
                ours.close()
                child.kill()
                child.join()
                ours = None
            yield inflated_bytes is not None and 0 < inflated_bytes <= inflated_bytes_max
    finally:
        if ours is not None:
            ours.close()
            child.join()


def _ask(pipe: Connection, stream: bytes) -> int | None:
    """Return the bytes of a stream's rows, 0 for one that cannot be read; None: it ended."""
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        pipe.send_bytes(stream)
        if pipe.poll(_SECONDS_MAX):
            return int(pipe.recv())
    return None


def _read_each(pipe: Connection) -> None:
    """Read streams until the pipe is closed."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES_MAX, _MEMORY_BYTES_MAX))
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            stream = pipe.recv_bytes()
            try:
                frame = pl.read_ipc_stream(io.BytesIO(stream))
                pipe.send(frame.estimated_size() if frame.height else 0)
            except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, MemoryError):
                pipe.send(0)
