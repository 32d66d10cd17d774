"""Watch cells change and close, from the worker's stream of server-sent events.

Start `make demo` (the flights of 2013), then, with `pip install treasure-map`:

    python examples/live.py [URL [CELLS]]
"""

import itertools
import sys

from treasure_map import QueryClient, QueryFailedError


def main(url: str = "http://127.0.0.1:6066", cells_max: str = "20") -> None:
    """Print the open cells, then the changed ones, until `cells_max` are printed."""
    with QueryClient(url) as client:
        for cell in itertools.islice(
            client.live("departures_hour", since="open", interval_ms="100"), int(cells_max)
        ):
            state = "closed" if cell.closed else "open"
            print(cell.key["origin"], cell.window_start, cell.measures["count"], state)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except QueryFailedError as error:
        sys.exit(str(error))
