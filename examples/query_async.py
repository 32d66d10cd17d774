"""Ask a worker several questions at once, from asyncio.

Start `make demo` (the flights of 2013), then, with `pip install "treasure-map[async]"`:

    python examples/query_async.py [URL]
"""

import asyncio
import sys

from treasure_map import QueryFailedError, Range
from treasure_map.query_async import AsyncQueryClient

YEAR = Range("2013-01-01", "2014-01-01", group=["carrier"], measures=["count"])
FAMILIES = ("scheduled_hour", "departures_hour", "cancellations_day")


async def main(url: str = "http://127.0.0.1:6066") -> None:
    """Print each carrier's total of the year in three families."""
    async with AsyncQueryClient(url) as client:
        answers = await asyncio.gather(*(client.rows(family, YEAR) for family in FAMILIES))
    for answer in answers:
        counts = {row.key["carrier"]: row.measures["count"] for row in answer.rows}
        print(answer.family, answer.exactness, counts)


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:]))
    except QueryFailedError as error:
        sys.exit(str(error))
