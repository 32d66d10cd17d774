"""The true cells of each layer of the flights' map, recomputed from the file with plain polars.

This shares nothing with the flow it checks but the reading of the file: times are built as dates
and clock times, and measures from the file's rows. Columns are ``key_<field>``, ``window_start``
(ms) and one for each measure, by its name in the answers.
"""

from __future__ import annotations

import fractions

import polars as pl

_HOUR, _DAY, _MONTH = "1h", "1d", "1mo"
# By layer: the kind of event counted, the key fields, and the window's size.
LAYERS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "scheduled_hour": ("scheduled", ("origin", "carrier"), _HOUR),
    "scheduled_day": ("scheduled", ("origin", "carrier"), _DAY),
    "scheduled_month": ("scheduled", ("carrier",), _MONTH),
    "departures_hour": ("departed", ("origin", "carrier"), _HOUR),
    "departures_day": ("departed", ("origin", "carrier"), _DAY),
    "departures_month": ("departed", ("carrier",), _MONTH),
    "arrivals_day": ("arrived", ("origin", "destination"), _DAY),
    "arrivals_by_destination_day": ("arrived", ("destination",), _DAY),
    "arrivals_by_destination_month": ("arrived", ("destination",), _MONTH),
    "cancellations_day": ("cancelled", ("origin", "carrier"), _DAY),
    "cancellations_month": ("cancelled", ("carrier",), _MONTH),
}
MONTH_LAYERS = tuple(name for name, (_, _, window) in LAYERS.items() if window == _MONTH)

_MEASURES = {
    "scheduled": [pl.len().cast(pl.Int64).alias("count")],
    "cancelled": [pl.len().cast(pl.Int64).alias("count")],
    "departed": [
        pl.len().cast(pl.Int64).alias("count"),
        pl.col("dep_delay").sum().alias("sum_delay_min"),
        pl.col("dep_delay").mean().alias("mean_delay_min"),
        pl.col("dep_delay").min().alias("min_delay_min"),
        pl.col("dep_delay").max().alias("max_delay_min"),
        pl.col("dep_delay").alias("variance_delay_min"),
    ],
    "arrived": [
        pl.len().cast(pl.Int64).alias("count"),
        pl.col("arr_delay").mean().alias("mean_delay_min"),
        pl.col("arr_delay").max().alias("max_delay_min"),
        pl.col("distance").sum().alias("sum_distance_miles"),
        pl.col("air_time").mean().alias("mean_air_time_min"),
    ],
}  # fmt: skip


def truth(layer: str, flights: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of ``layer``, sorted by window, then key.

    Args:
        layer: a name of ``LAYERS``.
        flights: the file's rows, as :func:`app.demo.flights.events.read_flights` gives them.
    """
    what, key, window = LAYERS[layer]
    rows = _happened(flights, what).with_columns(
        pl.col("moment").dt.truncate(window).dt.epoch("ms").alias("window_start"),
        pl.col("dest").alias("destination"),
    )
    by = ["window_start", *key]
    cells = rows.group_by(by).agg(_MEASURES[what]).sort(by)
    if "variance_delay_min" in cells.columns:
        values = [_variance(delays) for delays in cells["variance_delay_min"].to_list()]
        cells = cells.with_columns(pl.Series("variance_delay_min", values, pl.Float64))
    return cells.rename({name: f"key_{name}" for name in key})


def _happened(flights: pl.DataFrame, what: str) -> pl.DataFrame:
    """Return the flights to which ``what`` happened, each with the ``moment`` of it."""
    scheduled = _clock("sched_dep_time", pl.date("year", "month", "day"))
    departed = scheduled + pl.duration(minutes="dep_delay")
    landed = _clock("arr_time", departed.dt.date())
    arrived = pl.when(landed < departed).then(landed.dt.offset_by("1d")).otherwise(landed)
    moments = {
        "scheduled": scheduled, "departed": departed, "arrived": arrived, "cancelled": scheduled,
    }  # fmt: skip
    needed = {
        "scheduled": pl.lit(value=True),
        "departed": pl.col("dep_time").is_not_null(),
        "arrived": pl.col("arr_time").is_not_null(),
        "cancelled": pl.col("dep_time").is_null(),
    }
    return flights.filter(needed[what]).with_columns(moment=moments[what])


def _clock(hhmm: str, date: pl.Expr) -> pl.Expr:
    """Return the moment at which a clock shows ``hhmm`` on ``date``; 2400 ends that day."""
    hours, minutes = pl.col(hhmm) // 100, pl.col(hhmm) % 100
    return date.cast(pl.Datetime("ms")) + pl.duration(hours=hours, minutes=minutes)


def _variance(delays: list[int | None]) -> float | None:
    """Return the population variance without rounding before the last step."""
    values = [delay for delay in delays if delay is not None]
    if not values:
        return None
    count = len(values)
    mean = fractions.Fraction(sum(values), count)
    return float(fractions.Fraction(sum(value * value for value in values), count) - mean * mean)
