"""Files of events: every form is found and read whole, and what cannot be read says why."""

from __future__ import annotations

import datetime as dt
import decimal
import gzip
import json
import os
import pathlib
import threading
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

from app.load.input_file import Form, InputFile
from app.load.input_piece import InputError, Piece

Write = Callable[[str, bytes], InputFile]


@pytest.fixture
def write(tmp_path: pathlib.Path) -> Callable[..., InputFile]:
    """Write a file, and give it as an input."""

    def written(name: str, content: bytes, form: Form | None = None) -> InputFile:
        path = tmp_path / name
        path.write_bytes(content)
        return InputFile(str(path), form)

    return written


def lines_of(file: InputFile) -> list[bytes]:
    """Return all events of a file as JSON texts."""
    return [line for piece in file.pieces() for line in piece.lines]


def objects_of(file: InputFile) -> list[Any]:
    """Return all events of a file."""
    return [json.loads(line) for line in lines_of(file)]


def test_lines_are_given_as_they_are_written(write: Write) -> None:
    """Numbers keep their digits, and a broken line is for the worker to refuse."""
    texts = [b'{"a": 1.10}', b"{broken", b'{ "b" : [1,  2] }', b'{"c":"\xff"}']
    content = b"\xef\xbb\xbf" + b"\r\n".join(texts) + b"\n \n\n"
    file = write("events.ndjson", content)
    assert file.form == "lines"
    assert lines_of(file) == texts


def test_a_last_line_without_end_is_an_event(write: Write) -> None:
    """Many programs write no last line feed."""
    assert lines_of(write("events", b'{"a":1}\n{"a":2}')) == [b'{"a":1}', b'{"a":2}']


def test_a_file_is_read_piece_by_piece(write: Write) -> None:
    """A file may be larger than memory; the share that is read grows to the whole."""
    texts = [b'{"n":%d,"filler":"%s"}' % (n, b"x" * 90) for n in range(20_000)]
    pieces = list(write("events.jsonl", b"\n".join(texts)).pieces())
    assert max(len(piece.lines) for piece in pieces) < 4_000
    assert [line for piece in pieces for line in piece.lines] == texts
    shares = [piece.share for piece in pieces]
    assert shares == sorted(shares, key=lambda share: share or 0.0)
    assert shares[-1] == 1.0


def test_a_line_may_be_longer_than_any_piece(write: Write) -> None:
    """Its parts are put together."""
    huge = b'{"filler":"%s"}' % (b"x" * 3_000_000)
    assert lines_of(write("events.jsonl", huge + b'\n{"a":1}\n')) == [huge, b'{"a":1}']


@pytest.mark.parametrize("name", ["events.ndjson", "events.json", "events.csv", "events"])
def test_an_empty_file_has_no_events(write: Write, name: str) -> None:
    """It is no fault, except for CSV, which has names at least."""
    file = write(name, b"")
    if file.form == "csv":
        with pytest.raises(InputError, match="must name every column once; got nothing"):
            lines_of(file)
    else:
        assert lines_of(file) == []


def test_each_value_of_an_array_is_an_event_on_one_line(write: Write) -> None:
    """Records of many lines need that; nothing but white space changes."""
    content = b' [\n {"a": 1.10,\n  "b": "x\\n"},\n {"a":[ ]}, 7]'
    file = write("events.json", content)
    assert file.form == "array"
    assert lines_of(file) == [b'{"a":1.10,"b":"x\\n"}', b'{"a":[ ]}', b"7"]


def test_a_broken_array_says_where(write: Write) -> None:
    """A download that was cut off is the usual cause."""
    with pytest.raises(InputError, match=r"as one JSON array: .*truncated.*give --input lines"):
        lines_of(write("events.json", b'[{"a":1},'))


def test_an_object_over_several_lines_is_refused(write: Write) -> None:
    """Each of its lines would be a broken event."""
    with pytest.raises(InputError, match=r"its first line is not JSON.*jq -c"):
        write("events.json", b'{\n  "a": 1\n}\n')


