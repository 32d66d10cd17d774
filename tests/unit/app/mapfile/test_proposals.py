"""Proposals of maps: a sample gives a map that takes it, or an error that says what it lacks."""

from __future__ import annotations

import datetime as dt
import gzip
import json
import random
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.decode.event_batch import EventBatch
from agents.decode.records import Decoder
from app.load.input_file import InputFile
from app.load.input_piece import InputError
from app.mapfile.load import parse_map
from app.mapfile.proposal_text import proposal_text, toml_text
from app.mapfile.propose import NAME_CHARS_MAX, propose, safe_name
from app.mapfile.sample import (
    EVENTS_MAX,
    Sample,
    SampleError,
    sample_of_file,
    sample_of_records,
)
from app.mapfile.section import name_problem
from tables.model.layer import Map
from tables.record.chunk import Run
from tests import ROOT

NOW_MS = 1_764_000_000_000
AT_MS = 1_711_872_000_000
NAMES = st.text(st.characters(codec="utf-8"), max_size=5) | st.sampled_from(
    ["id", "eventId", "deviceId", "count", "type", "key_a", "time", "min_x", "x", "row", "a.b"]
)  # fmt: skip
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.integers(0, 3) | st.floats()
    | st.text(st.characters(codec="utf-8"), max_size=4)
    | st.sampled_from(["2024-03-31T08:00:00Z", AT_MS, AT_MS // 1_000])
    | st.sampled_from(["7", "7.5", "true", 7.0, 7, "007", "1e3"])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=6)
TIMED = st.fixed_dictionaries(
    {"at": st.integers(AT_MS, AT_MS + 10**9), "kind": st.sampled_from(["a.b", "c", "d e"])},
    optional={"x": VALUES, "deviceId": st.sampled_from(["d1", "d2"]), "in": OBJECTS},
)


def proposed(events: list[Any], name: str = "shop") -> tuple[str, Map]:
    """Return the text of the proposal for events, and its map."""
    text = proposal_text(propose(Sample("sample", events), name, "shop.raw"), NOW_MS)
    return text, parse_map(text, "proposed")


def decoded(themap: Map, lines: list[bytes]) -> EventBatch:
    """Return the events of records, one a line, under the only source of a map."""
    count = len(lines)
    run = Run("shop.raw", 0, 0, count, range(count), list(lines), [-1] * count, {})
    return Decoder(themap.sources[0]).decode([run])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(OBJECTS, min_size=1, max_size=8) | st.lists(TIMED, min_size=1, max_size=30))
def test_a_proposal_passes_its_check_and_takes_its_sample(events: list[dict[str, Any]]) -> None:
    """A person begins with a map that works, whatever the events are like."""
    lines = [msgspec.json.encode(event) for event in events]
    sample = [msgspec.json.decode(line) for line in lines]
    try:
        text, themap = proposed(sample)
    except SampleError as error:
        assert re.search("want in each event a text of RFC 3339|want a text that says", str(error))  # noqa: PT017 - most samples raise nothing
        return
    batch = decoded(themap, lines)
    assert batch.frame.height == len(lines), (text, batch.aside)
    for layer in themap.layers:
        if layer.source is not None:
            selected = batch.frame
            if layer.events != ("**",):
                selected = selected.filter(pl.col("type").is_in(list(layer.events)))
            for field in layer.key:
                assert selected[field.name].null_count() == 0, text


def readings(count: int = 200) -> list[dict[str, Any]]:
    """Return events as devices send them: nested, of two types, one in fifty 2 s late."""
    return [
        {
            "meta": {"sentAt": AT_MS + 1_000 * i - (3_000 if i % 50 == 49 else 0), "id": f"e{i}"},
            "eventType": "reading.temp" if i % 4 else "status",
            "payload": {
                "device": {"deviceId": f"d{i % 7}"},
                "count": i % 5,
                "tags": [1, 2],
                "mix": i % 2 == 0 or "a",
                "nothing": None,
            }
            | ({"temp": i / 8} if i % 4 else {"ok": True}),
        }
        for i in range(count)
    ]


def test_a_proposal_finds_roles_keys_measures_and_lateness() -> None:
    """Names of paths are made safe, and each type has a tree of its own."""
    text, themap = proposed(readings())
    [source] = themap.sources
    assert (source.time_path, source.time_unit_ms) == (("meta", "sentAt"), 1)
    assert (source.type_field, source.id_path) == ("eventType", ("meta", "id"))
    assert {field.name: field.at for field in source.fields} == {
        "device_id": ("payload", "device", "deviceId"),
        "payload_count": ("payload", "count"),
        "temp": ("payload", "temp"),
    }
    base = themap.layer("reading_temp_1m")
    assert base.events == ("reading.temp",)
    assert [field.name for field in base.key] == ["device_id"]
    assert {measure.name for measure in base.measures} >= {"count", "mean_temp", "max_temp"}
    assert (base.max_out_of_orderness_ms, base.allowed_lateness_ms) == (2_000, 2_000)
    assert [layer.name for layer in themap.layers if layer.finer] == [
        f"{stem}_{window}"
        for stem in ("reading_temp", "status")
        for window in ("1h", "day", "month")
    ]
    for line in (
        "# A key: 7 distinct values.",
        "#     payload.mix: of mixed types: 100 bool, 100 string",
        "#     payload.nothing: null in all events",
        "#     payload.tags: an array",
    ):
        assert line in text


