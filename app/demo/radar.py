"""The synthetic radar: contacts that arrive now, a little out of order, for the ``radar`` source.

Sectors are skewed as real ones are: the busiest sees most of the traffic. A contact's event time is
up to ``DISORDER_MS_MAX`` before it is written, so neighbours change places as on a real network.
"""

from __future__ import annotations

import asyncio
import collections
import random
import time
from collections.abc import Callable, Iterator

import orjson

from app.kafka.batch_producer import BatchProducer, partition_of
from app.load.replay import settled_ms
from tables.model.layer import Map

SOURCE = "radar"
RATE = 2_000
DISORDER_MS_MAX = 400
SECTORS = tuple(f"S{number:02d}" for number in range(16))
# Zipf's law: the sector of rank r sees 1/r of the contacts of the busiest.
_WEIGHTS = tuple(1 / (rank + 1) for rank in range(len(SECTORS)))
_STEP_SECONDS = 0.05
_HEARTBEAT_SECONDS = 1.0


def contacts(chance: random.Random, now_ms: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield the sector and the JSON of ``count`` contacts written at ``now_ms``.

    The same seed and times give the same contacts.
    """
    for sector in chance.choices(SECTORS, _WEIGHTS, k=count):
        # Most records are nearly in order and a few are not: the cube of a uniform number.
        disorder_ms = int(chance.random() ** 3 * (DISORDER_MS_MAX + 1))
        yield (
            sector,
            orjson.dumps(
                {
                    "at": now_ms - disorder_ms,
                    "type": "radar.contact",
                    "sector": sector,
                    "altitude_ft": chance.randrange(10, 451) * 100,
                    "speed_kn": round(chance.uniform(90.0, 560.0), 1),
                }
            ),
        )


async def stream(
    brokers: str,
    themap: Map,
    *,
    seconds: float,
    rate: int = RATE,
    seed: int = 1,
    stop: asyncio.Event | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write contacts to the radar's topic until the time is up, and return how many.

    Once a second, and at the end, every partition gets a heartbeat; the last one closes and seals
    every window that a contact opened.

    Args:
        brokers: bootstrap servers, ``host:port`` separated by commas.
        themap: the map with the source ``radar``; its topic must exist.
        seconds: for how long.
        rate: contacts a second.
        seed: of the random numbers.
        stop: set to end before the time is up.
        progress: called with the number of contacts written so far.

    Raises:
        FeedError: no broker answers, the topic is missing, or records were refused.
    """
    chance = random.Random(seed)  # noqa: S311  # the stream must repeat, not be secret
    stop = stop or asyncio.Event()
    async with BatchProducer(brokers, themap.source(SOURCE).topic) as feed:
        places = {sector: partition_of(sector.encode(), feed.partitions) for sector in SECTORS}
        start, beat, now_ms = time.monotonic(), 0.0, _now_ms()
        while (elapsed := time.monotonic() - start) < seconds and not stop.is_set():
            # Event times never fall behind a heartbeat, even when the wall clock is set back.
            now_ms = max(now_ms, _now_ms())
            _add(feed, places, contacts(chance, now_ms, int(elapsed * rate) - feed.events))
            if elapsed >= beat:
                feed.heartbeat(now_ms - DISORDER_MS_MAX)
                beat = elapsed + _HEARTBEAT_SECONDS
            await feed.flush()
            if progress is not None:
                progress(feed.events)
            await _pause(stop, min(_STEP_SECONDS, seconds - elapsed))
        now_ms = max(now_ms, _now_ms())
        if not stop.is_set():
            _add(feed, places, contacts(chance, now_ms, int(seconds * rate) - feed.events))
        feed.heartbeat(settled_ms(themap, SOURCE, now_ms, margin_ms=0))
        await feed.flush()
        if progress is not None:
            progress(feed.events)
    return feed.events


def _add(feed: BatchProducer, places: dict[str, int], made: Iterator[tuple[str, bytes]]) -> None:
    """Put each contact into the partition of its sector."""
    keys: dict[int, list[bytes]] = collections.defaultdict(list)
    values: dict[int, list[bytes]] = collections.defaultdict(list)
    for sector, value in made:
        keys[places[sector]].append(sector.encode())
        values[places[sector]].append(value)
    for partition, own in values.items():
        feed.add(partition, keys[partition], own)


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    """Wait, but no longer than until ``stop`` is set."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