def test_the_form_can_be_said(write: Callable[..., InputFile]) -> None:
    """A file of another name, or of lines that are broken on purpose."""
    assert objects_of(write("events.txt", b"a,b\n1,x\n", "csv")) == [{"a": 1, "b": "x"}]
    assert lines_of(write("events.json", b"{\n{}\n", "lines")) == [b"{", b"{}"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("events", b"hello", r"neither its name nor its first bytes.*give --input FORM"),
        ("events.json", "{}".encode("utf-16"), r"is UTF-16; want UTF-8"),
        ("events.parquet", b"PAR", r"does not begin as Parquet does; got b'PAR'"),
        ("events.gz", gzip.compress(b'{"a":1}\n', mtime=0)[:-6], r"gzip is cut off or damaged"),
        ("events.parquet.gz", gzip.compress(b"PAR1", mtime=0), r"Parquet inside of gzip"),
    ],
)
def test_a_file_that_cannot_be_read_says_what_to_do(
    write: Write, name: str, content: bytes, message: str
) -> None:
    """Before anything is written."""
    with pytest.raises(InputError, match=message):
        lines_of(write(name, content))


def test_a_missing_file_and_a_folder_are_named(tmp_path: pathlib.Path) -> None:
    """The message has the path."""
    with pytest.raises(InputError, match=r"none: No such file"):
        InputFile(str(tmp_path / "none"))
    with pytest.raises(InputError, match="got a folder"):
        InputFile(str(tmp_path))


def test_gzip_is_read_whatever_the_name(write: Write) -> None:
    """Lines, arrays and CSV may be compressed."""
    assert objects_of(write("a.ndjson.gz", gzip.compress(b'{"a":1}\n'))) == [{"a": 1}]
    assert objects_of(write("b", gzip.compress(b'[{"a":1}]'))) == [{"a": 1}]
    assert objects_of(write("c.csv.gz", gzip.compress(b"a\n1\n"))) == [{"a": 1}]


def test_a_pipe_is_lines(tmp_path: pathlib.Path) -> None:
    """Its first bytes can be read once only, so nothing looks at them before."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    texts = [b'{"n":%d}' % n for n in range(50_000)]
    feeder = threading.Thread(target=path.write_bytes, args=(b"\n".join(texts),))
    feeder.start()
    assert lines_of(InputFile(str(path))) == texts
    feeder.join()


def test_a_column_of_csv_is_of_a_type_only_if_all_values_are(write: Write) -> None:
    """Otherwise it stays text: no value loses a zero, a digit or a sign."""
    rows = [
        "zip,size,price,flag,at,big,long,mixed,plus,none,name",
        f'007,1,1.10,true,2024-03-01 10:00:00,{2**63 - 1},{2**63},1,+1,,"a ""b"""',
        "12,-5,2,FALSE,2024-03-01T10:00:00.5,0,1,x,2,,",
        ",,,,,,,,,,é",
    ]
    found = objects_of(write("events.csv", "\n".join(rows).encode()))
    assert found[0] == {
        "zip": "007", "size": 1, "price": 1.10, "flag": True, "at": "2024-03-01T10:00:00Z",
        "big": 2**63 - 1, "long": str(2**63), "mixed": "1", "plus": "+1",
        "none": None, "name": 'a "b"',
    }  # fmt: skip
    assert found[1] == {
        "zip": "12", "size": -5, "price": 2, "flag": False, "at": "2024-03-01T10:00:00.5Z",
        "big": 0, "long": "1", "mixed": "x", "plus": "2", "none": None, "name": None,
    }  # fmt: skip
    assert found[2] == dict.fromkeys(rows[0].split(",")) | {"name": "é"}


def test_the_type_of_a_column_is_that_of_the_whole_file(write: Write) -> None:
    """A text at the very end makes all numbers before it texts."""
    content = b"a\n" + b"".join(b"%d\n" % n for n in range(12_000)) + b"x\n"
    found = objects_of(write("events.csv", content))
    assert found[0] == {"a": "0"}
    assert found[-1] == {"a": "x"}
    assert len(found) == 12_001