def test_a_proposal_takes_values_as_they_come() -> None:
    """Numbers in texts, whole floats that name a thing, numbers and texts, and times in text."""
    events = [
        {
            "ts": f"{AT_MS // 1_000 + i}.25", "type": "a", "device": float(i % 3),
            "count": str(i), "size": [i, f"{i}.5"][i % 2], "ok": "true", "zip": "12345",
            "who": [i % 3, "b"][i % 2], "phone": str(4_900 + i % 2), "few": "5" if i < 9 else None,
        }
        for i in range(100)
    ]  # fmt: skip
    text, themap = proposed(events)
    (source,) = themap.sources
    assert (source.time_unit_ms, source.time_text, source.time_fraction) == (1_000, True, True)
    for line in (
        'time = {path = "ts", text = true, fraction = true}',
        "# The time: seconds since 1970 as texts, in every event.",
        'device = {type = "int", whole = true}',
        'event_count = {path = "count", type = "int", text = true}',
        'size = {type = "float", text = true}',
        'ok = {type = "bool", text = true}',
        'who = {type = "string", digits = true}',
        'zip = "string"', 'phone = "string"', 'few = "string"',
    ):  # fmt: skip
        assert line in text, text
    batch = decoded(themap, [msgspec.json.encode(event) for event in events])
    assert batch.frame["time"].to_list() == [AT_MS + 1_000 * i + 250 for i in range(100)]
    assert batch.frame["device"].to_list() == [i % 3 for i in range(100)]


def test_a_proposal_asks_for_the_zone_of_local_times() -> None:
    """It takes them as UTC, and says so."""
    events = [{"at": f"2024-03-31T08:00:{i:02d}", "type": "a"} for i in range(60)]
    text, themap = proposed(events)
    assert themap.sources[0].time_offset == "Z"
    assert 'time = {path = "at", zone = "UTC"}' in text
    assert "# These have no offset: are they in UTC?" in text


@pytest.mark.parametrize(("zone", "is_told"), [(None, True), ("UTC", False)])
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_times_of_a_file_without_zone_are_said_to_be_read_as_utc(
    tmp_path: Path, form: str, zone: str | None, is_told: bool
) -> None:
    """A local time that is taken for UTC would be hours wrong, and nobody would know."""
    file = tmp_path / f"s.{form}"
    at = dt.datetime(2025, 7, 5, 22, 2, 56)  # noqa: DTZ001 - the file has no zone
    frame = pl.DataFrame({"at": [at, at], "device": ["a", "b"]})
    frame = frame.with_columns(pl.col("at").dt.replace_time_zone(zone))
    if form == "parquet":
        frame.write_parquet(file)
    else:
        frame.write_csv(file, datetime_format=f"%Y-%m-%d %H:%M:%S{' UTC' if zone else ''}")
    text = proposal_text(propose(read_sample(file), "shop", "shop.raw"), NOW_MS)
    assert ("no offset in the file, and were read as UTC" in text) == is_told


def test_a_proposal_for_a_topic_says_how_its_records_are_packed() -> None:
    """Arrays of events, and gzip."""
    events = [{"at": AT_MS + i, "type": "a"} for i in range(10)]
    values = [gzip.compress(json.dumps(events[i : i + 5]).encode()) for i in (0, 5)]
    sample = sample_of_records("topic shop.raw", [values, [b"\x1f\x8b"]])
    assert (sample.events, sample.refused) == (events, 1)
    themap = parse_map(proposal_text(propose(sample, "shop", "shop.raw"), NOW_MS), "proposed")
    assert (themap.sources[0].arrays, themap.sources[0].compression) == (True, "gzip")
    assert decoded(themap, values).frame["time"].to_list() == [AT_MS + i for i in range(10)]


def test_fields_that_are_not_used_can_be_taken_as_they_stand() -> None:
    """A person takes away the # of a line, and the map is one still."""
    events = [{"at": AT_MS + i, "type": "a", "note": f"n{i}"} for i in range(100)]
    text, themap = proposed(events)
    assert [field.name for field in themap.sources[0].fields] == ["event_type"]
    more = parse_map(text.replace('# note = "string"', 'note = "string"'), "more")
    assert [field.name for field in more.sources[0].fields] == ["event_type", "note"]


