"""Get an answer as a polars frame; it comes as Arrow, without a Python object for each row.

Start `make demo` (the flights of 2013), then, with `pip install "treasure-map[frame]"`:

    python examples/frame.py [URL]
"""

import sys

import polars as pl

from treasure_map import QueryClient, QueryFailedError, Range

DAYS = Range("2013-01-01", "2014-01-01", step="1d", group=["origin"], measures=["count"])


def main(url: str = "http://127.0.0.1:6066") -> None:
    """Print the busiest day of each airport."""
    with QueryClient(url) as client:
        days = client.frame("departures_hour", DAYS)
    busiest = days.sort("count", descending=True).unique("origin", keep="first")
    starts = pl.col("window_start").dt.date()
    for origin, day, count in busiest.sort("origin").select("origin", starts, "count").iter_rows():
        print(origin, day, count)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except QueryFailedError as error:
        sys.exit(str(error))
