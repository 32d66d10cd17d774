"""CSV: the worker's decoder and verify's plain rules take the same events of any text."""

from __future__ import annotations

import csv
import io
import random
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.decode.csv_format import CsvDecoder
from agents.decode.records import Decoder
from app.verify.csv_rows import csv_rows
from tables.model.layer import Field, RecordForm, Source
from tests.support.common import dataclasses_replace, run_of, small_map
from tests.support.read_alike import check_alike

FIELDS = (
    Field("device", "string", ("Device Id",), required=True),
    Field("delay", "int"),
    Field("vip", "bool"),
    Field("size", "float"),
)
NAMES = ("at", "type", "Device Id", "delay", "vip", "size", "uid", "other")
SOUND = (
    ("5", "1700000000000", "2023-11-14T22:13:20.5Z", "2023-11-14 22:13:20+01:00", "007"),
    ("flight.a", "flight.b"),
    ("d1", "déjà", 'say "hi"', "a,b;c\td|e", "two\nlines", "two\r\nlines", " d "),
    ("", "4", "-0", "007", "-9223372036854775808"),
    ("", "true", "false"),
    ("", "1", "1.5", "-2e3", "007.25", "1E-400"),
    ("", "a", "7"),
    ("", "x", "\ufeff"),
)
ODD = (
    "", " ", "x", "1.0", "+1", " 1", "9" * 25, "-" + "9" * 400, "9223372036854775808", "1e999",
    "nan", "-Inf", "1_0", "True", "TRUE", "0x1", "1.", ".5", "\u0661", "253402300800000", "\x00",
    "2023-02-30T00:00:00Z", "soon", "1\n", "--1", "1e", "infinity",
)  # fmt: skip


def source_of(form: RecordForm, unit_ms: int = 1) -> Source:
    """Return a source of CSV."""
    return dataclasses_replace(
        small_map().sources[0], fields=FIELDS, keyed_by=("device",), id_field="uid",
        time_unit_ms=unit_ms, format=form,
    )  # fmt: skip


def row_of(chance: random.Random) -> list[str]:
    """Return the values of a row, which are sound or odd, or too few or too many."""
    row = [chance.choice(some) for some in SOUND]
    for _ in range(chance.choice([0, 0, 0, 1, 1, 2])):
        row[chance.randrange(len(row))] = chance.choice(ODD)
    change = chance.random()
    if change < 0.05:
        row.pop()
    elif change < 0.1:
        row.append("more")
    return row


def text_of(chance: random.Random, form: RecordForm, rows: list[list[str]]) -> bytes:
    """Return rows as CSV, now and then with a broken byte."""
    file = io.StringIO()
    quoting: Literal[0, 1] = 1 if chance.random() < 0.3 else 0  # all values, or those that need it
    end = chance.choice(["\n", "\r\n"])
    writer = csv.writer(file, delimiter=form.delimiter, quoting=quoting, lineterminator=end)
    writer.writerows(rows)
    text = file.getvalue().encode()
    if chance.random() < 0.1:
        text = b"\xef\xbb\xbf" + text
    if chance.random() < 0.2:
        text = text.removesuffix(end.encode())
    for _ in range(chance.choice([0, 0, 1, 2])):
        at = chance.randrange(len(text) + 1)
        some = (b'"', b"\xff", b"\n", b"\r", b",", b"", b'""', b"\r\n", b"\n\n", b"\xed\xa0\x80")
        text = text[:at] + chance.choice(some) + text[at + chance.choice([0, 1, 3]) :]
    return text


FORMS = [
    RecordForm("csv"),
    RecordForm("csv", delimiter=";"),
    RecordForm("csv", NAMES),
    RecordForm("csv", NAMES, "\t"),
    RecordForm("csv", (*NAMES[:3], *reversed(NAMES[3:])), "|"),
]


@pytest.mark.parametrize("form", FORMS, ids=["names", "names;", "columns", "tabs", "order"])
@pytest.mark.parametrize("seed", range(3))
def test_csv_is_read_alike(form: RecordForm, seed: int) -> None:
    """Values of every kind, quotes, line ends, marks and bytes of no text, wherever they stand."""
    chance = random.Random(seed)
    values = []
    for _ in range(150):
        names = list(form.columns or NAMES)
        if not form.columns:
            chance.shuffle(names)
            names = names[: chance.choice([8, 8, 8, 5])]
            names = chance.choice([names, names, names, [*names[:-1], names[0]]])
        order = [NAMES.index(name) for name in names]
        rows = [row_of(chance) for _ in range(chance.choice([0, 1, 3, 9]))]
        rows = [[*(row[at] for at in order if at < len(row)), *row[8:]] for row in rows]
        if not form.columns:
            rows.insert(0, names)
        values.append(text_of(chance, form, rows) if rows else b" \r\n")
    events, reasons = check_alike(source_of(form, chance.choice([1, 1_000])), values)
    assert events > 50
    assert reasons >= {"csv", "wrong_type", "out_of_range"}


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet='",\r\n;a\ufeff', max_size=14), st.sampled_from([FORMS[0], FORMS[1]]))
def test_rows_are_cut_alike(text: str, form: RecordForm) -> None:
    """Both readers, of which one uses expressions and one goes by characters, find the same."""
    source = source_of(form)
    value = b"a\n" + text.encode()
    decoder = CsvDecoder(source)
    rows = csv_rows(value, source)
    assert rows is not None
    columns, found = decoder._read(value)
    assert columns == ("a",)
    got = [decoder._values(row) if is_sound else None for row, is_sound in found]
    one = [None if row is None or len(row) != 1 else row[0] for row in got]
    assert one == [None if row is None else row.get("a", "") for row in rows]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.text(max_size=8), min_size=2, max_size=2), min_size=1, max_size=5))
def test_rows_of_the_standard_writer_come_back(rows: list[list[str]]) -> None:
    """Whatever the values hold: quotes, line feeds, marks."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\r\n").writerows([["a", "b"], *rows])
    decoder = CsvDecoder(source_of(FORMS[0]))
    _, found = decoder._read(file.getvalue().encode("utf-8", "surrogatepass"))
    sound = [row for row, is_sound in found if is_sound]
    kept = [row for row in rows if _is_utf8("".join(row))]
    assert [decoder._values(row) for row in sound] == kept


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def test_a_broken_row_voids_itself_alone() -> None:
    """Rows behind a quote that is never closed are events."""
    source = source_of(FORMS[0])
    value = b'at,type,Device Id\n1,a,d\n2,a,"d\n3,a,d\n4,a\n5,a,d"x\n6,a,"d"\n'
    assert check_alike(source, [value]) == (3, {"csv"})


def test_a_hostile_record_of_broken_rows_has_few_letters() -> None:
    """Each broken row has a letter of its own, as its quote may be closed by that of another."""
    source = source_of(FORMS[2])
    batch = Decoder(source).decode([run_of([b'"x\n' * 5_000], topic=source.topic)])
    assert [len(item.events or ()) for item in batch.aside] == [1] * 100 + [4_900]


def test_numbers_are_texts_as_a_field_with_that_option_takes_them() -> None:
    """Signs, and zeros before digits, are; texts of floats that are not numbers are not."""
    size = (b"nan", b"-INF", b"infinity", b"1e999", b"1", b"+.5", b"007.25")
    rows = b"".join(b"5,a,d,+7,TRUE,%s\n" % one for one in size)
    value = b"at,type,Device Id,delay,vip,size\n" + rows
    assert check_alike(source_of(FORMS[0]), [value]) == (3, {"wrong_type", "out_of_range"})
