"""Input files: events of lines of JSON, an array, CSV or Parquet, a piece at a time.

    lines     each line is an event, as it is written; never in memory as a whole
    array     one JSON array of events; in memory as a whole
    csv       a line of names, then an event a row (app/load/csv_file.py)
    parquet   an event a row (app/load/parquet_file.py)

A regular file may be compressed with gzip, except for Parquet. Standard input and pipes are lines.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import pathlib
import select
import stat
import sys
import zlib
from collections.abc import Iterator
from typing import IO, Literal, cast, get_args

import msgspec

from app.load.csv_file import read_csv
from app.load.input_piece import InputError, Piece
from app.load.parquet_file import read_parquet

Form = Literal["lines", "array", "csv", "parquet"]
FORMS: tuple[Form, ...] = get_args(Form)
STANDARD_INPUT = "-"

_CHUNK_BYTES = 256 * 1024
_ARRAY_EVENTS = 2_000
_SELECT_SECONDS = 0.2
_GZIP = b"\x1f\x8b"
_PARQUET = b"PAR1"
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BLANK = b" \t\r\n"
_OF_NAME: dict[str, Form] = {
    ".ndjson": "lines", ".jsonl": "lines", ".json": "lines", ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet",
}  # fmt: skip


class InputFile:
    """A file of events whose form is known.

    Attributes:
        name: the path, or ``-`` for standard input.
        form: the form of its events.
    """

    def __init__(self, name: str, form: Form | None = None) -> None:
        """Open the file and read its first bytes, from which its form follows if ``form`` is None.

        Raises:
            InputError: it cannot be read, or its form is not one of ours.
        """
        self.name = name
        self._path = pathlib.Path(name)
        with self._errors():
            self._is_pipe = name == STANDARD_INPUT or not stat.S_ISREG(self._path.stat().st_mode)
        if self._is_pipe:
            if form not in (None, "lines"):
                raise InputError(f"cannot read {name}: got a pipe as {form}; want a file of it")
            if self._path.is_dir():
                raise InputError(f"cannot read {name}: got a folder; want its files; give {name}/*")
            self.form: Form = "lines"
            return
        with self._errors(), self._path.open("rb") as file:
            self._is_gzip = file.read(len(_GZIP)) == _GZIP
        with self._errors(), self._open() as (stream, _):
            head = stream.read(_CHUNK_BYTES)
        self.form = form or self._find_form(head)
        if self.form == "parquet" and self._is_gzip:
            raise InputError(
                f"cannot read {name}: got Parquet inside of gzip; want it plain;"
                f" run: gzip -d {name}"
            )

    def pieces(self, events_max: int | None = None) -> Iterator[Piece]:
        """Yield the events in their order; of a pipe, empty pieces too while nothing comes.

        Args:
            events_max: as many events are wanted; columns of CSV get the types that all values of
                these have. None wants all.

        Raises:
            InputError: the rest of the file cannot be read.
        """
        with self._errors():
            if self._is_pipe:
                yield from self._read_pipe()
            elif self.form == "parquet":
                yield from read_parquet(self._path)
            elif self.form == "csv":
                yield from read_csv(self.name, self._open, events_max)
            else:
                with self._open() as (stream, raw):
                    read = self._read_lines if self.form == "lines" else self._read_array
                    yield from read(stream, raw)

    def _find_form(self, head: bytes) -> Form:
        """Return the form that the name and the first bytes have."""
        suffixes = [suffix for suffix in self._path.suffixes if suffix != ".gz"]
        named = _OF_NAME.get(suffixes[-1].lower()) if suffixes else None
        if head.startswith(_PARQUET):
            return "parquet"
        if named == "parquet":
            raise InputError(
                f"cannot read {self.name}: it does not begin as Parquet does; got {head[:4]!r};"
                " want PAR1; is it whole, and of that form?"
            )
        if head.startswith(_UTF16):
            raise InputError(
                f"cannot read {self.name}: it is UTF-16; want UTF-8; run: iconv -f UTF-16 -t UTF-8"
            )
        text = head.removeprefix(_BOM).lstrip(_BLANK)
        if named == "csv":
            return named
        if text.startswith(b"["):
            return "array"
        if text.startswith(b"{"):
            self._check_line(text)
        elif text and named is None:
            raise InputError(
                f"cannot read {self.name}: neither its name nor its first bytes say its form; got"
                f" {text[:20]!r}; want one of {', '.join(FORMS)}; give --input FORM"
            )
        return "lines"

    def _check_line(self, text: bytes) -> None:
        """Raise InputError if the first line is not a JSON document: all others would not be."""
        line, newline, _ = text.partition(b"\n")
        if not newline and len(text) >= _CHUNK_BYTES - len(_BOM):
            return
        try:
            msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError) as error:
            raise InputError(
                f"cannot read {self.name} as lines: its first line is not JSON: {error}; got"
                f" {line[:60]!r}; want an object a line, or one array; of objects over several"
                f" lines, make lines: jq -c . {self.name}; or give --input lines to read it as it"
                " is"
            ) from error

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
        """Open the file: its content, and the file itself, whose position is the progress."""
        with self._path.open("rb") as raw:
            stream = gzip.GzipFile(fileobj=raw) if self._is_gzip else raw
            yield cast("IO[bytes]", stream), raw

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Name the file in its errors."""
        try:
            yield
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(
                f"cannot read {self.name}: its gzip is cut off or damaged: {error}; get it again"
            ) from error
        except OSError as error:
            raise InputError(
                f"cannot read {self.name}: {error.strerror or error}; want a file of events"
            ) from error

    def _read_lines(self, stream: IO[bytes], raw: IO[bytes]) -> Iterator[Piece]:
        size = max(1, os.fstat(raw.fileno()).st_size)
        cutter = _Lines()
        while chunk := stream.read(_CHUNK_BYTES):
            if lines := cutter.cut(chunk):
                yield Piece(lines, raw.tell() / size)
        yield Piece(cutter.rest(), 1.0)

    def _read_array(self, stream: IO[bytes], _: IO[bytes]) -> Iterator[Piece]:
        text = stream.read().removeprefix(_BOM)
        try:
            items = msgspec.json.decode(text, type=list[msgspec.Raw])
        except msgspec.DecodeError as error:
            raise InputError(
                f"cannot read {self.name} as one JSON array: {error}; want [EVENT, EVENT, ...];"
                " if each line is an event, give --input lines"
            ) from error
        for first in range(0, len(items), _ARRAY_EVENTS):
            some = [_one_line(bytes(item)) for item in items[first : first + _ARRAY_EVENTS]]
            yield Piece(some, (first + len(some)) / len(items))

    def _read_pipe(self) -> Iterator[Piece]:
        cutter = _Lines()
        with contextlib.ExitStack() as stack:
            if self.name == STANDARD_INPUT:
                descriptor = sys.stdin.fileno()
            else:
                descriptor = stack.enter_context(io.FileIO(self.name)).fileno()
            while True:
                if not select.select([descriptor], [], [], _SELECT_SECONDS)[0]:
                    yield Piece([], None)
                    continue
                chunk = os.read(descriptor, _CHUNK_BYTES)
                if cutter.is_new and chunk.startswith(_GZIP):
                    raise InputError(
                        f"cannot read {self.name}: got gzip; want lines; run: gzip -dc FILE | ..."
                    )
                if not chunk:
                    break
                yield Piece(cutter.cut(chunk), None)
        yield Piece(cutter.rest(), None)


class _Lines:
    """Cuts chunks into lines; a line may be longer than any chunk.

    Attributes:
        is_new: whether no chunk has come.
    """

    def __init__(self) -> None:
        self.is_new = True
        self._open: list[bytes] = []

    def cut(self, chunk: bytes) -> list[bytes]:
        """Return the lines that end in a chunk, without those that are blank."""
        if self.is_new:
            chunk = chunk.removeprefix(_BOM)
            self.is_new = False
        whole, newline, rest = chunk.rpartition(b"\n")
        if not newline:
            self._open.append(chunk)
            return []
        self._open.append(whole)
        lines = b"".join(self._open).split(b"\n")
        self._open = [rest]
        return _not_blank(lines)

    def rest(self) -> list[bytes]:
        """Return the last line if it has no end."""
        return _not_blank([b"".join(self._open)])


def _not_blank(lines: list[bytes]) -> list[bytes]:
    return [line.removesuffix(b"\r") for line in lines if line.strip()]


def _one_line(document: bytes) -> bytes:
    """Return a JSON document on one line; nothing but white space changes."""
    return msgspec.json.format(document, indent=-1) if b"\n" in document else document
