"""Bad input of every kind that a worker must count and set aside (docs/formats/records.md).

Bad input comes instead of one event. The stage at which it is made depends on the broken part:

    row      a value of the event, before it is encoded: any form can say it
    line     the event's JSON text
    record   a record of its own instead of the event
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import orjson
import polars as pl

from app.load import writers
from app.load.avro_container import avro_container
from app.load.event_shape import EventShape
from app.load.writers import Writer, arrow_stream, csv_text
from tables.model.layer import Source
from tables.model.window import DAY_MS, TIME_MS_MAX
from tables.record.chunk import Headers
from tables.record.heartbeat import HEARTBEAT_HEADER, encode_heartbeat

Stage = Literal["row", "line", "record"]
Forms = Literal["every", "lines", "floats", "arrow", "csv", "avro"]

KEY_BYTES_MAX = 1_024
_ARROW: Headers = (("content-type", b"application/vnd.apache.arrow.stream"),)
_AVRO: Headers = (("content-type", b"application/avro"),)
_CSV: Headers = (("content-type", b"text/csv"),)

OVERSIZED_EVERY = 50
"""Rounds of kinds for each oversized record, which replaces a round: it has a MiB or more."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """The event that bad input replaces: row ``row`` of ``events``, ``event`` as JSON.

    ``key_names`` are the fields of the keys of the layers that select it; ``now_ms`` is the time at
    which it is written.
    """

    source: Source
    shape: EventShape
    chance: random.Random
    now_ms: int
    events: pl.DataFrame
    row: int
    event: Mapping[str, Any]
    key_names: tuple[str, ...]
    unclassified: str | None

    def line(self) -> bytes:
        """Return the event as JSON."""
        return orjson.dumps(self.shape.document(self.event))

    def frame(self) -> pl.DataFrame:
        """Return the event as a flat frame of one row."""
        return self.events.slice(self.row, 1)

    def stream(self, column: pl.Series) -> bytes:
        """Return the event as an Arrow stream, with another column instead of its own."""
        return arrow_stream(self.shape.frame(self.frame().with_columns(column)))


@dataclasses.dataclass(frozen=True, slots=True)
class Bad:
    """One kind of bad input.

    ``counted`` is its column of the ledger: ``malformed.json``, ``events.future``,
    ``records.tombstone``, ``unreadable.arrow``. ``make`` returns, by ``stage``: a column and the
    value it gets; the line; the record's value and headers. It returns None if the event, or the
    whole source, has nothing that could be broken so. ``forms`` are the formats that can have it.
    """

    name: str
    counted: str
    stage: Stage
    forms: Forms
    make: Callable[[Sample], Any]

    def suits(self, writer: Writer) -> bool:
        """Return whether a format can have it."""
        return {
            "every": True, "lines": writer.uses_lines,
            # Texts of CSV that are not numbers are of another type.
            "floats": not writer.uses_lines and writer.name != "csv",
        }.get(self.forms, writer.name == self.forms)  # fmt: skip

    @property
    def reason(self) -> str:
        """The reason under which it becomes a dead letter."""
        return self.counted.partition(".")[2]

    @property
    def outcome(self) -> str:
        """The outcome of the event that it replaces, in the words of the ledger."""
        return {"events.future": "future", "events.unclassified": "unclassified"}.get(
            self.counted, "malformed" if self.counted.startswith("malformed.") else "none"
        )


class Deck:
    """Gives the kinds of bad input in shuffled rounds, so that each comes about as often."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._rounds = {writer.name: self._kinds(writer) for writer in writers.WRITERS}

    def draw(self, form: str, sample: Sample) -> tuple[Bad, Any]:
        """Return the next kind that a format and ``sample`` allow, and the bad input it makes."""
        for bad in self._rounds[form]:
            made = bad.make(sample)
            if made is not None:
                return bad, made
        raise AssertionError("every source can get a tombstone")

    def _kinds(self, writer: Writer) -> Iterator[Bad]:
        kinds = [bad for bad in KINDS if bad.suits(writer)]
        for number in itertools.count():
            own = [k for k in kinds if k.name != "oversized" or number % OVERSIZED_EVERY == 0]
            yield from self._chance.sample(own, len(own))