def test_many_types_share_one_tree() -> None:
    """A tree for each of hundreds of types would be of no use; their key tells them apart."""
    events = [{"at": AT_MS, "type": f"t{i % 30}", "who": "a"} for i in range(300)]
    text, themap = proposed(events)
    assert {layer.events for layer in themap.layers if layer.source} == {("**",)}
    assert {tuple(field.name for field in layer.key) for layer in themap.layers} == {
        ("event_type",)
    }
    assert "#     and 10 more" in text


def test_a_text_that_is_used_as_the_type_is_a_key_too() -> None:
    """Readings without a type are asked for by device; another name of it adds nothing."""
    events = [
        {"ts": AT_MS + i, "device": f"d{i % 3}", "deviceId": i % 3, "light": i % 3 == 0, "temp": i}
        for i in range(200)
    ]
    _, themap = proposed(events)
    assert themap.sources[0].type_field == "device"
    assert [field.name for field in themap.layer("events_1m").key] == ["device", "light"]


def test_a_status_is_a_key_and_not_measured() -> None:
    """The mean of the status of HTTP says nothing."""
    statuses = [200, 404, 500]
    events = [
        {"at": AT_MS + i, "type": "hit", "status": statuses[i % 3], "took": i} for i in range(99)
    ]
    _, themap = proposed(events)
    layer = themap.layer("hit_1m")
    assert [field.name for field in layer.key] == ["status"]
    assert {measure.field for measure in layer.measures} == {None, "took"}


