"""The mix of query cost: its events, the queries, and the right answer of each."""

from __future__ import annotations

import dataclasses
import random

import polars as pl

from benchmarks.raw_events import MINUTE_MS
from treasure_map.query import Range

KEYS = 100
HOUR_MS = 3_600_000
START_MS = 1_699_920_000_000
"""A midnight."""

Cells = dict[tuple[str, int], tuple[int, float]]
"""Cells by entity and start: count and greatest value. Sums of floats differ in their last bits."""


@dataclasses.dataclass(frozen=True, slots=True)
class Ask:
    """One query of the mix: of one key, or all; in steps, or not; or the top keys only."""

    query: str
    from_ms: int
    to_ms: int
    key: str | None = None
    step: str | None = None
    step_ms: int = 0
    top: int = 0

    def range(self) -> Range:
        """Return the path and parameters of the request."""
        key = {} if self.key is None else {"entity": self.key}
        return Range(self.from_ms, self.to_ms, key=key, step=self.step, group=["entity"])


def mix(now_ms: int, span_ms: int, rng: random.Random) -> list[Ask]:
    """Return one ask of each kind, of a random key, as of a time."""
    key = f"user-{rng.randrange(KEYS)}"
    second = now_ms // 5_000 * 5_000
    day = START_MS
    return [
        Ask("one key, last minute", second - MINUTE_MS, second, key),
        Ask("one key, last hour by minute", second // MINUTE_MS * MINUTE_MS - HOUR_MS,
            second // MINUTE_MS * MINUTE_MS, key, "1m", MINUTE_MS),
        Ask("one key, a day by hour", day, day + span_ms, key, "1h", HOUR_MS),
        Ask("all keys, last window", second - 5_000, second),
        Ask("top 10 of a day", day, day + span_ms, top=10),
    ]  # fmt: skip


def events_of(count: int, span_ms: int) -> pl.DataFrame:
    """Return events of a span in order of time, of skewed keys; always the same."""
    place = pl.int_range(count, eager=True)
    chance = place.hash(7).cast(pl.Float64) / 2**64
    rank = (chance ** (-1 / 1.1)).clip(1, 2**53).cast(pl.Int64) % KEYS
    return pl.DataFrame(
        {
            "at": START_MS + place * span_ms // count,
            "entity": "user-" + rank.cast(pl.String),
            "value": (place.hash(9).cast(pl.Float64) / 2**64 * 100).round(2),
        }
    )


def answer_of(events: pl.DataFrame, ask: Ask) -> Cells:
    """Return the right answer of a query, from events."""
    found = events.filter((pl.col("at") >= ask.from_ms) & (pl.col("at") < ask.to_ms))
    if ask.key is not None:
        found = found.filter(pl.col("entity") == ask.key)
    start = pl.col("at") // ask.step_ms * ask.step_ms if ask.step_ms else pl.lit(ask.from_ms)
    cells = found.group_by("entity", start.alias("start")).agg(pl.len(), pl.col("value").max())
    if ask.top:
        cells = cells.sort([-pl.col("len").cast(pl.Int64), pl.col("entity")]).head(ask.top)
    return {(entity, at): (count, most) for entity, at, count, most in cells.iter_rows()}