def test_the_rows_of_csv_equal_its_lines(write: Write) -> None:
    """Records of columns hold the same values."""
    content = b"a,b,c,d,e\n1,1.5,true,x,2024-03-01 10:00:00\n,,,,\n"
    (piece,) = write("events.csv", content).pieces()
    assert piece.rows is not None
    assert piece.rows().to_dicts() == [json.loads(line) for line in piece.lines]


def test_csv_has_other_delimiters_and_odd_names(write: Write) -> None:
    """Semicolons and tabs, percent signs and quotes in names, line feeds in values."""
    assert objects_of(write("a.csv", b"a;b\n1;2,5\n")) == [{"a": 1, "b": "2,5"}]
    assert objects_of(write("a.tsv", b"a\tb\n1\tx y\n")) == [{"a": 1, "b": "x y"}]
    found = objects_of(write("b.csv", b'%d,"x ""y"""\n"1\n2",3\n'))
    assert found == [{"%d": "1\n2", 'x "y"': 3}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n3\n", r"near line 3 has another number of values; got 1: \['3'\]; want 2"),
        (b"a,b\n1,2\n3,4,5\n", r"got 3: .*want 2"),
        (b"a,a\n1,2\n", r"must name every column once; got a, a"),
        (b"a,\n1,2\n", r"must name every column once"),
        (b"a,b\n1,\xff\n", r"can't decode byte 0xff"),
        (b'a,b\n1,"2\n', r"unexpected end of data"),
    ],
)
def test_broken_csv_says_its_line(write: Write, content: bytes, message: str) -> None:
    """Before any event is given."""
    with pytest.raises(InputError, match=message):
        next(iter(write("events.csv", content).pieces()))


def test_parquet_is_nested_and_has_times_in_utc(tmp_path: pathlib.Path) -> None:
    """At any depth, with and without zone; a null stays one."""
    at = dt.datetime(2024, 3, 1, 10, 0, 0, 500_000)  # noqa: DTZ001  # a zone is set below
    frame = pl.DataFrame(
        {
            "at": pl.Series([at, None]).dt.replace_time_zone("Europe/Berlin"),
            "deep": [{"at": at, "list": [at, None]}, None],
            "objects": [[{"at": at}], []],
            "day": [dt.date(2024, 3, 1), None],
            "price": [decimal.Decimal("1.10"), None],
            "size": [2**60, None],
        },
        schema_overrides={"price": pl.Decimal(10, 2)},
    )
    path = tmp_path / "events.parquet"
    frame.write_parquet(path)
    (piece,) = InputFile(str(path)).pieces()
    text = "2024-03-01T10:00:00.500Z"
    first, second = map(json.loads, piece.lines)
    assert first == {
        "at": "2024-03-01T09:00:00.500Z", "deep": {"at": text, "list": [text, None]},
        "objects": [{"at": text}], "day": "2024-03-01", "price": 1.10, "size": 2**60,
    }  # fmt: skip
    assert second == dict.fromkeys(frame.columns) | {"objects": []}
    assert piece.rows is not None
    assert piece.rows().equals(frame)


def test_parquet_is_read_some_rows_at_a_time(tmp_path: pathlib.Path) -> None:
    """None is lost between two pieces, and none comes twice."""
    path = tmp_path / "events.parquet"
    pl.DataFrame({"n": range(25_001)}).write_parquet(path, row_group_size=7_000)
    pieces: list[Piece] = list(InputFile(str(path)).pieces())
    assert [json.loads(line)["n"] for piece in pieces for line in piece.lines] == [*range(25_001)]
    assert [piece.share for piece in pieces] == [10_000 / 25_001, 20_000 / 25_001, 1.0]


def test_parquet_that_json_cannot_hold_names_the_column(tmp_path: pathlib.Path) -> None:
    """Bytes have no text; a damaged file has no columns."""
    path = tmp_path / "events.parquet"
    pl.DataFrame({"image": [b"\xff"]}).write_parquet(path)
    with pytest.raises(InputError, match="column image holds bytes"):
        lines_of(InputFile(str(path)))
    path.write_bytes(b"PAR1 and nothing")
    with pytest.raises(InputError, match=r"as Parquet: .*get it again"):
        lines_of(InputFile(str(path)))