@given(
    st.lists(st.integers(0, 9_999) | st.floats(0, 99).map(lambda x: round(x, 2)), min_size=20),
    st.lists(st.sampled_from(["-", "", "N/A", "null", "NaN", "\\N"]), min_size=1, max_size=20),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_a_number_may_have_a_text_for_its_absence(
    numbers: list[float], absent: list[str], chance: random.Random, is_text: bool
) -> None:
    """An access log writes ``-`` for no bytes; the sum is that of the others."""
    values: list[Any] = [str(number) if is_text else number for number in numbers] + absent
    chance.shuffle(values)
    events = [{"at": AT_MS, "type": "a", "bytes": value} for value in values]
    text, themap = proposed(events)
    kind = "float" if any(type(number) is float for number in numbers) else "int"
    assert f'bytes = {{type = "{kind}", text = true, on_error = "null"}}' in text
    batch = decoded(themap, [msgspec.json.encode(event) for event in events])
    assert batch.frame.height == len(events)
    assert sorted(batch.frame["bytes"].drop_nulls().to_list()) == sorted(numbers)


def test_words_between_numbers_stay_texts() -> None:
    """A word is a value; only a text for the absence of a number becomes null."""
    events = [{"at": AT_MS, "type": "a", "size": ["12", "large"][i % 9 == 8]} for i in range(90)]
    text, _ = proposed(events)
    assert 'size = "string"' in text


def test_the_map_of_a_file_in_no_order_includes_all_its_events() -> None:
    """Exports have the newest event first: with less lateness nearly all would be too late."""
    events = [{"at": AT_MS - 60_000 * i, "type": "a", "who": "b"} for i in range(3_000)]
    text, themap = proposed(events)
    base = themap.layer("a_5m")
    assert base.max_out_of_orderness_ms >= 60_000 * 2_999
    assert "# The file is not in order of time" in text

    topic = proposal_text(propose(Sample("topic", events, partitions=1), "shop", "s.raw"), NOW_MS)
    assert 'max_out_of_orderness = "1m"' in topic


@pytest.mark.parametrize(
    ("event", "says"),
    [
        ({"type": "a"}, "got nothing like it"),
        ({"type": "a", "at": "2024-03-31 08:00"}, "at has '2024-03-31 08:00', without the form"),
        ({"at": AT_MS}, "a text that says the kind of event"),
        ({}, "there is no time that every event has"),
    ],
)
def test_a_sample_without_time_or_type_is_told_what_an_event_needs(
    event: dict[str, Any], says: str
) -> None:
    """No map can be made of it, and the producers can mend that."""
    with pytest.raises(SampleError, match=re.escape(says)):
        proposed([event])


def test_times_of_other_forms_are_converted_as_the_page_says(tmp_path: Path) -> None:
    """A reader of an access log gets from the error to a map."""
    page = (ROOT / "docs/trying.md").read_text()
    script = page.split("cat > with_time.py <<'END'\n")[1].split("\nEND\n")[0]
    visits = page.split("cat > visits.csv <<'END'\n")[1].split("END\n")[0]
    file = tmp_path / "visits.csv"
    file.write_text(visits)
    with pytest.raises(SampleError, match=r"convert a file: docs/trying\.md, Times of other form"):
        propose(read_sample(file), "visits", "visits.raw")

    command = [sys.executable, "-c", script]
    done = subprocess.run(command, input=visits, capture_output=True, text=True, check=True)
    file = tmp_path / "visits.ndjson"
    file.write_text(done.stdout)
    roles = propose(read_sample(file), "visits", "visits.raw").roles
    at = dt.datetime(2015, 5, 17, 10, 5, tzinfo=dt.UTC)
    expected = [at + dt.timedelta(seconds=3), at + dt.timedelta(seconds=43)]
    assert roles.time.times_ms == [1_000 * int(time.timestamp()) for time in expected]


def test_a_time_that_some_events_lack_is_named() -> None:
    """A person sees which field to fill."""
    with pytest.raises(SampleError, match="got at is in 1 of 2 events"):
        proposed([{"type": "a", "at": "2024-03-31T08:00:00Z"}, {"type": "a"}])


def read_sample(path: Path, events_max: int = EVENTS_MAX) -> Sample:
    """Return the sample of a file, as the command reads it."""
    pieces = InputFile(str(path)).pieces(events_max)
    return sample_of_file(str(path), ((piece.lines, piece.assumed_utc) for piece in pieces))


@pytest.mark.parametrize("name", ["s.ndjson", "s.json", "s.csv", "s.parquet"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_form_of_file_gives_the_same_events(tmp_path: Path, name: str, packed: bool) -> None:
    """Whatever a person has, the map is the same."""
    events = [{"at": f"2024-03-31T08:00:0{i}Z", "type": "a", "n": i, "x": None} for i in range(9)]
    path = tmp_path / name
    frame = pl.DataFrame(events).with_columns(pl.col("at").str.to_datetime(time_zone="UTC"))
    if name == "s.ndjson":
        path.write_text("\n".join(map(json.dumps, events)) + "\n\nnot json\n[1]\n")
    elif name == "s.json":
        path.write_text(json.dumps(events))
    elif name == "s.csv":
        pl.DataFrame(events).write_csv(path)
    else:
        frame.write_parquet(path)
    if packed:
        data = gzip.compress(path.read_bytes())
        path = path.with_name(f"{name}.gz")
        path.write_bytes(data)
    if packed and name == "s.parquet":
        with pytest.raises(InputError, match="want it plain; run: gzip -d"):
            read_sample(path)
        return
    sample = read_sample(path)
    assert sample.refused == (2 if name == "s.ndjson" else 0)
    assert [event["n"] for event in sample.events] == list(range(9))
    assert {event["x"] for event in sample.events} == {None}
    times = [dt.datetime.fromisoformat(event["at"]) for event in sample.events]
    assert times == frame["at"].to_list()
    proposed(sample.events)


@pytest.mark.parametrize("name", ["s.ndjson", "s.csv"])
def test_of_a_long_file_the_first_events_are_read(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Types of columns are theirs too: a text that comes later changes nothing."""
    events = [{"at": "2024-03-31T08:00:00Z", "type": "a", "n": str(i)} for i in range(20_000)]
    events[-1]["n"] = "x"
    path = tmp_path / name
    if name == "s.csv":
        pl.DataFrame(events).write_csv(path)
    else:
        path.write_text("\n".join(map(json.dumps, events)))
    monkeypatch.setattr("app.mapfile.sample.EVENTS_MAX", 5_000)
    sample = read_sample(path, 5_000)
    assert (len(sample.events), sample.is_cut) == (5_000, True)
    assert {type(event["n"]) for event in sample.events} == {int if name == "s.csv" else str}
    monkeypatch.setattr("app.mapfile.sample.BYTES_MAX", 100_000)
    monkeypatch.setattr("app.mapfile.sample.EVENTS_MAX", 50_000)
    sample = read_sample(path)
    assert (len(sample.events) < 20_000, sample.is_cut) == (True, True)


def test_files_without_events_are_refused(tmp_path: Path) -> None:
    """The message says which files have events."""
    path = tmp_path / "s.ndjson"
    path.write_text("1\nx\n")
    with pytest.raises(SampleError, match="got 2 lines that are not JSON objects"):
        read_sample(path)
    with pytest.raises(InputError, match="No such file"):
        read_sample(tmp_path / "none.parquet")
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(InputError, match="it does not begin as Parquet does"):
        read_sample(tmp_path / "bad.parquet")


@given(st.text(st.characters(codec="utf-8")))
def test_every_text_stands_in_toml(text: str) -> None:
    """Paths have any letters."""
    assert tomllib.loads(f"x = {toml_text(text)}")["x"] == text


@given(st.text())
def test_safe_names_are_safe(text: str) -> None:
    """Or empty, if the text has no letter."""
    name = safe_name(text, NAME_CHARS_MAX)
    assert not name or name_problem(name) is None
