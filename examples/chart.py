"""Draw an answer as a chart: the departures of each month, in a file of SVG for any browser.

Start `make demo` (the flights of 2013), then, with `pip install treasure-map`:

    python examples/chart.py [URL [FILE]]
"""

import datetime as dt
import pathlib
import sys

from treasure_map import QueryClient, QueryFailedError, Range

MONTHS = Range("2013-01-01", "2014-01-01", step="month", group=[], measures=["count"])


def main(url: str = "http://127.0.0.1:6066", file: str = "chart.svg") -> None:
    """Write one bar for each month that has departures."""
    with QueryClient(url) as client:
        rows = client.rows("departures_hour", MONTHS).rows
    counts = [int(row.measures["count"] or 0) for row in rows]
    shapes = []
    for number, (row, count) in enumerate(zip(rows, counts, strict=True)):
        left, height = 50 * number + 5, 200 * count // max(counts)
        month = dt.datetime.fromtimestamp(row.window_start / 1_000, dt.UTC)
        shapes.append(f'<rect x="{left}" y="{220 - height}" width="40" height="{height}"/>')
        shapes.append(f'<text x="{left}" y="{215 - height}">{count:,}</text>')
        shapes.append(f'<text x="{left}" y="235">{month:%b}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {50 * len(rows)} 240"'
    style = 'fill="steelblue" font-family="sans-serif" font-size="12">'
    pathlib.Path(file).write_text("\n".join([f"{head} {style}", *shapes, "</svg>\n"]), "utf-8")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except QueryFailedError as error:
        sys.exit(str(error))