def _broken_json(sample: Sample) -> bytes:
    line = sample.line()
    return sample.chance.choice(
        (
            *([] if sample.source.arrays else [b"[" + line + b"]"]),
            line[:-1],
            line[: len(line) // 2],
            line[:-1] + b",}",
            line[:-1] + b',"extra":NaN}',
            line.replace(b'":"', b'":"\xff', 1),
            line + b"}",
            b"[" * 2_000,
            b'"text"',
            b"null",
            b"17",
        )
    )


def _null(sample: Sample) -> tuple[str, None]:
    source = sample.source
    required = [field.name for field in source.fields if field.required]
    names = (sample.shape.time, sample.shape.type, *sample.key_names, *required)
    return sample.chance.choice(names), None


def _absent(sample: Sample) -> bytes:
    gone, _ = _null(sample)
    rest = {name: value for name, value in sample.event.items() if name != gone}
    return orjson.dumps(sample.shape.document(rest))


def _changed(sample: Sample, name: str, value: Any) -> bytes:
    return orjson.dumps(sample.shape.document({**sample.event, name: value}))


def _wrong_values(sample: Sample) -> list[tuple[str, Any]]:
    """Return declared fields, each with a value that JSON has and its type does not.

    Fields with options are left out: they may take it.
    """
    wrong: dict[str, tuple[Any, ...]] = {
        "string": (7, True, []), "int": ("7", True, {}), "bool": (1, "true"), "float": ("1.5", []),
    }  # fmt: skip
    wrongs: dict[str, tuple[Any, ...]] = {
        sample.shape.time: (True, [], {}), sample.shape.type: (7, True, [], {}),
    }  # fmt: skip
    for field in sample.source.fields:
        if field.converts:
            continue
        wrongs.setdefault(field.name, wrong[field.type])
    return [(name, value) for name, values in wrongs.items() for value in values]


def _wrong_type(sample: Sample) -> bytes:
    return _changed(sample, *sample.chance.choice(_wrong_values(sample)))


def _whole_numbers(sample: Sample) -> list[str]:
    own = (sample.shape.time, sample.shape.type)
    numbers = [f for f in sample.source.fields if f.type == "int" and not f.null_on_error]
    return [f.name for f in numbers if f.name not in own]


def _out_of_range(sample: Sample) -> bytes:
    """Return a line with a number beyond 64 bits, or a time that cannot be read."""
    time = sample.shape.time
    texts = [_changed(sample, time, text) for text in ("yesterday", "2026-02-30T00:00:00Z")]
    for name in (time, *_whole_numbers(sample)):
        marked = _changed(sample, name, "number")
        texts += [marked.replace(b'"number"', b"%d" % n) for n in (2**64, -(2**63) - 1, 10**30)]
    return sample.chance.choice(texts)


def _time_out_of_range(sample: Sample) -> tuple[str, int]:
    far = (TIME_MS_MAX // sample.source.time_unit_ms + 1, 2**62, -(2**62))
    return sample.shape.time, sample.chance.choice(far)


def _not_finite(sample: Sample) -> tuple[str, float] | None:
    floats = [field for field in sample.source.fields if field.type == "float"]
    names = [field.name for field in floats if not field.null_on_error]
    if not names:
        return None
    numbers = (float("nan"), float("inf"), float("-inf"))
    return sample.chance.choice(names), sample.chance.choice(numbers)


def _key_too_long(sample: Sample) -> tuple[str, str] | None:
    texts = [name for name in sample.key_names if sample.source.field(name).type == "string"]
    # Characters of two bytes: the limit is one of bytes.
    return (sample.chance.choice(texts), "é" * (KEY_BYTES_MAX // 2 + 1)) if texts else None


def _future(sample: Sample) -> tuple[str, int]:
    time_ms = sample.now_ms + sample.source.future_skew_ms + DAY_MS
    return sample.shape.time, time_ms // sample.source.time_unit_ms


def _unclassified(sample: Sample) -> tuple[str, str] | None:
    name = sample.unclassified
    return None if name is None else (sample.shape.type, name)


def _tombstone(_: Sample) -> tuple[None, Headers]:
    return None, ()


def _empty(sample: Sample) -> tuple[bytes, Headers]:
    return sample.chance.choice((b"", b" \r\n\t ")), ()


def _no_rows(sample: Sample) -> tuple[bytes, Headers]:
    return arrow_stream(sample.shape.frame(sample.events.clear())), _says_arrow(sample)


def _oversized(sample: Sample) -> tuple[bytes, Headers]:
    line = sample.line()
    filler = b"x" * (sample.source.record_bytes_max - len(line))
    return line[:-1] + b',"filler":"' + filler + b'"}', ()


def _content_type(sample: Sample) -> tuple[bytes, Headers]:
    kind = sample.chance.choice((b"text/plain", b"application/xml", b"", b"json"))
    return sample.line(), (("content-type", kind),)


def _heartbeat(sample: Sample) -> tuple[None, Headers]:
    ahead_ms = sample.now_ms + sample.source.future_skew_ms + DAY_MS
    times = (b"soon", b"", b"1.5", b"%d" % 10**30, b"%d" % (TIME_MS_MAX + 1))
    time = sample.chance.choice((*times, encode_heartbeat(ahead_ms)))
    return None, ((HEARTBEAT_HEADER, time),)


def _arrow(sample: Sample) -> tuple[bytes, Headers]:
    """Return Arrow that is cut off, that is something else, or whose lengths are not true."""
    whole = arrow_stream(sample.shape.frame(pl.concat([sample.frame()] * 7)))
    one, lie = (7).to_bytes(8, "little"), (1 << 40).to_bytes(8, "little")
    values = (
        # Without the end of the stream and the end of the rows before it.
        whole[:-24],
        whole[:6],
        b"\xff\xff\xff\xff\xff\xff\xff\x7f" + whole[8:],
        whole.replace(one, lie),
        sample.line(),
    )
    return sample.chance.choice(values), _ARROW


def _says_arrow(sample: Sample) -> Headers:
    """Return the header without which a source that declares a format does not see Arrow."""
    return () if sample.source.format is None else _ARROW


def _arrow_wrong_type(sample: Sample) -> tuple[bytes, Headers]:
    name, value = sample.chance.choice(_wrong_values(sample))
    column = pl.Series(name, [[1]]) if isinstance(value, list | dict) else pl.Series(name, [value])
    return sample.stream(column), _says_arrow(sample)


def _arrow_out_of_range(sample: Sample) -> tuple[bytes, Headers] | None:
    names = _whole_numbers(sample)
    if not names:
        return None
    column = pl.Series(sample.chance.choice(names), [2**64 - 1], dtype=pl.UInt64)
    return sample.stream(column), _says_arrow(sample)


def _csv(sample: Sample) -> tuple[bytes, Headers]:
    """Return a record of CSV whose one row breaks the rules."""
    form = sample.source.format
    value = csv_text(sample.shape.frame(sample.frame()), form)
    row = value.rstrip(b"\n").split(b"\n")[-1]
    mark = form.delimiter.encode() if form is not None else b","
    broken = (row + mark + b'"', row + 2 * mark, b'x"' + row, row + b"\xff", b'"' + row)
    return value.rstrip(b"\n").removesuffix(row) + sample.chance.choice(broken), _CSV


def _csv_wrong_type(sample: Sample) -> tuple[bytes, Headers] | None:
    wrong = {"int": ("7.5", "x", " 7", "1e-3"), "float": ("x", "1,5", "0x1", "nan"),
        "bool": ("1", "yes")}  # fmt: skip
    own = (sample.shape.time, sample.shape.type)
    usual = [f for f in sample.source.fields if f.type in wrong and not f.null_on_error]
    fields = [field for field in usual if field.name not in own]
    if not fields:
        return None
    field = sample.chance.choice(fields)
    column = pl.Series(field.name, [sample.chance.choice(wrong[field.type])])
    frame = sample.shape.frame(sample.frame().with_columns(column))
    return csv_text(frame, sample.source.format), _CSV


def _csv_out_of_range(sample: Sample) -> tuple[bytes, Headers]:
    numbers = [(name, "9" * 30) for name in (sample.shape.time, *_whole_numbers(sample))]
    texts = [(sample.shape.time, text) for text in ("soon", "2026-02-30T00:00:00Z")]
    name, value = sample.chance.choice(numbers + texts)
    frame = sample.shape.frame(sample.frame().with_columns(pl.Series(name, [value])))
    return csv_text(frame, sample.source.format), _CSV


def _csv_names(sample: Sample) -> tuple[bytes, Headers] | None:
    """Return rows behind a row that does not name the columns; None if the source names them."""
    if sample.source.format is not None and sample.source.format.columns:
        return None
    names = sample.chance.choice((b"a,b,a", b'a,"b', b"a,\xff", b",,"))
    return names + b"\n1,2,3\n", _CSV


def _avro(sample: Sample) -> tuple[bytes, Headers]:
    """Return a container that is cut off, that is something else, or whose lengths are not true."""
    whole = avro_container(sample.shape.frame(pl.concat([sample.frame()] * 7)))
    values = (
        whole[:-20],
        whole[:6],
        whole + b"\x0e",
        whole[:-16] + bytes(16),
        # Seven events begin the block behind the mark.
        whole.replace(whole[-16:] + b"\x0e", whole[-16:] + b"\xfe\xff\xff\xff\x7f", 1),
        sample.line(),
        b"\0\0\0\0\x07" + sample.line(),
    )
    return sample.chance.choice(values), _AVRO


def _avro_wrong_type(sample: Sample) -> tuple[bytes, Headers]:
    name, value = sample.chance.choice(_wrong_values(sample))
    column = pl.Series(name, [[1]]) if isinstance(value, list | dict) else pl.Series(name, [value])
    frame = sample.shape.frame(sample.frame().with_columns(column))
    return avro_container(frame), _AVRO


KINDS = (
    Bad("json", "malformed.json", "line", "lines", _broken_json),
    Bad("missing_null", "malformed.missing", "row", "every", _null),
    Bad("missing_absent", "malformed.missing", "line", "lines", _absent),
    Bad("wrong_type", "malformed.wrong_type", "line", "lines", _wrong_type),
    Bad("out_of_range", "malformed.out_of_range", "line", "lines", _out_of_range),
    Bad("time_out_of_range", "malformed.out_of_range", "row", "every", _time_out_of_range),
    Bad("not_finite", "malformed.not_finite", "row", "floats", _not_finite),
    Bad("key_too_long", "malformed.key_too_long", "row", "every", _key_too_long),
    Bad("future", "events.future", "row", "every", _future),
    Bad("unclassified", "events.unclassified", "row", "every", _unclassified),
    Bad("tombstone", "records.tombstone", "record", "every", _tombstone),
    Bad("empty", "records.empty", "record", "every", _empty),
    Bad("arrow_empty", "records.empty", "record", "arrow", _no_rows),
    Bad("oversized", "records.oversized", "record", "every", _oversized),
    Bad("content_type", "unreadable.content_type", "record", "every", _content_type),
    Bad("heartbeat", "unreadable.heartbeat", "record", "every", _heartbeat),
    Bad("arrow", "unreadable.arrow", "record", "arrow", _arrow),
    Bad("arrow_wrong_type", "malformed.wrong_type", "record", "arrow", _arrow_wrong_type),
    Bad("arrow_out_of_range", "malformed.out_of_range", "record", "arrow", _arrow_out_of_range),
    Bad("avro", "unreadable.avro", "record", "avro", _avro),
    Bad("avro_wrong_type", "malformed.wrong_type", "record", "avro", _avro_wrong_type),
    Bad("csv", "malformed.csv", "record", "csv", _csv),
    Bad("csv_names", "unreadable.csv", "record", "csv", _csv_names),
    Bad("csv_wrong_type", "malformed.wrong_type", "record", "csv", _csv_wrong_type),
    Bad("csv_out_of_range", "malformed.out_of_range", "record", "csv", _csv_out_of_range),
)
"""Every kind. Numbers that are not finite are only in formats that can say them, as Arrow can."""
