"""Ask a worker for cells, for rows of any range and step, and for the first keys by a measure.

Start `make demo` (the flights of 2013), then, with `pip install treasure-map`:

    python examples/query.py [URL]
"""

import sys

from treasure_map import QueryClient, QueryFailedError, Range

TIMES = ("2013-01-01", "2014-01-01")
MONTHS = Range(*TIMES, step="month", group=["carrier"], measures=["count"])


def main(url: str = "http://127.0.0.1:6066") -> None:
    """Print three answers."""
    with QueryClient(url) as client:
        answer = client.cells("departures_hour", {"origin": "JFK"}, "2013-01-01", "2013-01-02")
        print(f"{len(answer.cells)} cells of JFK on the first day of the year")
        rows = client.rows("departures_hour", MONTHS)
        for row in rows.rows:
            print(row.key["carrier"], row.window_start, row.measures["count"])
        print(f"these rows are {rows.exactness}")
        [first] = client.top("departures_hour", "count", Range(*TIMES), n=1).cells
        print("most departures:", first.key, first.measures["count"])


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except QueryFailedError as error:
        sys.exit(str(error))
