"""The list of record formats: a format added to it is decoded, and nothing else has to know."""

from __future__ import annotations

import dataclasses

import orjson
import polars as pl
import pytest
from click import UsageError

from agents.decode import formats
from agents.decode.event_batch import SetAside
from agents.decode.records import Decoder
from agents.fold.content import Before
from agents.fold.layers import Folder
from app.commands.deadletters import _check_reasons
from app.load import writers
from app.load.plan import processes_for
from tables.model import ledger
from tables.model.layer import Map
from tables.model.window import NEVER_MS
from tables.record.chunk import Run
from tables.state.input_plan import plans_of
from tests.support.common import flight, run_of, small_map
from tests.support.tsv_format import MAGIC, TSV, WRITER, tsv

MAP: Map = small_map()
SAID = (("Content-Type", b"text/tab-separated-values; charset=utf-8"),)


def rows(*times: object) -> pl.DataFrame:
    """Return flights at these times."""
    count = len(times)
    return pl.DataFrame(
        {
            "at": [str(at) for at in times], "type": ["flight.departed"] * count,
            "origin": ["JFK"] * count, "carrier": ["UA"] * count, "delay": [2] * count,
        }
    )  # fmt: skip


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add a format to the list of them."""
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, TSV))


def mixed_run() -> Run:
    """Return a run of JSON and of the added format, told by header and by first bytes, bad too."""
    values = [
        flight(1),
        tsv(rows(2, 3)),
        tsv(rows(4, 5)).removeprefix(MAGIC),
        tsv(rows("2013-01-01T00:00:00Z", "soon")),
        MAGIC + b"at\ttype\n1\ta\ttoo\tmany\n",
        tsv(rows().select("at", "type")),
        flight(6),
    ]
    run = run_of(list(values))
    run.headers = {2: SAID}
    return run


@pytest.mark.usefixtures("added")
def test_a_format_that_is_added_to_the_list_is_decoded_and_folded() -> None:
    """Its events are like all others, and its bad events are counted and set aside."""
    decoder, folder = Decoder(MAP.sources[0]), Folder(plans_of(MAP)["flights.raw"])
    run = mixed_run()
    batch = decoder.decode([run])
    assert batch.frame["time"].to_list() == [1, 2, 3, 4, 5, 1_356_998_400_000, 6]
    (content,) = folder.fold(batch, {0: Before(NEVER_MS, {})})
    assert ledger.imbalances(content.ledger, 7, ["hour"]) == []
    assert {name: count for name, count in content.ledger.items() if count} == {
        "records.with_events": 5, "records.empty": 1,
        "records.unreadable": 1, "unreadable.tsv": 1,
        "events.decoded": 8, "events.classified": 7,
        "events.malformed": 1, "malformed.out_of_range": 1,
        "layer.hour.selected": 7, "layer.hour.folded": 6, "layer.hour.too_late": 1,
    }  # fmt: skip
    malformed = next(item for item in batch.aside if item.reason == "out_of_range")
    assert (malformed.record, malformed.events) == (3, (1,))
    assert decoder.part_of(run, malformed) == (tsv(rows("soon")), TSV.content_type)
    unreadable = next(item for item in batch.aside if item.reason == "tsv")
    assert decoder.part_of(run, unreadable) == (run.values[4], TSV.content_type)


@pytest.mark.usefixtures("added")
def test_plain_chunks_find_an_added_format_behind_json() -> None:
    """A chunk without headers is decoded as JSON at once; the other values are tried then."""
    batch = Decoder(MAP.sources[0]).decode([run_of([flight(1), tsv(rows(2, 3)), flight(4)])])
    assert batch.frame["time"].to_list() == [1, 2, 3, 4]
    assert batch.ledgers[0].counts == {"records.with_events": 3, "events.decoded": 4}


@pytest.mark.usefixtures("added")
def test_messages_name_an_added_format() -> None:
    """An unknown content type is told all that there are, and a letter's reasons have its own."""
    run = run_of([flight(1)])
    run.headers = {0: (("content-type", b"application/xml"),)}
    (item,) = Decoder(MAP.sources[0]).decode([run]).aside
    assert item.detail == (
        "got 'application/xml'; want one of application/json, application/x-ndjson,"
        " application/vnd.apache.arrow.stream, text/csv, application/avro,"
        " text/tab-separated-values"
    )
    _check_reasons(("tsv", "arrow"))
    with pytest.raises(UsageError, match=r"unknown 'xml'; want one of arrow, .*, tsv, "):
        _check_reasons(("xml",))


def test_without_it_the_same_records_are_not_events() -> None:
    """This proves that the tests above show the list at work."""
    decoder, run = Decoder(MAP.sources[0]), mixed_run()
    batch = decoder.decode([run])
    assert batch.frame["time"].to_list() == [1, 6]
    assert batch.ledgers[0].counts["unreadable.content_type"] == 1
    with pytest.raises(UsageError, match="unknown 'tsv'"):
        _check_reasons(("tsv",))


def test_a_format_that_is_not_told_is_json_or_lines() -> None:
    """The letter of a whole record without header has a content type only if its bytes tell it."""
    decoder, run = Decoder(MAP.sources[0]), run_of([b"{", b"\xff\xff\xff\xff"])
    parts = [decoder.part_of(run, SetAside("dead", 0, i, None, "x", "")) for i in (0, 1)]
    assert parts == [(b"{", ""), (b"\xff\xff\xff\xff", "application/vnd.apache.arrow.stream")]


def test_names_and_media_types_and_first_bytes_tell_formats_apart() -> None:
    """No format takes the records of another; JSON, which has no first bytes, takes the rest."""
    names = [form.name for form in formats.FORMATS]
    types = [form.content_type for form in formats.FORMATS]
    assert names == ["json", "ndjson", "arrow", "csv", "avro"]
    assert len(set(types)) == len(types)
    assert all(name == name.lower() for name in types)
    magics = [magic for form in formats.FORMATS for magic in form.magics]
    assert all(magics)
    assert not any(a.startswith(b) for a in magics for b in magics if a is not b)
    for magic in magics:
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(magic)


def test_every_format_has_a_writer_of_its_name() -> None:
    """A load then has the format, and a worker's cells are compared with the written events."""
    assert [writer.name for writer in writers.WRITERS] == [f.name for f in formats.FORMATS]
    for writer, form in zip(writers.WRITERS, formats.FORMATS, strict=True):
        assert writer.headers == (("content-type", form.content_type.encode()),)


@pytest.mark.usefixtures("added")
def test_a_writer_that_is_added_is_one_of_a_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, headers and shares of a mix come from the list of writers."""
    slow = dataclasses.replace(WRITER, events_per_process=10)
    monkeypatch.setattr(writers, "WRITERS", (*writers.WRITERS, slow))
    assert writers.names() == ["json", "ndjson", "arrow", "csv", "avro", "tsv", "mixed"]
    assert slow.headers == (("content-type", b"text/tab-separated-values"),)
    assert writers.writers_of("mixed")[-1] is slow
    assert processes_for(25, "tsv", 8, 4) == 3
    assert processes_for(25, "mixed", 8, 4) == 3
    assert processes_for(25, "json", 8, 4) == 1
    assert [writers.record_events_max(name, 9) for name in ("json", "tsv", "mixed")] == [1, 9, 9]
